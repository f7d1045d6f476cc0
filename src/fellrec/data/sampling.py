"""Some of the examples, some of the users: how many each client draws, and which.

Only counts leave a client for this: the coordinator says how many, never which.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fellrec.data.interactions import Ragged


def apportion(total: int, sizes: Sequence[int] | NDArray[np.integer]) -> NDArray[np.int64]:
    """Spread `total` over parts in proportion to their sizes, by largest remainders: (n,) int64.

    A part that is not empty gets at least one where `total` allows, none gets more than its size;
    of equal remainders the earlier part's goes first.
    """
    counts = np.asarray(sizes, dtype=np.int64)
    everyone = int(counts.sum())
    if total >= everyone:
        return counts
    given = np.minimum(counts, 1) if total >= np.count_nonzero(counts) else np.zeros_like(counts)
    open_ = counts - given
    left = total - int(given.sum())
    # In whole numbers: two machines must not disagree on whose remainder is larger.
    shares, remainders = np.divmod(open_ * left, max(int(open_.sum()), 1))
    late = left - int(shares.sum())
    first = np.argsort(-remainders, kind="stable")[:late]
    shares[first] += 1
    spread: NDArray[np.int64] = given + shares
    return spread


def evenly(total: int, sizes: Sequence[int] | NDArray[np.integer]) -> NDArray[np.int64]:
    """Spread `total` over parts as evenly as their sizes allow: (n,) int64.

    What a small part can't take goes to the others, and a rest to the first of them.
    """
    counts = np.asarray(sizes, dtype=np.int64)
    levels = np.arange(int(counts.max(initial=0)) + 1)
    # The highest level to which all can be filled: sums of min(size, level) never fall.
    ordered = np.sort(counts)
    below = np.searchsorted(ordered, levels, side="right")
    filled = np.concatenate([[0], np.cumsum(ordered)])[below] + levels * (len(counts) - below)
    level = int(np.searchsorted(filled, total, side="right")) - 1
    given = np.minimum(counts, level)
    higher = np.flatnonzero(counts > level)
    given[higher[: total - int(given.sum())]] += 1
    return given


def examples(histories: Ragged) -> int:
    """Count what can be learned from: items that something came before."""
    return int(np.maximum(histories.lengths() - 1, 0).sum())


def few_shot(histories: Ragged, count: int, rng: np.random.Generator) -> Ragged:
    """Draw `count` examples without replacement: each a history up to and with its target.

    All of them where there are no more. In the order of the histories, shorter before longer.
    """
    targets = np.maximum(histories.lengths() - 1, 0)
    ends = np.cumsum(targets)
    total = int(ends[-1]) if len(ends) else 0
    chosen = np.sort(rng.choice(total, size=min(count, total), replace=False))
    rows = np.searchsorted(ends, chosen, side="right")
    lengths = chosen - (ends - targets)[rows] + 2
    shift = histories.offsets[:-1][rows] - (np.cumsum(lengths) - lengths)
    source = np.repeat(shift, lengths) + np.arange(int(lengths.sum()), dtype=np.int64)
    return Ragged.from_lengths(lengths, histories.values[source])


def some_users(users: NDArray[np.int64], count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw `count` of the users (rows of a split), in their old order; 0 takes all."""
    if not count or count >= len(users):
        return users
    return np.sort(rng.choice(users, size=count, replace=False))
