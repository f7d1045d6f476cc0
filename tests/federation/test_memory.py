"""Terms of the foreseen memory by hand, and what each depends on."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fellrec.errors import RunError
from fellrec.federation.deployment import allocator
from fellrec.federation.dryrun import dry_run
from fellrec.federation.memory.program import Program, program
from fellrec.federation.shares import share_data
from tests.toys import BLOCKS, ITEMS, WIDTH, Toys

STANDING = ("program", "weights", "data", "training")
LEARNING = ("activations", "scores", "frames")
KEYS = (*STANDING, *LEARNING, "scoring", "total")
INNER = 2 * WIDTH


@pytest.fixture(autouse=True)
def small_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring takes seconds; here it is a number."""
    monkeypatch.setattr("fellrec.federation.memory.sides.program", lambda: Program(1000, 500))


def memory(toys: Toys, **changes: object) -> dict[str, dict[str, int]]:
    values = {key.replace("__", "."): value for key, value in changes.items()}
    found: dict[str, dict[str, int]] = dry_run(toys.recipe(values))["memory"]
    return found


def test_the_total_is_what_stands_and_the_larger_of_two(toys: Toys) -> None:
    few = memory(toys)
    many = memory(toys, train__batch_size=64)
    for sides in (few, many):
        for terms in sides.values():
            assert tuple(terms) == KEYS
            standing = sum(terms[name] for name in STANDING)
            learning = sum(terms[name] for name in LEARNING)
            assert terms["total"] == standing + max(learning, terms["scoring"])
    assert few["client"]["program"] - few["server"]["program"] == 500
    assert few["server"]["data"] == few["server"]["scores"] == 0
    learning = sum(many["client"][name] for name in LEARNING)
    assert learning > many["client"]["scoring"] == few["client"]["scoring"]


def test_scoring_by_hand(toys: Toys) -> None:
    """Nine users of a shop, histories of eight items at the most, one block; float32."""
    found, shares = memory(toys), share_data(toys.recipe())
    longest = [np.minimum(shares.of(n).history("test").lengths(), 8).sum() for n in range(3)]
    places, positions = 9 * 8, int(max(longest))
    block = WIDTH + 2 * WIDTH + 2 * INNER  # what came in, and what passes in a block
    for side, more in (("server", 0), ("client", 2 * ITEMS * (9 + WIDTH))):
        assert found[side]["scoring"] == 4 * (places * block + 3 * positions * WIDTH + more)
    adapted = memory(toys, lora__targets=["attention", "mlp"])
    assert adapted["server"]["scoring"] - found["server"]["scoring"] == 4 * places * INNER


def test_micro_batches_under_way_are_kept_and_one_passes(toys: Toys) -> None:
    one, two = (
        memory(toys, train__batch_size=8, train__micro_batches=2, train__in_flight=n)["server"]
        for n in (1, 2)
    )
    assert two["frames"] == 2 * one["frames"]
    passing = 4 * 8 * 4 * (3 * WIDTH + INNER)  # four rows of eight
    assert two["activations"] - passing == 2 * (one["activations"] - passing)


def test_writing_titles_keeps_keys_and_values_of_each_beam(toys: Toys) -> None:
    changes: dict[str, object] = {
        "model__recommender": "bigrec",
        "model__base": str(toys.lm),
        "evaluation__valid_users": 3,
        "evaluation__test_users": 3,
    }
    few, many = (memory(toys, **changes, bigrec__beams=beams)["server"] for beams in (20, 40))
    nothing = memory(toys, **changes, bigrec__decode="retrieve")["server"]
    assert many["scoring"] == 2 * few["scoring"] > 2 * nothing["scoring"]


def test_no_trunk_takes_nothing_and_sends_nothing(toys: Toys) -> None:
    found = memory(toys, model__k_in=BLOCKS - 1)
    assert set(found["server"].values()) == {0}
    assert found["client"]["frames"] == 0


def test_the_program_is_measured_in_a_fresh_process() -> None:
    found = program()
    assert 100 << 20 < found.server <= found.client
    assert program() is found


def test_a_program_that_can_not_be_started_is_said_in_a_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nothing"))
    with pytest.raises(RunError, match="can't be measured"):
        program.__wrapped__()


def test_the_allocator_is_left_alone_where_it_was_set_or_is_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called: list[tuple[int, int]] = []

    class Library:
        def __init__(self, name: None) -> None:
            pass

        def mallopt(self, option: int, value: int) -> int:
            called.append((option, value))
            return 1

    monkeypatch.setattr(ctypes, "CDLL", Library)
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    assert allocator.give_back_what_is_freed()
    assert called == [(-3, 128 << 10)]
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "1048576")
    assert not allocator.give_back_what_is_freed()
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_")

    def other(name: None) -> Any:
        return object()

    monkeypatch.setattr(ctypes, "CDLL", other)
    assert not allocator.give_back_what_is_freed()
    assert len(called) == 1
