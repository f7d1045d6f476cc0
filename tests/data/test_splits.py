from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fellrec.data.interactions import Catalogue, Dataset, Interactions
from fellrec.data.splits import split
from fellrec.errors import ConfigError, DataError


def dataset(rows: Sequence[tuple[int, int, float]], parts: list[int] | None = None) -> Dataset:
    """Build a data set from (user, item, time) in file order."""
    n_users = max(row[0] for row in rows) + 1
    log = Interactions.ordered(
        np.asarray([row[0] for row in rows]),
        np.asarray([row[1] for row in rows]),
        np.asarray([float(row[2]) for row in rows]),
        None if parts is None else np.asarray(parts),
    )
    ids = tuple(str(n) for n in range(100))
    users = tuple(f"u{n}" for n in range(n_users))
    return Dataset("small", Catalogue(ids, ids, {}), users, log, {"col": users})


def lists(ragged: Any) -> list[list[int]]:
    return [ragged[i].tolist() for i in range(len(ragged))]


def test_leave_one_out() -> None:
    rows = [(0, i, i) for i in range(5)] + [(1, 1, 0), (1, 2, 0)] + [(2, i, -i) for i in range(3)]
    cut = split(dataset(rows), "leave-one-out")
    assert cut.users == ("u0", "u2")
    assert cut.user_columns == {"col": ("u0", "u2")}
    assert cut.dropped == 1
    assert lists(cut.train) == [[0, 1, 2], [2]]
    assert lists(cut.valid) == [[3], [1]]
    assert lists(cut.test) == [[4], [0]]


def test_last_five() -> None:
    rows = [(0, i, i) for i in range(8)] + [(1, i, i) for i in range(6)]
    cut = split(dataset(rows), "last-5")
    assert cut.users == ("u0",)
    assert cut.dropped == 1
    assert (lists(cut.train), lists(cut.valid), lists(cut.test)) == (
        [[0, 1]],
        [[2]],
        [[3, 4, 5, 6, 7]],
    )


def test_global_time_breaks_ties_by_file_order() -> None:
    # Ten rows at the same time: the first eight of the file train, whoever's they are.
    rows = [(n % 3, n, 7) for n in range(9)] + [(3, 9, 7)]
    cut = split(dataset(rows), "global-time")
    assert cut.users == ("u0", "u1", "u2")
    assert cut.dropped == 1
    assert lists(cut.train) == [[0, 3, 6], [1, 4, 7], [2, 5]]
    assert lists(cut.valid) == [[], [], [8]]
    assert lists(cut.test) == [[], [], []]


def test_global_time_by_time() -> None:
    rows = [(n % 2, n, -n) for n in range(20)]
    cut = split(dataset(rows), "global-time")
    assert lists(cut.train) == [list(range(18, 2, -2)), list(range(19, 3, -2))]
    assert lists(cut.valid) == [[2], [3]]
    assert lists(cut.test) == [[0], [1]]


def test_files_say_which() -> None:
    rows = [(0, 1, 1), (0, 2, 2), (1, 3, 1), (0, 4, 3), (1, 5, 2), (0, 6, 1)]
    cut = split(dataset(rows, [0, 0, 1, 1, 2, 2]), "files")
    assert cut.users == ("u0",)
    assert cut.dropped == 1
    assert (lists(cut.train), lists(cut.valid), lists(cut.test)) == ([[1, 2]], [[4]], [[6]])


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.integers(0, 99), st.integers(0, 3).map(float)), min_size=1
    ),
    st.sampled_from([("leave-one-out", 1, 3), ("last-5", 5, 7)]),
)
def test_ends_equal_slicing_lists(
    rows: list[tuple[int, int, float]], kind: tuple[Any, int, int]
) -> None:
    how, tests, needed = kind
    data = dataset(rows)
    histories: dict[str, list[int]] = {}
    for user, item, _ in sorted(rows, key=lambda row: (row[0], row[2])):  # stable
        histories.setdefault(f"u{user}", []).append(item)
    long = {user: items for user, items in histories.items() if len(items) >= needed}
    if not long:
        with pytest.raises(DataError, match=f"at least {needed} interactions"):
            split(data, how)
        return
    cut = split(data, how)
    assert list(cut.users) == list(long)
    assert cut.dropped == len(data.users) - len(long)
    assert lists(cut.train) == [items[: -tests - 1] for items in long.values()]
    assert lists(cut.valid) == [[items[-tests - 1]] for items in long.values()]
    assert lists(cut.test) == [items[-tests:] for items in long.values()]


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.integers(0, 99), st.integers(0, 3).map(float)), min_size=2
    )
)
def test_global_time_equals_sorting_rows(rows: list[tuple[int, int, float]]) -> None:
    ordered = sorted(rows, key=lambda row: row[2])  # stable: file order
    first, second = len(rows) * 8 // 10, len(rows) * 9 // 10
    cut = split(dataset(rows), "global-time")
    trained = sorted({user for user, _, _ in ordered[:first]})
    assert cut.users == tuple(f"u{user}" for user in trained)
    for part, ragged in [
        (ordered[:first], cut.train),
        (ordered[first:second], cut.valid),
        (ordered[second:], cut.test),
    ]:
        assert lists(ragged) == [[i for u, i, _ in part if u == user] for user in trained]


def test_what_cannot_be_split() -> None:
    data = dataset([(0, 1, 1)])
    with pytest.raises(DataError, match=r"small: .* at least 1 training interaction"):
        split(data, "global-time")
    with pytest.raises(DataError, match=r"needs \.train\.inter"):
        split(data, "files")
    with pytest.raises(ConfigError, match="choose leave-one-out, last-5, global-time, files"):
        split(data, "random")  # type: ignore[arg-type]  # a wrong name is the point
