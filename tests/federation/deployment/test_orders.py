"""Orders and answers: every field is checked, and nothing is lost on the way."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from fellrec.errors import ConfigError, FellrecError, RunError, TrainingError, WireError
from fellrec.federation.deployment import orders
from fellrec.split.service.messages import read_message, write_message

REPORT: dict[str, Any] = {"loss": 1.5, "examples": 3, "scored": True, "before": 0.25}
SIZES = {
    "client_parameters": 7,
    "client_bytes": 28,
    "client_blocks": 2,
    "client_block_parameters": 5,
}
TOLD: dict[str, Any] = {
    "client": "a",
    "version": "1",
    "dataset": "d",
    "split": "last-5",
    "users": 1,
    "dropped": 0,
    "items": 2,
    "examples": 3,
    "valid_users": 1,
    "test_users": 1,
    "catalogue": "c",
    "manifest": "m",
    "settings": "s",
    "sizes": SIZES,
    "held": [1, 2],
}


def written(values: object) -> bytes:
    return json.dumps(values).encode()


def test_numbers_that_are_none_survive_the_way() -> None:
    for value in (math.nan, math.inf, -math.inf, 0.1 + 0.2, 5e-324):
        again = read_message(orders.Score, write_message(orders.Score(score=value)))
        assert again.score == value or (math.isnan(value) and math.isnan(again.score))
    told = orders.Introduction(**TOLD)
    assert read_message(orders.Introduction, write_message(told)) == told


@pytest.mark.parametrize(
    ("kind", "values", "key"),
    [
        (orders.Report, {**REPORT, "more": 1}, "more"),
        (orders.Report, {**REPORT, "examples": -1}, "examples"),
        (orders.Report, {**REPORT, "examples": 2**60}, "examples"),
        (orders.Report, {**REPORT, "examples": 1.5}, "examples"),
        (orders.Report, {**REPORT, "loss": "1"}, "loss"),
        (orders.Report, {**REPORT, "loss": None}, "loss"),
        (orders.Report, {"loss": 1.0}, "examples"),
        (orders.Introduction, {**TOLD, "client": ""}, "client"),
        (orders.Introduction, {**TOLD, "client": "a" * 65}, "client"),
        (orders.Introduction, {**TOLD, "sizes": {"users": 7}}, "sizes"),
        (orders.Introduction, {**TOLD, "sizes": {**SIZES, "client_bytes": -7}}, "sizes"),
        (orders.Introduction, {**TOLD, "held": [-1]}, "held"),
        (orders.Introduction, {**TOLD, "held": list(range(65))}, "held"),
        (orders.TestScores, {"scored": 1, "metrics": {"m" * 65: 1.0}}, "metrics"),
        (orders.Failure, {"kind": "odd", "reason": "x"}, "kind"),
        (orders.Failure, {"kind": "other", "reason": "x" * 5000}, "reason"),
        (orders.Hello, {"run": "../x", "recipe": "", "version": "1"}, "run"),
        (orders.Hello, {"run": "a\n", "recipe": "", "version": "1"}, "run"),
        (orders.Hello, {"run": "a", "recipe": "x" * 70_000, "version": "1"}, "recipe"),
        (orders.Score, [1.0], "JSON"),
    ],
)
def test_what_is_refused_is_named(kind: type[orders.Message], values: object, key: str) -> None:
    with pytest.raises(WireError, match=f"^{kind.__name__} refused: {key}") as caught:
        read_message(kind, written(values))
    assert "\n" not in str(caught.value)


def test_a_huge_message_is_refused_before_it_is_read() -> None:
    with pytest.raises(WireError, match="the limit is"):
        read_message(orders.Score, b" " * (2 << 20))


@pytest.mark.parametrize(
    ("error", "kind", "back"),
    [
        (WireError("the trunk\nrefused"), "wire", WireError),
        (orders.AbsentError("gone"), "missing", orders.AbsentError),
        (RunError("busy"), "other", TrainingError),
        (ConfigError("x" * 9000), "other", TrainingError),
    ],
)
def test_a_failure_is_one_line_on_the_other_side(
    error: FellrecError, kind: str, back: type[FellrecError]
) -> None:
    failure = orders.Failure.of(error)
    assert failure.kind == kind
    made = read_message(orders.Failure, write_message(failure)).error("west")
    assert type(made) is back
    assert "\n" not in str(made)
    assert kind == "wire" or "west" in str(made)
