"""What a client keeps survives a kill at any change to the disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fellrec.errors import RunError
from fellrec.federation.deployment.client_store import ClientStore
from fellrec.files import append_line

FILES = ("adapter", "private", "optimiser", "best_adapter", "best_private")
CALLS = ("fsync", "replace", "rename", "link", "unlink", "mkdir", "rmdir")


class Died(BaseException):
    """Stands for a kill: nothing catches it."""


@contextmanager
def killed_at(number: int) -> Iterator[list[str]]:
    """Let no call that changes the disk come through from the n-th on; yields those that did."""
    done: list[str] = []

    def counted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if len(done) + 1 >= number:
                raise Died
            done.append(name)
            return call(*args, **kwargs)

        return wrapper

    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, counted(name, getattr(os, name)))
        yield done


def numbers(value: float) -> dict[str, Tensor]:
    return {"a": torch.full((2, 3), value), "b": torch.full((4,), -value)}


def work(store: ClientStore, label: int, before: int, *, improved: bool) -> None:
    """Do what a client does in a round."""
    folder = store.begin(label, before)
    for number, name in enumerate(("adapter", "private", "optimiser")):
        store.put(label, name, numbers(label + number / 8))
    append_line(folder / "metrics.jsonl", f"round {label}")
    store.put(label, "adapter", numbers(label + 0.5))
    store.seal(label, before, improved=improved)


def held(store: ClientStore, label: int) -> dict[str, dict[str, Tensor] | None]:
    return {name: store.read(label, name) for name in FILES}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(
        (one[name] is None) == (other[name] is None)
        and (one[name] is None or all(torch.equal(one[name][k], other[name][k]) for k in "ab"))
        for name in FILES
    )


def logged(store: ClientStore, label: int) -> str:
    return (store.path / "rounds" / str(label) / "metrics.jsonl").read_text()


def test_a_kill_anywhere_leaves_the_label_it_began_with(tmp_path: Path) -> None:
    for improved in (True, False):
        deaths = 0
        for number in range(1, 1000):
            store = ClientStore(tmp_path / f"{improved}-{number}", "a")
            store.path.mkdir()
            work(store, 1, 0, improved=True)
            work(store, 2, 1, improved=False)
            expected = held(store, 2)
            try:
                with killed_at(number):
                    work(store, 3, 2, improved=improved)
                break
            except Died:
                deaths += 1
            again = ClientStore(store.path, "a")
            # The coordinator has no answer: the client's label is what it was.
            assert 2 in again.labels(), number
            assert same(held(again, 2), expected), number
            assert logged(again, 2) == "round 1\nround 2\n"
            # It trains again in a later round; nothing of the lost one is left.
            work(again, 5, 2, improved=improved)
            assert again.labels() == [2, 5]
            assert not list((again.path / "rounds").glob("*.partial"))
            assert logged(again, 5) == "round 1\nround 2\nround 5\n"
            best = again.read(5, "best_adapter")
            assert best is not None
            assert torch.equal(best["a"], numbers(5.5 if improved else 1.5)["a"])
        assert deaths > 20


def test_a_sealed_round_that_the_coordinator_lost_is_forgotten(tmp_path: Path) -> None:
    store = ClientStore(tmp_path, "a")
    work(store, 1, 0, improved=True)
    expected = held(store, 1)
    work(store, 2, 1, improved=True)
    assert store.labels() == [1, 2]
    assert same(held(store, 1), expected)
    store.begin(2, 1)  # the coordinator came back to label 1
    assert store.labels() == [1]
    assert same(held(store, 1), expected)
    store.begin(1, 0)  # and to the common start
    assert store.labels() == []


def test_a_round_sat_out_keeps_the_label_before(tmp_path: Path) -> None:
    store = ClientStore(tmp_path, "a")
    work(store, 1, 0, improved=True)
    work(store, 7, 1, improved=False)
    assert store.labels() == [1, 7]
    work(store, 8, 7, improved=False)
    assert store.labels() == [7, 8]
    best = store.read(8, "best_adapter")
    assert best is not None
    assert torch.equal(best["a"], numbers(1.5)["a"])


def test_taking_over_is_whole_or_not_at_all(tmp_path: Path) -> None:
    """A label that is said to be held is one that can be gone on from."""
    deaths = 0
    for number in range(1, 1000):
        store = ClientStore(tmp_path / str(number), "a")
        store.path.mkdir()
        try:
            with killed_at(number):
                store.take_over(3, "adapter", numbers(3))
            break
        except Died:
            deaths += 1
        again = ClientStore(store.path, "a")
        for label in again.labels():
            assert again.read(label, "adapter") is not None, number
        again.take_over(3, "adapter", numbers(3))
        assert again.labels() == [3]
        work(again, 4, 3, improved=False)
        assert again.labels() == [3, 4]
        assert again.read(4, "best_adapter") is None  # that of round 3 is not the best one
    assert deaths > 3
    assert store.labels() == [3]
    assert store.read(3, "private") is None


def test_taking_over_keeps_what_else_there_is_of_a_label(tmp_path: Path) -> None:
    store = ClientStore(tmp_path, "a")
    work(store, 1, 0, improved=True)
    for name in ("adapter", "best_adapter"):
        expected = held(store, 1) | {name: numbers(9)}
        store.take_over(1, name, numbers(9))
        assert store.labels() == [1]
        assert same(held(store, 1), expected)


def test_publishing_twice_is_publishing_once(tmp_path: Path) -> None:
    store = ClientStore(tmp_path, "a")
    work(store, 1, 0, improved=True)
    best = {"adapter": numbers(1), "private": numbers(2)}
    for _ in range(2):
        folder = store.publish(1, best)
        append_line(store.path / "metrics.jsonl", "the test's")
        assert (store.path / "metrics.jsonl").read_text() == "round 1\nthe test's\n"
    assert sorted(path.name for path in folder.iterdir()) == [
        "best_adapter.safetensors",
        "best_private.safetensors",
        "last_adapter.safetensors",
        "last_private.safetensors",
    ]


def test_nothing_prepared_and_damaged_files_are_a_line(tmp_path: Path) -> None:
    store = ClientStore(tmp_path, "a")
    assert store.labels() == []
    assert store.read(1, "adapter") is None
    with pytest.raises(RunError, match=r"adapter\.safetensors: can't be read"):
        store.prepared(1, "adapter")
    work(store, 1, 0, improved=True)
    (tmp_path / "rounds" / "1" / "adapter.safetensors").write_bytes(b"no")
    with pytest.raises(RunError, match=r"adapter\.safetensors: can't be read"):
        store.read(1, "adapter")
