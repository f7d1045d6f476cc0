"""Who takes part: an order that all agree on, and clients that say what can't be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import fellrec
from fellrec.config import RunConfig
from fellrec.errors import ConfigError, WireError
from fellrec.federation.deployment.agreement import agreed
from fellrec.federation.deployment.orders import Introduction
from fellrec.federation.deployment.roll import call_roll, check_adapter
from fellrec.federation.shares import Quota

CONFIG = RunConfig.from_text("", "test", {"name": "test"}, {})
START = {"a": torch.arange(6.0).view(2, 3)}


def told(client: str, users: int = 5, **changes: Any) -> Introduction:
    values: dict[str, Any] = {
        "client": client,
        "version": fellrec.__version__,
        "dataset": "d",
        "split": "leave-one-out",
        "users": users,
        "dropped": 0,
        "items": 20,
        "examples": 10 * users,
        "valid_users": users,
        "test_users": users,
        "catalogue": "c",
        "manifest": "m",
        "settings": agreed(CONFIG),
        "sizes": {
            "client_parameters": 7,
            "client_bytes": 28,
            "client_blocks": 2,
            "client_block_parameters": 5,
        },
        "held": [],
    }
    return Introduction(**{**values, **changes})


def came(*clients: Introduction, start: dict[str, Tensor] = START) -> list[Any]:
    return [(client, start) for client in clients]


def test_the_largest_is_first_and_of_equal_ones_the_name_decides() -> None:
    roll = call_roll(CONFIG, came(told("c", 5), told("b", 9), told("a", 5)))
    assert roll.names == ("b", "a", "c")
    assert [row["share"] for row in roll.rows()] == [9 / 19, 5 / 19, 5 / 19]
    assert roll.quotas == dict.fromkeys("bac", Quota())
    assert roll.manifest == "m"
    expected = call_roll(CONFIG, came(told("c"), told("b"), told("a")), ("c", "gone", "a"))
    assert expected.names == ("c", "a")


def test_samples_are_spread_as_in_a_simulation() -> None:
    config = RunConfig.from_text("", "test", {"name": "test"}, {"evaluation.valid_users": 4})
    clients = came(told("a", 9), told("b", 3), told("c", 1, valid_users=0))
    roll = call_roll(config, clients)
    assert [roll.quotas[name].valid_users for name in "abc"] == [3, 1, 0]
    with pytest.raises(ConfigError, match=r"evaluation.valid_users = 4, but there are 5 clients"):
        call_roll(config, came(*(told(name) for name in "abcde")))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"version": "0"}, "client 'b' runs fellrec 0, the coordinator"),
        ({"dataset": "e"}, "clients 'a' and 'b' differ in dataset; give all"),
        ({"split": "last-5"}, "clients 'a' and 'b' differ in split"),
        ({"items": 21}, "clients 'a' and 'b' differ in items"),
        ({"catalogue": "k"}, "clients 'a' and 'b' differ in catalogue"),
        ({"manifest": "n"}, "clients 'a' and 'b' differ in manifest; give all parties"),
        ({"settings": "t"}, "client 'b' read the recipe otherwise"),
    ],
)
def test_a_client_that_differs_is_named(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError, match=f"^{line}"):
        call_roll(CONFIG, came(told("a", 9), told("b", 3, **changes)))


def test_what_is_wrong_with_the_first_is_not_blamed_on_the_others() -> None:
    with pytest.raises(ConfigError, match=r"^client 'a' read the recipe otherwise"):
        call_roll(CONFIG, came(told("a", 9, settings="t"), told("b")))
    with pytest.raises(ConfigError, match=r"^client 'a' runs fellrec 0"):
        call_roll(CONFIG, came(told("a", 9, version="0"), told("b")))


@pytest.mark.parametrize(
    "start",
    [
        {},
        {"b": START["a"]},
        {"a": START["a"].T},
        {"a": START["a"] + 0.001},
        {"a": START["a"] * torch.nan},
    ],
)
def test_another_start_is_refused(start: dict[str, Tensor]) -> None:
    both = [*came(told("a", 9)), *came(told("b", 3), start=start)]
    with pytest.raises(ConfigError, match="'a' and 'b' begin with different adapters"):
        call_roll(CONFIG, both)
    call_roll(CONFIG, [both[0], (told("b"), {"a": START["a"] * (1 + 1e-7)})])


def test_nobody_two_of_one_name_and_only_strangers() -> None:
    with pytest.raises(ConfigError, match="no client is ready"):
        call_roll(CONFIG, [])
    with pytest.raises(ConfigError, match="two SuperNodes say that they are client 'a'"):
        call_roll(CONFIG, came(told("a"), told("a", 9)))
    with pytest.raises(ConfigError, match="no client is ready"):
        call_roll(CONFIG, came(told("stranger")), ("a", "b"))


@pytest.mark.parametrize("name", ["../x", "a/b", "..", "a\0b", "a\nb", "é" * 33])
def test_a_name_that_can_name_no_folder_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="can't name a client"):
        call_roll(CONFIG, came(told("a"), told(name, 9)))


@pytest.mark.parametrize(
    ("tensors", "line"),
    [
        ({}, "first difference: a"),
        ({**START, "0": START["a"]}, "first difference: 0"),
        ({"a": START["a"].T}, r"of shape \(3, 2\), expected float32 of \(2, 3\)"),
        ({"a": START["a"].double()}, "is torch.float64"),
        ({"a": START["a"] / 0}, "NaN or infinite"),
    ],
)
def test_an_adapter_that_does_not_fit(tensors: dict[str, Tensor], line: str) -> None:
    check_adapter("client x", START, START)
    with pytest.raises(WireError, match=f"^client x: .*{line}"):
        check_adapter("client x", tensors, START)
