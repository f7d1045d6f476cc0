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
from statistics import NormalDist

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

# What one end of a difference of two lowest may miss by, 2.5 % in all; see `lowest_over`.
_CHOICE = 0.005  # whose end it is
_PAIRED = 0.01  # that client's difference
_ACROSS = 0.01  # that client's mean less all others' in the other row


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
    away, errors = _deviations(draws)
    scaled = np.abs(away)
    sizes = _quotient(np.abs(draws[0]), errors, np.inf)
    sizes[draws[0] == 0] = 0
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
    _refuse_none(known)
    away, errors = _deviations(np.concatenate(known, axis=1))
    times = float(np.percentile(np.abs(away).max(axis=1), 95))
    edges = np.cumsum([values.shape[1] for values in known])[:-1]
    reaches = np.split(times * errors, edges)
    lows = [np.nanpercentile(values[1:], 2.5, axis=0).min() for values in known]
    highs = [(values[0] + reach).min() for values, reach in zip(known, reaches, strict=True)]
    return _over_seeds([values[0].min() for values in known], lows, highs)


def lowest_over(pairs: Sequence[tuple[Numbers, Numbers]]) -> Estimate:
    """Estimate the lowest of one row's clients less the lowest of another's.

    pairs: of each seed, the clients' means in both rows, (1 + draws, clients) each. Clients count
    where both rows have a mean: else one row's lowest could be of users that the other leaves out.

    Let i be the client that is truly lowest in the one row. The other row's lowest is at most what
    it gives i, so the difference is at least i's own, which is paired by user. It also is at least
    i's mean less what any other client has in the other row, which says more where that row fails
    another client. All these have lower ends, and the highest counts. Which client i is is not
    known: of those that may be it, the one with the lowest such end counts. Only i's own ends must
    hold, so it costs nothing that many may be i.

    The lower end is too high in at most one of 40 cases, the sum of: i is not among those that may
    be it, 0.5 %; i's difference is below its lower end, 1 %; one of those from other clients is,
    1 % for all of them. For the upper end the rows are exchanged and the sign is turned. Over seeds
    the ends are averaged.

    Raises DataError when there is no seed, or a seed without a client that both rows have.
    """
    known = []
    for one, other in pairs:
        shared = ~np.isnan(one[0] - other[0])
        known.append((one[:, shared], other[:, shared]))
    _refuse_none([one for one, _ in known])
    values = [one[0].min() - other[0].min() for one, other in known]
    lows = [_least_over(one, other) for one, other in known]
    highs = [0.0 - _least_over(other, one) for one, other in known]  # never -0.0
    return _over_seeds(values, lows, highs)


def _least_over(one: Numbers, other: Numbers) -> float:
    """Return the lower end of one row's lowest less the other's in a seed; see `lowest_over`.

    one, other: (1 + draws, clients), no client NaN in draw 0.
    """
    # A single client's end is a percentile: means of few users, most with a score of 0, are skewed.
    own = np.nanpercentile((one - other)[1:], 100 * _PAIRED, axis=0)
    ends = [
        max(own[client], _highest_end(one[:, [client]] - np.delete(other, client, axis=1)))
        for client in np.flatnonzero(_may_be_lowest(one))
    ]
    # The client that looks lowest is always among them, and both of its ends are at most the value
    # unless a percentile is above what it is the lower end of: by rounding, or where all draws are.
    return float(min(min(ends), one[0].min() - other[0].min()))


def _may_be_lowest(row: Numbers) -> NDArray[np.bool_]:
    """Return which clients of a row may truly be its lowest: (1 + draws, clients) to (clients,).

    All but those that are surely above another. The lowest is above none, so it is left out by
    mistake in at most 0.5 % of cases, shared among the others. At that level too few draws are left
    for a percentile (two or three of 2,000 with five clients): ends are normal, of standard errors.
    """
    clients = row.shape[1]
    times = NormalDist().inv_cdf(1 - _CHOICE / max(clients - 1, 1))
    found = np.ones(clients, dtype=np.bool_)
    for client in range(clients):  # all at once would be draws x clients x clients numbers
        above = row[:, [client]] - row
        found[client] = not (above[0] > times * _errors(above)).any()
    return found


def _highest_end(across: Numbers) -> float:
    """Return the highest of lower ends that hold for all columns at once, -inf for no column.

    across: (1 + draws, columns). Ends are t standard errors below, with the t that the largest
    deviation downwards among all columns passes in 1 % of draws.
    """
    away, errors = _deviations(across)
    times = float(np.percentile((-away).max(axis=1, initial=0.0), 100 * (1 - _ACROSS)))
    return float((across[0] - times * errors).max(initial=-np.inf))


def _refuse_none(per_seed: Sequence[Numbers]) -> None:
    """Raise DataError when there is no seed, or a seed without a column."""
    if not per_seed or any(not values.size for values in per_seed):
        raise DataError("no client has this figure: nothing to compare")


def _deviations(values: Numbers) -> tuple[Numbers, Numbers]:
    """Return how far each draw is from the value, in standard errors, and the standard errors.

    values: (1 + draws, columns) to (draws, columns) and (columns,). A deviation is 0 where the draw
    is NaN or the standard error 0.
    """
    away, errors = values[1:] - values[0], _errors(values)
    known = (errors > 0) & ~np.isnan(away)
    return np.divide(away, errors, out=np.zeros_like(away), where=known), errors


def _errors(values: Numbers) -> Numbers:
    """Return the standard errors: (1 + draws, columns) to (columns,); NaN draws are left out."""
    found: Numbers = np.sqrt(np.nanmean((values[1:] - values[0]) ** 2, axis=0))
    return found


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
