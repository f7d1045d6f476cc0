"""Users to clients: who holds whose histories.

Only training interactions are looked at: a partition must not know what will be tested.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from fellrec.data.interactions import Ragged, Split
from fellrec.errors import ConfigError, DataError

PartitionKind = Literal["kmeans", "column", "dirichlet", "user", "random"]
FACTORS = 32
_EMPTY = "(empty)"


@dataclass(frozen=True, eq=False)
class Partition:
    """Which client each user belongs to.

    Attributes:
        names: one per client, largest client first.
        assignment: (U,) int32, the client of each user of the split.

    Raises:
        ValueError: a client without users, or an assignment to no client.
    """

    names: tuple[str, ...]
    assignment: NDArray[np.int32]

    def __post_init__(self) -> None:
        """Refuse what would make an empty or unknown client."""
        if len(self.assignment) and int(self.assignment.min()) < 0:
            raise ValueError("partition: a negative client")
        if len(self.sizes()) != len(self.names) or not self.sizes().all():
            raise ValueError("partition: each name needs at least one user, each user a name")

    def __len__(self) -> int:
        """Return the number of clients."""
        return len(self.names)

    def sizes(self) -> NDArray[np.int64]:
        """Return the number of users of each client, (N,) int64."""
        return np.bincount(self.assignment, minlength=len(self.names)).astype(np.int64)

    def members(self, client: int) -> NDArray[np.int64]:
        """Return the users of a client as rows of the split, ascending."""
        return np.flatnonzero(self.assignment == client)


def partition(
    split: Split,
    how: PartitionKind,
    count: int,
    rng: np.random.Generator,
    *,
    column: str = "",
    alpha: float = 1.0,
    n_items: int,
    groups: int = 20,
) -> Partition:
    """Give every user of a split to a client.

    Args:
        split: only `train` is used, and `user_columns` for "column".
        how: "kmeans": users of similar taste together: k-means on unit user vectors from a matrix
            factorisation (truncated SVD) of the training matrix. "column": one client per value
            of a user column. "dirichlet": items in `groups` groups of similar use; each client
            draws Dirichlet(alpha) shares over the groups; a user goes by the group most frequent
            in its history. "user": one client per user. "random": equal sizes, at random.
        count: number of clients N; "column" and "user" find their own.
        rng: the only source of randomness.
        column: name of the user column.
        alpha: above 0; the smaller, the less alike the clients.
        n_items: items in the catalogue.
        groups: item groups for "dirichlet".

    Returns:
        The partition: clients by size, largest first, named "c0", "c1" ... or by the value.

    Raises:
        ConfigError: an unknown kind, a count, alpha or groups out of range.
        DataError: fewer users than clients, an unknown column, or k-means that finds fewer
            clusters than clients.
    """
    if how == "column":
        return _by_column(split, column)
    if how == "user":
        return Partition(_names(len(split)), np.arange(len(split), dtype=np.int32))
    if how not in get_args(PartitionKind):
        raise ConfigError(f"unknown partition '{how}'; choose {', '.join(get_args(PartitionKind))}")
    if count < 1:
        raise ConfigError(f"{count} clients; choose 1 or more")
    if count > len(split):
        raise DataError(f"{count} clients for {len(split)} users; choose {len(split)} or fewer")
    if how == "kmeans":
        users, _ = _factors(split.train, n_items, rng)
        labels = _kmeans(users, count, rng)
        found = len(np.unique(labels))
        if found < count:
            raise DataError(
                f"k-means found {found} different groups of users for {count} clients; choose "
                f"{found} or fewer, or another partition"
            )
    elif how == "dirichlet":
        labels = _dirichlet(split, count, rng, alpha, n_items, groups)
    else:
        labels = np.empty(len(split), dtype=np.int64)
        labels[rng.permutation(len(split))] = np.arange(len(split)) % count
    return Partition(_names(count), _by_size(labels, count)[1])


def describe(split: Split, partition: Partition) -> list[dict[str, str | int | float]]:
    """Return a table row per client: client, users, interactions, share (of all users, 0 to 1).

    Raises:
        ValueError: the partition is of another split.
    """
    if len(partition.assignment) != len(split):
        raise ValueError(f"partition of {len(partition.assignment)} users, split of {len(split)}")
    per_user = split.train.lengths() + split.valid.lengths() + split.test.lengths()
    interactions = np.bincount(partition.assignment, weights=per_user, minlength=len(partition))
    return [
        {
            "client": name,
            "users": int(users),
            "interactions": int(total),
            "share": int(users) / len(split),
        }
        for name, users, total in zip(partition.names, partition.sizes(), interactions, strict=True)
    ]


def _names(count: int) -> tuple[str, ...]:
    return tuple(f"c{number}" for number in range(count))


def _by_size(
    labels: NDArray[np.integer], count: int
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Renumber clients by size, largest first; return the order (old numbers) and new labels."""
    order = np.argsort(-np.bincount(labels, minlength=count), kind="stable")
    rank = np.empty(count, dtype=np.int32)
    rank[order] = np.arange(count, dtype=np.int32)
    return order, rank[labels]


