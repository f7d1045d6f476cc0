"""How sure the figures of a comparison are: one bootstrap of users behind every interval.

Users are drawn again with replacement, once per draw for all strategies and all seeds, so that
every difference is paired by user, and a client's mean, the worst client and the gap between
clients are computed anew in each draw. A figure over several seeds is the mean of its seeds'
values: an interval says what other users would have changed. What another seed changes is told
beside it, as the values of the single seeds.

The lowest of several clients is lower than any client would be on average: of five that gain
nothing the least gain is below 0 by chance, and below 0 once more in each draw of users. So its
interval is no percentile of its draws, see `lowest`. Nor is that of a difference of two lowest, see
`lowest_over`: where all clients are alike the lowest leans further down than where one client is
far below the rest. Gap and Jain keep their percentiles, which lean the same way: read the gap
beside the one that chance would show.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from fellrec.errors import DataError
from fellrec.evaluation.bootstrap import Interval
from fellrec.results.cells import Cell

Numbers = NDArray[np.float64]
Figure = Callable[[Numbers], Numbers]
"""From clients' means, (draws, clients), to one number per draw, (draws,)."""

_DRAWS = 2000
_RISK = 0.05


@dataclass(frozen=True)
class Estimate:
    """A figure over seeds: mean and interval, and each seed's own value in the order of seeds.

    draws: (1 + draws,) the figure in each draw; None where the interval is not of its draws. holds:
    False for a difference that, judged together with others, may be one of many; see
    `judged_together`.
    """

    interval: Interval
    seeds: tuple[float, ...]
    draws: Numbers | None = field(default=None, repr=False, compare=False)
    holds: bool = True

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out 0, all seeds agree on the sign, and it holds."""
        signs = {np.sign(value) for value in self.seeds}
        return self.interval.clear and len(signs) == 1 and self.holds


class Draws:
    """Users drawn again: how often each row of a split is in each draw.

    users: rows of the split. The point estimate is draw 0, with every user once.
    """

    def __init__(self, users: int, rng: np.random.Generator, draws: int = _DRAWS) -> None:
        """Raise DataError when there is no user or no draw."""
        if users < 1 or draws < 1:
            raise DataError(f"{users} users, {draws} draws: give at least one of each")
        shares = np.full(users, 1 / users)
        counts = rng.multinomial(users, shares, size=draws).astype(np.float64)
        self.counts: Numbers = np.concatenate([np.ones((1, users)), counts])

    def mean(self, scores: Numbers) -> Numbers:
        """Return the mean of per-user scores in each draw: (users,) to (1 + draws,); NaN left out.

        Raises DataError when nobody has a score.
        """
        known = ~np.isnan(scores)
        if not known.any():
            raise DataError("no user has a score: nothing to compare")
        sums = self.counts @ np.where(known, scores, 0.0)  # cheaper than a copy of known columns
        return _quotient(sums, self.counts @ known.astype(np.float64), np.nan)

    def clients(self, scores: Numbers, whose: NDArray[np.integer], clients: int) -> Numbers:
        """Return each client's mean in each draw: (1 + draws, clients); NaN for one without users.

        whose: (users,) the client of each user, -1 for none.
        """
        known = ~np.isnan(scores) & (whose >= 0)
        member = np.zeros((len(scores), clients))
        member[known, whose[known]] = 1
        both = np.concatenate([np.where(known, scores, 0.0)[:, None] * member, member], axis=1)
        sums, sizes = np.split(self.counts @ both, 2, axis=1)
        return _quotient(sums, sizes, np.nan)


def estimate(per_seed: Sequence[Numbers]) -> Estimate:
    """Summarise a figure's draws, one (1 + draws,) for each seed: mean, 95 % interval, seeds.

    Draws that are NaN in a seed are left out.

    Raises DataError when there is no seed, or one whose point estimate is NaN.
    """
    if not per_seed or any(np.isnan(values[0]) for values in per_seed):
        raise DataError("no seed has this figure: nothing to compare")
    together = np.stack(per_seed).mean(axis=0)
    low, high = np.nanpercentile(together[1:], [2.5, 97.5])
    interval = Interval(float(together[0]), float(low), float(high))
    return Estimate(interval, tuple(float(values[0]) for values in per_seed), together)


def judged_together(differences: Sequence[Estimate]) -> list[Estimate]:
    """Note of each difference whether it holds when all are judged at once.

    The chance that any is said to hold which is none is at most 5 %, however many there are and
    however they hang together: the step-down of Romano and Wolf (2005, Econometrica 73) on the
    largest of |difference| / standard error, both from the draws. From the surest to the least
    sure, each is held against the largest deviation in each draw among those not yet passed; the
    first that fails ends it. Differences without draws are left alone.
    """
    known = {place: each.draws for place, each in enumerate(differences) if each.draws is not None}
    found = list(differences)
    if not known:
        return found
    places, draws = list(known), np.stack(list(known.values()), axis=1)
    away = np.abs(draws[1:] - draws[0])
    errors = np.sqrt(np.nanmean(away**2, axis=0))
    sizes = _quotient(np.abs(draws[0]), errors, np.inf)
    sizes[draws[0] == 0] = 0
    scaled = np.nan_to_num(_quotient(away, np.broadcast_to(errors, away.shape), 0.0))
    order = np.argsort(-sizes)
    holds = True
    for first, at in enumerate(order):
        largest = scaled[:, order[first:]].max(axis=1)
        holds = holds and float(np.mean(largest >= sizes[at])) < _RISK
        found[places[at]] = replace(differences[places[at]], holds=holds)
    return found


def lowest(per_seed: Sequence[Numbers]) -> Estimate:
    """Estimate the lowest of the clients' values, each seed's clients (1 + draws, clients).

    The lower end is that of the client whose own is lowest: whichever is truly the lowest, it is
    below its own lower end in one of 40 cases. The upper end must hold whichever it is, so it is
    the lowest of value + t standard errors, with the t that is the 95th percentile of the largest
    deviation among all clients of all seeds. Over seeds the ends are averaged.

    Raises DataError when there is no seed, or a seed without a client that has a value.
    """
    known = [values[:, ~np.isnan(values[0])] for values in per_seed]
    reaches = _reaches(known)
    lows = [np.nanpercentile(values[1:], 2.5, axis=0).min() for values in known]
    highs = [(values[0] + reach).min() for values, reach in zip(known, reaches, strict=True)]
    return _over_seeds([values[0].min() for values in known], lows, highs)


def lowest_over(pairs: Sequence[tuple[Numbers, Numbers]]) -> Estimate:
    """Estimate the lowest of one row's clients less the lowest of another's.

    pairs: of each seed, the clients' means in both rows, (1 + draws, clients) each. Clients count
    where both rows have a mean: else one row's lowest could be of users that the other leaves out.

    With i the client that is truly lowest in the one row and j in the other, the difference is at
    least i's own, since the other's lowest is at most what it gives i, and at most j's own. Both
    are paired by user. Which clients they are is not known: i may be any whose lower end is not
    above the lowest upper end of the row, and the lower end is the lowest that the own difference
    of one of these may be. The upper end is the highest for those that may be j. All hold at once
    in 19 of 20 cases, as their ends are t standard errors away, with one t for both rows' means
    and the differences of all clients of all seeds. Over seeds the ends are averaged.

    Raises DataError when there is no seed, or a seed without a client that both rows have.
    """
    known, values, lows, highs = [], [], [], []
    for one, other in pairs:
        shared = ~np.isnan(one[0] - other[0])
        both = one[:, shared], other[:, shared]
        known.append(np.concatenate([*both, both[0] - both[1]], axis=1))
    for drawn, reach in zip(known, _reaches(known), strict=True):
        means = drawn[0].reshape(3, -1)  # one row's, the other's, their differences
        low, high = means - reach.reshape(3, -1), means + reach.reshape(3, -1)
        may_be_lowest = low <= high.min(axis=1, keepdims=True)
        values.append(means[0].min() - means[1].min())
        lows.append(low[2, may_be_lowest[0]].min())
        highs.append(high[2, may_be_lowest[1]].max())
    return _over_seeds(values, lows, highs)


def _reaches(per_seed: Sequence[Numbers]) -> list[Numbers]:
    """Return how far from each value its ends are for all to hold at once: (columns,) a seed.

    per_seed: (1 + draws, columns), no column NaN in draw 0. t standard errors, with the t that is
    the 95th percentile of the largest deviation among all columns of all seeds.

    Raises DataError when there is no seed, or a seed without a column.
    """
    if not per_seed or any(not values.size for values in per_seed):
        raise DataError("no client has this figure: nothing to compare")
    together = np.concatenate(per_seed, axis=1)
    away = np.abs(together[1:] - together[0])
    errors = np.sqrt(np.nanmean(away**2, axis=0))
    known = (errors > 0) & ~np.isnan(away)
    scaled = np.divide(away, errors, out=np.zeros_like(away), where=known)
    times = float(np.percentile(scaled.max(axis=1), 95))
    edges = np.cumsum([values.shape[1] for values in per_seed])[:-1]
    return np.split(times * errors, edges)


def _over_seeds(values: Sequence[float], lows: Sequence[float], highs: Sequence[float]) -> Estimate:
    """Average seeds' values and ends, which no draws stand for."""
    ends = (float(np.mean(each)) for each in (values, lows, highs))
    return Estimate(Interval(*ends), tuple(float(value) for value in values))


