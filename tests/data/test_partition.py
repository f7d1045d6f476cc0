from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fellrec.data.interactions import Ragged, Split
from fellrec.data.partition import Partition, describe, partition
from fellrec.errors import ConfigError, DataError

N_ITEMS = 40


def tastes(n_users: int = 60, n_groups: int = 4, seed: int = 0) -> Split:
    """Build users who only take items of their own tenth: user u of group u % n_groups."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(n_users):
        low = 10 * (user % n_groups)
        rows.append(rng.choice(np.arange(low, low + 10), size=rng.integers(3, 9), replace=False))
    empty = Ragged.from_rows([[0]] * n_users)
    columns = {"shop": tuple("aab"[u % 3] for u in range(n_users)), "hole": ("",) * n_users}
    users = tuple(f"u{n}" for n in range(n_users))
    return Split(users, Ragged.from_rows(rows), empty, empty, 0, columns)


def cut(split: Split, how: Any, count: int, seed: int = 0, **options: Any) -> Partition:
    return partition(split, how, count, np.random.default_rng(seed), n_items=N_ITEMS, **options)


def test_kmeans_finds_users_of_one_taste() -> None:
    found = cut(tastes(), "kmeans", 4)
    for group in range(4):
        assert len(set(found.assignment[group::4].tolist())) == 1
    assert found.sizes().tolist() == [15, 15, 15, 15]
    assert found.names == ("c0", "c1", "c2", "c3")
    assert found.assignment.dtype == np.int32


@pytest.mark.parametrize("how", ["kmeans", "dirichlet", "random", "user", "column"])
def test_partitioning_leaves_the_order_of_histories_alone(how: str) -> None:
    """A sparse matrix that shares a history's memory sorts it in place, and order is learned."""
    split = tastes()
    before = split.train.values.copy()
    cut(split, how, 4, column="shop")
    assert np.array_equal(split.train.values, before)
    assert np.any(np.diff(split.train[0]) < 0)  # the check would miss sorting of sorted rows


def test_kmeans_goes_by_what_not_by_how_much() -> None:
    # Four users of each taste; half of them took one item of theirs, half took nine.
    rows = [
        [10 * (u % 2)] if u < 8 else list(range(10 * (u % 2), 10 * (u % 2) + 9)) for u in range(16)
    ]
    train = Ragged.from_rows(rows)
    users = tuple(str(n) for n in range(16))
    found = cut(Split(users, train, train, train, 0, {}), "kmeans", 2)
    assert len(set(found.assignment[::2].tolist())) == 1
    assert len(set(found.assignment[1::2].tolist())) == 1


def test_only_training_items_are_looked_at() -> None:
    split = tastes()
    other = Split(
        split.users,
        split.train,
        Ragged.from_rows([[n % N_ITEMS] for n in range(60)]),
        Ragged.from_rows([[39 - n % N_ITEMS] for n in range(60)]),
        0,
        {},
    )
    for how in ("kmeans", "dirichlet", "random"):
        left, right = cut(split, how, 3), cut(other, how, 3)
        assert np.array_equal(left.assignment, right.assignment)


def test_more_clusters_than_different_users() -> None:
    train = Ragged.from_rows([[1, 2], [1, 2], [5, 6], [5, 6]])
    split = Split(("a", "b", "c", "d"), train, train, train, 0, {})
    with pytest.raises(DataError, match="found 2 different groups of users for 3 clients"):
        cut(split, "kmeans", 3)


def test_one_item_and_one_user_can_be_partitioned() -> None:
    train = Ragged.from_rows([[0]])
    split = Split(("a",), train, train, train, 0, {})
    for how in ("kmeans", "dirichlet", "random", "user"):
        found = partition(split, how, 1, np.random.default_rng(0), n_items=1)
        assert found.assignment.tolist() == [0]


def test_column_names_clients_by_value_largest_first() -> None:
    found = cut(tastes(), "column", 99, column="shop")
    assert found.names == ("a", "b")
    assert found.sizes().tolist() == [40, 20]
    assert found.members(1).tolist() == list(range(2, 60, 3))
    assert cut(tastes(), "column", 0, column="hole").names == ("(empty)",)
    with pytest.raises(DataError, match="no user column 'age'; available: shop, hole"):
        cut(tastes(), "column", 2, column="age")


def test_a_missing_value_and_one_that_reads_like_it_are_no_two_clients_of_one_name() -> None:
    plain = tastes()
    shops = tuple(("", "(empty)")[u % 2] for u in range(len(plain)))
    split = replace(plain, user_columns={"shop": shops})
    with pytest.raises(DataError, match=r"some users have no value, others '\(empty\)'; rename"):
        cut(split, "column", 0, column="shop")


def test_every_user_a_client() -> None:
    found = cut(tastes(7), "user", 2)
    assert found.assignment.tolist() == list(range(7))
    assert found.names == tuple(f"c{n}" for n in range(7))