def _by_column(split: Split, column: str) -> Partition:
    if column not in split.user_columns:
        available = ", ".join(split.user_columns) or "none"
        raise DataError(f"no user column '{column}'; available: {available}")
    values, labels = np.unique(np.asarray(split.user_columns[column]), return_inverse=True)
    order, assignment = _by_size(labels, len(values))
    names = tuple(str(values[old]) or _EMPTY for old in order)
    if len(set(names)) < len(names):
        raise DataError(
            f"user column '{column}': some users have no value, others '{_EMPTY}'; rename one"
        )
    return Partition(names, assignment)


def _factors(
    train: Ragged, n_items: int, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Factorise the 0/1 training matrix: user (U, f) and item (n_items, f) vectors of length 1.

    Without the unit length, k-means sorts users by how much they did, not by what: on Amazon Games
    97 % of users then share one cluster.
    """
    # scikit-learn wants two columns; an empty one changes nothing.
    shape = (len(train), max(n_items, 2))
    ones = np.ones(len(train.values))
    # A copy: putting duplicates together sorts the rows in place, and their order is the history.
    matrix = csr_matrix((ones, train.values, train.offsets), shape=shape, copy=True)
    matrix.sum_duplicates()
    matrix.data[:] = 1.0
    seed = _seed(rng)
    # Imported where it is used: a client in a deployment never partitions, and starts sooner.
    from sklearn.decomposition import TruncatedSVD

    svd = TruncatedSVD(min(FACTORS, *shape), random_state=seed)
    with np.errstate(invalid="ignore"):  # its share of a variance of 0, which nobody reads
        users = svd.fit_transform(matrix)
    items = svd.components_.T[:n_items] * svd.singular_values_
    return _unit(users), _unit(items)


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: NDArray[np.float64] = vectors / np.where(lengths > 0, lengths, 1.0)
    return unit


def _kmeans(
    vectors: NDArray[np.float64], count: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    model = KMeans(count, n_init=4, random_state=_seed(rng))
    with warnings.catch_warnings():
        # Too few different vectors: the caller counts the clusters and says so itself.
        warnings.simplefilter("ignore", ConvergenceWarning)
        labels: NDArray[np.int64] = model.fit_predict(vectors).astype(np.int64)
    return labels


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31 - 1))


def _dirichlet(
    split: Split, count: int, rng: np.random.Generator, alpha: float, n_items: int, groups: int
) -> NDArray[np.int64]:
    if not (alpha > 0 and np.isfinite(alpha)):
        raise ConfigError(f"alpha {alpha} for a Dirichlet partition; choose a number above 0")
    if groups < 1:
        raise ConfigError(f"{groups} item groups; choose 1 or more")
    train = split.train
    seen = np.unique(train.values)
    _, items = _factors(train, n_items, rng)
    groups = min(groups, len(seen))
    group_of = np.zeros(n_items, dtype=np.int64)
    group_of[seen] = _kmeans(items[seen], groups, rng)
    cells = train.rows() * groups + group_of[train.values]
    taste = np.bincount(cells, minlength=len(split) * groups).reshape(len(split), groups)
    favourite = taste.argmax(axis=1)
    shares = rng.dirichlet(np.full(groups, alpha), size=count)  # (N, groups)
    labels = np.empty(len(split), dtype=np.int64)
    for group in range(groups):
        members = rng.permutation(np.flatnonzero(favourite == group))
        weight = shares[:, group]
        total = weight.sum()
        # A tiny alpha can leave a group with no taker at all: then all share it alike.
        portion = weight / total if total > 0 else np.full(count, 1 / count)
        cuts = np.rint(np.cumsum(portion)[:-1] * len(members)).astype(np.int64)
        for client, part in enumerate(np.split(members, cuts)):
            labels[part] = client
    _fill_empty(labels, count, rng)
    return labels


def _fill_empty(labels: NDArray[np.int64], count: int, rng: np.random.Generator) -> None:
    """Give each client without users one user of the largest client, in place."""
    sizes = np.bincount(labels, minlength=count)
    for client in np.flatnonzero(sizes == 0):
        largest = int(sizes.argmax())
        moved = rng.choice(np.flatnonzero(labels == largest))
        labels[moved] = client
        sizes[largest] -= 1
        sizes[client] += 1
