"""Which examples go through the stages together: of like lengths, yet in random order."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
_POOL = 8  # batches whose examples are sorted by length together: little padding, still shuffled


def like_lengths(lengths: Ints, batch_size: int, rng: np.random.Generator) -> list[Ints]:
    """Shuffle examples into batches of at most `batch_size`: the numbers of each one's examples.

    lengths: (n,) int64, positions of each example.
    """
    order = rng.permutation(len(lengths))
    batches: list[Ints] = []
    for pool in range(0, len(order), batch_size * _POOL):
        pooled = order[pool : pool + batch_size * _POOL]
        pooled = pooled[np.argsort(lengths[pooled], kind="stable")]
        batches += [pooled[i : i + batch_size] for i in range(0, len(pooled), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def by_budget(lengths: Ints, most: int) -> Iterator[Ints]:
    """Sort examples by length and cut them into batches of at most `most` places, padding included.

    An example longer than that is a batch of its own.
    """
    order = np.argsort(lengths, kind="stable")
    first = 0
    for last in range(1, len(order) + 1):
        if last == len(order) or (last + 1 - first) * int(lengths[order[last]]) > most:
            yield order[first:last]
            first = last