def test_random_gives_equal_sizes() -> None:
    assert cut(tastes(11), "random", 3).sizes().tolist() == [4, 4, 3]


def entropy(split: Split, found: Partition) -> float:
    """Return the mean entropy of tastes within clients, weighted by users."""
    total = 0.0
    for client in range(len(found)):
        shares = np.bincount(found.members(client) % 4, minlength=4) / found.sizes()[client]
        shares = shares[shares > 0]
        total += found.sizes()[client] * -(shares * np.log(shares)).sum()
    return total / len(split)


def test_a_smaller_alpha_makes_clients_less_alike() -> None:
    split = tastes(200)
    even = cut(split, "dirichlet", 4, alpha=1e6, groups=4)
    skewed = cut(split, "dirichlet", 4, alpha=0.05, groups=4)
    # alpha to infinity: every client has every group alike, 200 / 4 users each, to rounding.
    assert np.abs(even.sizes() - 50).max() <= 2
    assert entropy(split, even) > np.log(4) - 0.05
    assert entropy(split, skewed) < 0.7 * np.log(4)


def test_dirichlet_shares_follow_the_draw() -> None:
    # Two tastes of 30 users each. Repeating the draws gives each client's share of each taste;
    # its users of that taste are 30 times its share among the clients, to rounding. Which of the
    # two k-means calls group 0 is open.
    split = tastes(n_groups=2)
    found = cut(split, "dirichlet", 3, seed=5, groups=2, alpha=2.0)
    rng = np.random.default_rng(5)
    rng.integers(2**31 - 1, size=2)  # the seeds of the factorisation and of k-means
    shares = rng.dirichlet([2.0, 2.0], size=3)
    expected = 30 * shares / shares.sum(axis=0)
    expected = expected[np.argsort(-expected.sum(axis=1))]
    counts = np.asarray(
        [np.bincount(found.members(client) % 2, minlength=2) for client in range(3)]
    )
    assert min(np.abs(counts - expected).max(), np.abs(counts - expected[:, ::-1]).max()) <= 1


@settings(deadline=None, max_examples=25)
@given(
    st.sampled_from(["kmeans", "dirichlet", "random"]),
    st.integers(1, 12),
    st.integers(0, 50),
    st.sampled_from([1e-3, 0.1, 1.0, 1e3]),
)
def test_every_client_has_users_and_the_seed_decides(
    how: str, count: int, seed: int, alpha: float
) -> None:
    split = tastes(40, seed=seed)
    found = cut(split, how, count, seed, alpha=alpha, groups=5)
    again = cut(split, how, count, seed, alpha=alpha, groups=5)
    assert np.array_equal(found.assignment, again.assignment)
    sizes = found.sizes().tolist()
    assert len(sizes) == count
    assert sum(sizes) == 40
    assert min(sizes) >= 1
    assert sizes == sorted(sizes, reverse=True)


def test_the_global_random_state_is_left_alone() -> None:
    np.random.seed(1)
    before = np.random.get_state()[1].tolist()  # type: ignore[index]  # a tuple here
    cut(tastes(), "dirichlet", 3)
    assert np.random.get_state()[1].tolist() == before  # type: ignore[index]  # a tuple


def test_impossible_choices() -> None:
    with pytest.raises(DataError, match="11 clients for 10 users; choose 10 or fewer"):
        cut(tastes(10), "random", 11)
    with pytest.raises(ConfigError, match="0 clients"):
        cut(tastes(10), "random", 0)
    with pytest.raises(ConfigError, match="unknown partition 'size'"):
        cut(tastes(10), "size", 2)
    for alpha in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="alpha"):
            cut(tastes(10), "dirichlet", 2, alpha=alpha)
    with pytest.raises(ConfigError, match="0 item groups"):
        cut(tastes(10), "dirichlet", 2, groups=0)


@pytest.mark.parametrize("assignment", [[0, 0], [0, 2], [-1, 1], [0, 1, 2]])
def test_a_partition_has_no_empty_or_unknown_client(assignment: list[int]) -> None:
    with pytest.raises(ValueError, match="partition"):
        Partition(("a", "b"), np.asarray(assignment, dtype=np.int32))


def test_describe_counts_users_and_all_interactions() -> None:
    split = Split(
        ("a", "b", "c"),
        Ragged.from_rows([[1, 2], [3], [4]]),
        Ragged.from_rows([[1], [], [1]]),
        Ragged.from_rows([[5], [6], []]),
        0,
        {},
    )
    found = Partition(("c0", "c1"), np.asarray([0, 1, 0], dtype=np.int32))
    assert describe(split, found) == [
        {"client": "c0", "users": 2, "interactions": 6, "share": 2 / 3},
        {"client": "c1", "users": 1, "interactions": 2, "share": 1 / 3},
    ]
    with pytest.raises(ValueError, match="3 users, split of 2"):
        describe(split.take([0, 1]), found)
