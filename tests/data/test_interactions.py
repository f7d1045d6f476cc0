from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fellrec.data.interactions import (
    Catalogue,
    Dataset,
    Interactions,
    Ragged,
    Split,
    k_core,
    sample_users,
)
from fellrec.errors import DataError

ROWS = st.lists(st.lists(st.integers(0, 1000), max_size=6), max_size=8)


def dataset(pairs: list[tuple[int, int]], n_users: int, n_items: int) -> Dataset:
    """Build a data set of (user, item) pairs in time order."""
    user = np.asarray([u for u, _ in pairs], dtype=np.int32)
    item = np.asarray([i for _, i in pairs], dtype=np.int32)
    return Dataset(
        "small",
        Catalogue(
            tuple(f"i{n}" for n in range(n_items)),
            tuple(f"Title {n}" for n in range(n_items)),
            {"kind": tuple(f"k{n}" for n in range(n_items))},
        ),
        tuple(f"u{n}" for n in range(n_users)),
        Interactions.ordered(user, item, np.arange(len(pairs), dtype=np.float64)),
        {"age": tuple(str(20 + n) for n in range(n_users))},
    )


@settings(deadline=None)
@given(ROWS)
def test_rows_come_back_as_they_went_in(rows: list[list[int]]) -> None:
    ragged = Ragged.from_rows(rows)
    assert [ragged[i].tolist() for i in range(len(ragged))] == rows
    assert ragged.lengths().tolist() == [len(r) for r in rows]
    assert ragged.offsets.dtype == np.int64
    assert ragged.values.dtype == np.int32


@settings(deadline=None)
@given(ROWS.filter(bool), st.data())
def test_take_equals_picking_from_a_list(rows: list[list[int]], data: st.DataObject) -> None:
    picked = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=10))
    taken = Ragged.from_rows(rows).take(picked)
    assert [taken[i].tolist() for i in range(len(taken))] == [rows[i] for i in picked]


@settings(deadline=None)
@given(st.lists(st.tuples(st.lists(st.integers(0, 9)), st.lists(st.integers(0, 9)))))
def test_concat_equals_joining_lists(pairs: list[tuple[list[int], list[int]]]) -> None:
    left = Ragged.from_rows([a for a, _ in pairs])
    joined = left.concat(Ragged.from_rows([b for _, b in pairs]))
    assert [joined[i].tolist() for i in range(len(joined))] == [a + b for a, b in pairs]


def test_a_row_is_a_view_and_negative_indices_count_from_the_end() -> None:
    ragged = Ragged.from_rows([[1, 2], [3]])
    assert ragged[-1].tolist() == [3]
    assert np.shares_memory(ragged[0], ragged.values)
    with pytest.raises(IndexError):
        ragged[2]


@pytest.mark.parametrize("offsets", [[0, 3], [1, 2], [0, 2, 1, 2], []])
def test_offsets_that_do_not_fit_are_refused(offsets: list[int]) -> None:
    with pytest.raises(ValueError, match="Ragged"):
        Ragged(np.asarray(offsets, dtype=np.int64), np.asarray([5, 6], dtype=np.int32))


def test_concat_needs_the_same_number_of_rows() -> None:
    with pytest.raises(ValueError, match="2 rows with 1"):
        Ragged.from_rows([[1], []]).concat(Ragged.from_rows([[1]]))


def test_texts_name_attributes_and_leave_out_empty_ones() -> None:
    catalogue = Catalogue(
        ("1", "2", "3"),
        ("Toy Story", "Nameless", ""),
        {"release_year": ("1995", "", "1999"), "class": ("Comedy", "", "")},
    )
    assert catalogue.texts() == [
        "Toy Story. release year: 1995. class: Comedy",
        "Nameless",
        "release year: 1999",
    ]


def test_find_prefers_exact_then_case_then_suggests() -> None:
    catalogue = Catalogue(("1", "2", "3", "4"), ("Heat", "HEAT", "Heat", "Toy Story"), {})
    assert catalogue.find("Heat") == [0, 2]
    assert catalogue.find("HEAT") == [1]
    assert catalogue.find("heat") == [0, 1, 2]
    with pytest.raises(DataError, match="near: 'Toy Story'"):
        catalogue.find("toy stori")
    with pytest.raises(DataError) as caught:
        catalogue.find("zzzzzzzzzzzzzz")
    assert "near" not in str(caught.value)


