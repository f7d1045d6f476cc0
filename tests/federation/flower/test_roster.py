"""Which node is which client: late ones, silent ones, and ones that claim another's name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from flwr.app import Error, Message

from fellrec.errors import ConfigError, RunError
from fellrec.federation.deployment.dispatch import Terms
from fellrec.federation.deployment.orders import Failure, Hello, Score
from fellrec.federation.deployment.roll import call_roll
from fellrec.federation.flower import roster as roster_module
from fellrec.federation.flower.records import pack, unpack
from fellrec.federation.flower.roster import Roster
from tests.federation.deployment.test_roll import CONFIG, START, told
from tests.federation.deployment.town import MemoryGrid, as_task

Node = Callable[[Message], Message | None]


def saying(client: str, **changes: Any) -> Node:
    def answer(message: Message) -> Message:
        order, _ = unpack(message.content)
        assert isinstance(order, Hello)
        assert message.metadata.message_type == "query"
        return Message(pack(told(client, **changes), START), reply_to=message)

    return answer


@pytest.fixture
def grid() -> MemoryGrid:
    as_task(1)
    return MemoryGrid()


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def roster(notes: list[str]) -> Roster:
    return Roster(Terms.of("run-1", CONFIG), 0.2, notes.append)


def test_clients_are_found_by_the_name_that_they_give(
    grid: MemoryGrid, roster: Roster, notes: list[str]
) -> None:
    grid.add(7, saying("a"), "a")
    grid.add(8, saying("b"))
    came = roster.gather(grid, ("b", "a"), 0, 5)
    assert {told.client for told, _ in came} == {"a", "b"}
    assert all(torch.equal(start["a"], START["a"]) for _, start in came)
    assert (roster.node("a"), roster.node("b"), roster.node("c")) == (7, 8, None)
    assert (roster.client(7), roster.client(8), roster.client(9)) == ("a", "b", None)
    assert roster.refresh(grid) == []
    assert grid.seen == [(7, "query"), (8, "query")]  # nobody is asked twice
    assert notes == []


def test_a_client_that_comes_back_has_a_new_node(grid: MemoryGrid, roster: Roster) -> None:
    grid.add(7, saying("a"))
    roster.gather(grid, ("a",), 0, 5)
    grid.remove(7)
    assert roster.refresh(grid) == []
    assert roster.node("a") is None
    grid.add(9, saying("a", held=[3]))
    ((introduction, _),) = roster.refresh(grid)
    assert introduction.held == [3]
    assert roster.node("a") == 9


def test_those_who_are_not_ready_are_named_and_asked_again(
    grid: MemoryGrid, roster: Roster, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    grid.add(1, lambda message: None)
    grid.add(2, lambda message: Message(Error(2, "no data\nit is gone"), reply_to=message))
    sorry = Failure(kind="other", reason="data.fellrec is missing")
    grid.add(3, lambda message: Message(pack(sorry, {}), reply_to=message), "south")
    grid.add(4, lambda message: Message(pack(Score(score=1.0), {}), reply_to=message))
    grid.add(5, saying("west"), "east")
    with pytest.raises(RunError, match=r"no client came within 0 s; .*\(2 of 2 clients\)"):
        roster.gather(grid, (), 2, 0.0)
    assert notes == [
        "node 1 did not say who it is",
        "node 2: Flower's code 2: it is gone",
        "node south is not ready: data.fellrec is missing",
        "node 4 answered with something else than its name",
        "node 5 is registered as 'east' and says that it is 'west'; it is left out",
    ]
    grid.nodes[3] = saying("south")
    assert roster.refresh(grid) == []  # not that soon
    monkeypatch.setattr(roster_module, "_ASK_AGAIN_SECONDS", 0.0)
    assert [told.client for told, _ in roster.refresh(grid)] == ["south"]


def test_two_nodes_of_one_name_are_not_both_taken(
    grid: MemoryGrid, roster: Roster, notes: list[str]
) -> None:
    """Whoever came first is not put out by another that claims its name."""
    grid.add(7, saying("a"))
    grid.add(8, saying("a", users=99))
    ((introduction, _),) = roster.gather(grid, (), 1, 0.0)
    assert introduction.users == 5
    assert notes == [
        "node 8 says that it is client 'a', which is connected as node 7; it is left out"
    ]


def test_a_name_that_is_connected_can_not_be_claimed(
    grid: MemoryGrid, roster: Roster, notes: list[str]
) -> None:
    grid.add(7, saying("a"))
    roster.gather(grid, ("a",), 0, 5)
    grid.add(8, saying("a"))
    assert roster.refresh(grid) == []
    assert roster.node("a") == 7
    assert "node 8" in notes[-1]


def test_only_strangers_came(grid: MemoryGrid, roster: Roster) -> None:
    grid.add(7, saying("stranger"))
    with pytest.raises((RunError, ConfigError), match="no client"):
        call_roll(CONFIG, roster.gather(grid, ("a",), 1, 0.0), ("a",))