def worst(means: Numbers) -> Numbers:
    """Return the lowest of the clients' means; NaN where none has any."""
    least: Numbers = np.fmin.reduce(means, axis=1)
    return least


def relative_gap(means: Numbers) -> Numbers:
    """Return (max - min) / max over clients, 0 where all are 0; see `evaluation.balance`."""
    top = np.fmax.reduce(means, axis=1)
    return _quotient(top - worst(means), top, 0.0)


def jain(means: Numbers) -> Numbers:
    """Return (Σx)² / (N Σx²) over clients: 1 when all are equal, which is also where all are 0."""
    known = (~np.isnan(means)).sum(axis=1)
    squares = np.where(known > 0, known * np.nansum(means**2, axis=1), np.nan)
    return _quotient(np.nansum(means, axis=1) ** 2, squares, 1.0)


def scores_of(cell: Cell, users: int, metric: str) -> Numbers:
    """Return a cell's scores in the order of the split: (users,), NaN unscored."""
    return cell.of(np.arange(users), metric)


def clients_of(cell: Cell, users: int) -> NDArray[np.int64] | None:
    """Return the client of each user of the split, (users,), -1 unscored; None: not divided."""
    if cell.clients is None:
        return None
    whose = np.full(users, -1, dtype=np.int64)
    whose[cell.rows] = cell.clients
    return whose


def quotient(one: Numbers, other: Numbers) -> Numbers:
    """Return one / other in each draw; NaN where the other is 0."""
    return _quotient(one, other, np.nan)


def _quotient(one: Numbers, other: Numbers, otherwise: float) -> Numbers:
    """Divide; otherwise: what a quotient by 0 is. What is NaN stays so."""
    found: Numbers = np.where(np.isnan(other), np.nan, otherwise)
    np.divide(one, other, out=found, where=other > 0)
    return found
