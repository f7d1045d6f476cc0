"""Few-shot examples and sampled users: how many of each, and which."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fellrec.data.interactions import Ragged
from fellrec.data.sampling import apportion, evenly, examples, few_shot, some_users

sizes = st.lists(st.integers(0, 50), min_size=1, max_size=8)


@given(sizes=sizes, total=st.integers(0, 400))
def test_apportion(sizes: list[int], total: int) -> None:
    found = apportion(total, sizes)
    assert found.sum() == min(total, sum(sizes))
    assert (found <= sizes).all() and (found >= 0).all()
    filled = [size for size in sizes if size]
    if total >= len(filled):
        assert (found[np.array(sizes) > 0] >= 1).all()
        # No share is further than one from what proportion and the first one each would give.
        free, whole = total - len(filled), sum(sizes) - len(filled)
        if 0 <= free <= whole and whole:
            exact = [1 + (size - 1) * free / whole if size else 0 for size in sizes]
            assert np.abs(found - exact).max() < 1 + 1e-9


def test_apportion_by_hand() -> None:
    # 10 over 60, 30, 10: one each, 7 left over 59, 29, 9 of 97 -> 4.26, 2.09, 0.65: 4, 2, 0 and the
    # last one to the largest remainder.
    assert apportion(10, [60, 30, 10]).tolist() == [5, 3, 2]
    assert apportion(2, [5, 5, 5]).tolist() == [1, 1, 0]  # equal remainders: the earlier first
    assert apportion(100, [3, 0, 4]).tolist() == [3, 0, 4]


@given(sizes=sizes, total=st.integers(0, 400))
def test_evenly(sizes: list[int], total: int) -> None:
    found = evenly(total, sizes)
    assert found.sum() == min(total, sum(sizes)) and (found <= sizes).all()
    # Who has more to give than it was asked for got as much as anybody, to within one.
    open_ = [int(given) for given, size in zip(found, sizes, strict=True) if given < size]
    if open_:
        assert max(found) - min(open_) <= 1


def test_evenly_by_hand() -> None:
    assert evenly(10, [60, 2, 30]).tolist() == [4, 2, 4]
    assert evenly(9, [60, 0, 4]).tolist() == [5, 0, 4]
    assert evenly(11, [9, 9, 9]).tolist() == [4, 4, 3]


@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=6),
    count=st.integers(0, 30),
    seed=st.integers(0, 9),
)
def test_few_shot(lengths: list[int], count: int, seed: int) -> None:
    # Every value is its own place, so a row tells where it was cut.
    histories = Ragged.from_lengths(np.array(lengths), np.arange(sum(lengths), dtype=np.int32))
    drawn = few_shot(histories, count, np.random.default_rng(seed))
    total = sum(max(length - 1, 0) for length in lengths)
    assert examples(histories) == total
    assert len(drawn) == min(count, total)
    seen = set()
    for row in range(len(drawn)):
        first, last = int(drawn[row][0]), int(drawn[row][-1])
        assert first in histories.offsets.tolist() and last > first
        assert drawn[row].tolist() == list(range(first, last + 1))
        assert np.searchsorted(histories.offsets, first, "right") == np.searchsorted(
            histories.offsets, last, "right"
        )
        seen.add(last)
    assert len(seen) == len(drawn)
    assert examples(histories.take([])) == 0


def test_every_example_can_be_drawn() -> None:
    histories = Ragged.from_rows([[1, 2, 3], [4], [5, 6]])
    found = {
        tuple(row.tolist())
        for seed in range(50)
        for draw in [few_shot(histories, 1, np.random.default_rng(seed))]
        for row in [draw[0]]
    }
    assert found == {(1, 2), (1, 2, 3), (5, 6)}


def test_some_users() -> None:
    users = np.array([3, 5, 8, 9])
    assert some_users(users, 0, np.random.default_rng(0)).tolist() == users.tolist()
    assert some_users(users, 9, np.random.default_rng(0)).tolist() == users.tolist()
    drawn = some_users(users, 2, np.random.default_rng(0)).tolist()
    assert len(drawn) == 2 and drawn == sorted(drawn) and set(drawn) <= set(users.tolist())
