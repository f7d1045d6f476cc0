"""How sure a mean over users is: intervals by drawing users again, with replacement.

Such an interval says what other users of the same kind would have changed, for the models as they
are. It says nothing of another seed's training: seeds are replicates, each with its own interval.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fellrec.errors import DataError

_WORKING_ELEMENTS = 1 << 20  # values drawn at a time: 8 MiB


class Interval(NamedTuple):
    """A mean over users and its 95 % interval, in the unit of the scores."""

    mean: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


def mean_interval(scores: ArrayLike, rng: np.random.Generator, draws: int = 2000) -> Interval:
    """Return the mean of one score per user, (U,), with its interval; NaN users are left out.

    The percentile bootstrap (Efron 1979): users are drawn with replacement `draws` times, as many
    as there are, and the interval is between the 2.5 and 97.5 percentiles of the means.

    Raises `DataError` when scores are not (U,), one is infinite, no user is left, or draws is
    below 1.
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1:
        raise DataError(f"scores have shape {values.shape}: give one for each user")
    values = values[~np.isnan(values)]
    if not values.size:
        raise DataError("no user has a score: nothing to compare")
    if np.isinf(values).any():
        raise DataError("a user's score is infinite: give scores such as NDCG")
    means: list[NDArray[np.float64]] = []
    for part in in_parts(draws, len(values)):
        picked = rng.integers(len(values), size=(part, len(values)))
        means.append(values[picked].mean(axis=1))
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return Interval(float(values.mean()), float(low), float(high))


def paired_bootstrap(
    a: ArrayLike, b: ArrayLike, rng: np.random.Generator, draws: int = 2000
) -> Interval:
    """Compare two methods on the same users: the mean of a - b with its interval.

    a and b (U,) hold the same users in the same order; see `mean_interval`. Users that are NaN in
    either are left out.

    Raises `DataError` when the lengths differ, no user is scored by both, or as `mean_interval`.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape:
        raise DataError(
            f"scores of shapes {first.shape} and {second.shape} do not pair: "
            "give the same users in the same order"
        )
    if np.isinf(first).any() or np.isinf(second).any():  # whose difference could be NaN
        raise DataError("a user's score is infinite: give scores such as NDCG")
    if np.isnan(first + second).all():
        raise DataError("no user has a score under both methods: nothing to compare")
    return mean_interval(first - second, rng, draws)


def in_parts(draws: int, width: int) -> Iterator[int]:
    """Cut `draws` rows of `width` values into parts that fit the working memory.

    Raises `DataError` for draws below 1.
    """
    if draws < 1:
        raise DataError(f"draws is {draws}: draw at least once")
    step = max(1, _WORKING_ELEMENTS // width)
    for first in range(0, draws, step):
        yield min(step, draws - first)