def test_catalogue_columns_must_fit() -> None:
    with pytest.raises(ValueError, match="1 ids but 2 titles"):
        Catalogue(("1",), ("a", "b"), {})


def test_equal_times_keep_file_order() -> None:
    log = Interactions.ordered(
        np.asarray([1, 0, 1, 0, 1]),
        np.asarray([10, 11, 12, 13, 14]),
        np.asarray([5.0, 9.0, 5.0, 1.0, 2.0]),
    )
    assert log.user.tolist() == [0, 0, 1, 1, 1]
    assert log.item.tolist() == [13, 11, 14, 10, 12]


def test_k_core_repeats_until_stable() -> None:
    # Item 3 has one taker: it goes, so user 2 has one left: goes, so item 2 has one left: goes;
    # users 0 and 1 with items 0 and 1 remain (each twice).
    pairs = [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 2), (2, 3)]
    core = k_core(dataset(pairs, 3, 4), 2)
    assert core.users == ("u0", "u1")
    assert core.catalogue.ids == ("i0", "i1")
    assert core.catalogue.attributes == {"kind": ("k0", "k1")}
    assert core.user_columns == {"age": ("20", "21")}
    assert core.interactions.user.tolist() == [0, 0, 1, 1]
    assert core.interactions.item.tolist() == [0, 1, 0, 1]


def test_k_core_that_keeps_nobody_says_so() -> None:
    with pytest.raises(DataError, match="lower k"):
        k_core(dataset([(0, 0)], 1, 1), 2)
    with pytest.raises(DataError, match="1 or more"):
        k_core(dataset([(0, 0)], 1, 1), 0)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1), st.integers(1, 3))
def test_k_core_is_the_largest_set_where_everyone_has_k(
    pairs: list[tuple[int, int]], k: int
) -> None:
    alive = list(pairs)
    while True:  # reference: remove one offender at a time
        users = [u for u, _ in alive]
        items = [i for _, i in alive]
        bad = [p for p in alive if users.count(p[0]) < k or items.count(p[1]) < k]
        if not bad:
            break
        alive.remove(bad[0])
    data = dataset(pairs, 6, 6)
    if not alive:
        with pytest.raises(DataError):
            k_core(data, k)
        return
    core = k_core(data, k)
    named = [
        (core.users[u], core.catalogue.ids[i])
        for u, i in zip(core.interactions.user, core.interactions.item, strict=True)
    ]
    assert sorted(named) == sorted((f"u{u}", f"i{i}") for u, i in alive)


def test_sample_users_is_seeded_and_keeps_the_catalogue() -> None:
    data = dataset([(u, u % 3) for u in range(10) for _ in range(2)], 10, 4)
    one = sample_users(data, 4, np.random.default_rng(3))
    two = sample_users(data, 4, np.random.default_rng(3))
    assert one.users == two.users
    assert len(one.users) == 4
    assert one.catalogue is data.catalogue
    assert sorted(one.users, key=data.users.index) == list(one.users)
    for position, user in enumerate(one.users):
        assert one.histories()[position].tolist() == data.histories()[int(user[1:])].tolist()
        assert one.user_columns["age"][position] == str(20 + int(user[1:]))
    with pytest.raises(DataError, match="1 to 10"):
        sample_users(data, 11, np.random.default_rng(0))


def test_split_history_and_take() -> None:
    split = Split(
        ("a", "b"),
        Ragged.from_rows([[1, 2], [3]]),
        Ragged.from_rows([[4], []]),
        Ragged.from_rows([[5], [6]]),
        7,
        {"age": ("1", "2")},
    )
    assert split.history("valid").values.tolist() == [1, 2, 3]
    history = split.history("test")
    assert [history[0].tolist(), history[1].tolist()] == [[1, 2, 4], [3]]
    other = split.take([1])
    assert other.users == ("b",)
    assert other.test[0].tolist() == [6]
    assert other.user_columns == {"age": ("2",)}
    assert len(other) == 1
