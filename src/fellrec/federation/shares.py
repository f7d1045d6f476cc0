"""From a recipe to its data: loaded, filtered, split, and divided over clients."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fellrec.config import RunConfig
from fellrec.data.interactions import Dataset, Split, k_core, sample_users
from fellrec.data.partition import Partition, partition
from fellrec.data.sampling import apportion, evenly
from fellrec.data.sources import load_dataset
from fellrec.data.splits import split
from fellrec.errors import ConfigError, DataError
from fellrec.split.frames import MAX_CLIENT_BYTES

_Counts = npt.NDArray[np.int64]
Spread = Callable[[int, _Counts], _Counts]


@dataclass(frozen=True)
class Quota:
    """What one client draws of its own: examples to learn from, users to be scored; 0 is all."""

    samples: int = 0
    valid_users: int = 0
    test_users: int = 0


@dataclass(frozen=True)
class Shares:
    """The data of a run, whose it is, and how much of it is used."""

    dataset: Dataset
    split: Split
    partition: Partition
    quotas: tuple[Quota, ...]

    def of(self, client: int) -> Split:
        """Return the users of one client."""
        return self.split.take(np.flatnonzero(self.partition.assignment == client))


def seeded(seed: int, *names: str) -> np.random.Generator:
    """Return a generator that depends on the seed and the names alone."""
    text = "|".join((str(seed), *names))
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def load_split(config: RunConfig) -> tuple[Dataset, Split]:
    """Load, filter and split the data of a recipe."""
    dataset = load_dataset(config.data.source)
    if config.data.k_core:
        dataset = k_core(dataset, config.data.k_core)
    if config.data.max_users:
        dataset = sample_users(dataset, config.data.max_users, seeded(config.seed, "users"))
    return dataset, split(dataset, config.data.split)


def share_data(config: RunConfig) -> Shares:
    """Load, filter, split and partition the data of a recipe."""
    dataset, parts = load_split(config)
    clients = config.clients
    shares = partition(
        parts,
        clients.partition,
        clients.count,
        seeded(config.seed, "partition"),
        column=clients.column,
        alpha=clients.concentration,
        n_items=len(dataset.catalogue),
        groups=clients.groups,
    )
    if clients.per_round > len(shares.names):
        raise ConfigError(
            f"clients.per_round = {clients.per_round}, but there are {len(shares.names)} clients"
        )
    for client, name in enumerate(shares.names):
        # A client's name becomes that of a folder and travels in every frame.
        odd = {"/", "\\", "\0"} & set(name) or name in (".", "..") or not name.isprintable()
        if odd or len(name.encode()) > MAX_CLIENT_BYTES:
            raise DataError(f"{name!r} can't name a client; use another value in the users' column")
        users = np.flatnonzero(shares.assignment == client)
        if not (parts.train.lengths()[users] >= 2).any():
            raise DataError(f"client {name} has no history to learn from; use fewer clients")
    counts = Counts.of(parts, shares.assignment, len(shares))
    return Shares(dataset, parts, shares, quotas(config, counts))


@dataclass(frozen=True)
class Counts:
    """How much clients have to draw from, each (clients,): examples, users with targets."""

    examples: _Counts
    valid_users: _Counts
    test_users: _Counts

    @classmethod
    def of(cls, parts: Split, assignment: npt.NDArray[np.integer], clients: int) -> Counts:
        """Count the users of a split by client."""

        def count(each: npt.NDArray[np.integer]) -> _Counts:
            return np.bincount(assignment, each, clients).astype(np.int64)

        return cls(
            count((parts.train.lengths() - 1).clip(0)),
            count(np.sign(parts.valid.lengths())),
            count(np.sign(parts.test.lengths())),
        )


def quotas(config: RunConfig, counts: Counts) -> tuple[Quota, ...]:
    """Spread the run's samples over clients: examples evenly, users in proportion.

    Who has few examples to show of its own kind is not to be drowned out, while a score over a
    sample of users has to be that of all users on average. Raises ConfigError for a sample that is
    smaller than the number of clients.
    """

    def spread(key: str, total: int, of_client: _Counts, how: Spread) -> _Counts:
        if 0 < total < np.count_nonzero(of_client):
            raise ConfigError(f"{key} = {total}, but there are {len(of_client)} clients; raise it")
        return how(total, of_client) if total else np.zeros_like(of_client)

    train, scored = config.train, config.evaluation
    columns = (
        spread("train.samples", train.samples, counts.examples, evenly),
        spread("evaluation.valid_users", scored.valid_users, counts.valid_users, apportion),
        spread("evaluation.test_users", scored.test_users, counts.test_users, apportion),
    )
    return tuple(Quota(*map(int, row)) for row in np.stack(columns, axis=1))
