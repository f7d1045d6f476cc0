"""Toy histories whose right answers are known by construction."""

from __future__ import annotations

import numpy as np

from fellrec.data.interactions import Ragged, Split
from fellrec.peers.peer import Task

CHAIN, GROUP = 15, 10


def split_of(rows: list[list[int]]) -> Split:
    """Leave one out: the last item is the test, the one before validation."""
    return Split(
        users=tuple(f"u{user}" for user in range(len(rows))),
        train=Ragged.from_rows([row[:-2] for row in rows]),
        valid=Ragged.from_rows([row[-2:-1] for row in rows]),
        test=Ragged.from_rows([row[-1:] for row in rows]),
        dropped=0,
        user_columns={},
    )


def chain(users: int = 60, seed: int = 0) -> Split:
    """Walks around a ring of `CHAIN` items: item i is always followed by i + 1."""
    rng = np.random.default_rng(seed)
    starts, lengths = rng.integers(0, CHAIN, users), rng.integers(4, 11, users)
    return split_of(
        [
            [int(item) % CHAIN for item in range(start, start + length)]
            for start, length in zip(starts, lengths, strict=True)
        ]
    )


def groups(users: int = 40, seed: int = 0) -> Split:
    """Every other user takes only the first `GROUP` items, the others only the next `GROUP`."""
    rng = np.random.default_rng(seed)
    return split_of(
        [(user % 2 * GROUP + rng.permutation(GROUP)[:7]).tolist() for user in range(users)]
    )


def task_of(split: Split, items: int, metric: str = "ndcg@10", seed: int = 0) -> Task:
    """What a peer is asked about a split."""
    return Task(split.train, split.valid, items, metric, seed)


def random_histories(users: int, items: int, most: int, seed: int = 0) -> Ragged:
    """Histories of 1 … `most` different items."""
    rng = np.random.default_rng(seed)
    return Ragged.from_rows(
        [rng.permutation(items)[: rng.integers(1, most + 1)].tolist() for _ in range(users)]
    )


def dense(histories: Ragged, items: int) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """The 0/1 matrix of who took what, (users, items)."""
    matrix = np.zeros((len(histories), items))
    matrix[histories.rows(), histories.values] = 1
    return matrix
