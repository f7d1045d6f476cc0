"""What a user took more than once counts once.

What is in a history is never recommended, so a repeat that became a target could not be found.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def first_rows(
    user: ArrayLike, item: ArrayLike, time: ArrayLike, part: ArrayLike | None = None
) -> NDArray[np.int64]:
    """Return the rows of interactions with which a user first took an item, ascending.

    Of several the one in the earliest part stays, of these the earliest, of equal times the first
    row. user, item: (M,) integers. time: (M,) numbers. part: (M,) integers, all alike without it.
    """
    users, items = np.asarray(user, np.int64), np.asarray(item, np.int64)
    pair = users * (int(items.max(initial=0)) + 1) + items
    keys = [np.asarray(time), pair] if part is None else [np.asarray(time), np.asarray(part), pair]
    order = np.lexsort(keys)
    first = np.ones(len(pair), np.bool_)
    first[1:] = np.diff(pair[order]) != 0
    return np.sort(order[first])
