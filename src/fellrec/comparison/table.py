"""The figures of a comparison: from its cells to rows, each figure with its interval.

A cell that is missing or failed has no figure. Nothing is compared over unlike data or users, and
nothing across seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fellrec.comparison.alike import alike
from fellrec.comparison.course import course_of
from fellrec.comparison.outcomes import Outcome
from fellrec.comparison.plan import Comparison, ComparisonFile
from fellrec.comparison.rows import Axes, ClientScore, Compared, Row, Table
from fellrec.comparison.statistics import (
    Draws,
    Estimate,
    Numbers,
    clients_of,
    estimate,
    jain,
    judged_together,
    lowest,
    lowest_over,
    quotient,
    relative_gap,
    scores_of,
)
from fellrec.errors import RunError
from fellrec.evaluation.balance import sampling_gap
from fellrec.results.cells import Cell

_Figure = Callable[[str, int], Numbers]
"""From a label and a seed to a number per draw."""
_How = Callable[[Numbers, Numbers], Numbers]


def compare(comparison: Comparison, found: Sequence[Outcome]) -> Compared:
    """Work out all figures; found: the outcomes of the comparison's cells.

    Raises RunError when the cells of one table and seed are of different data or splits, or were
    scored on different users.
    """
    groups: dict[Axes, list[Outcome]] = {}
    for each in found:
        groups.setdefault(each.planned.axes, []).append(each)
    file = comparison.file
    return Compared(file, tuple(_table(file, axes, group) for axes, group in groups.items()))


def _table(file: ComparisonFile, axes: Axes, group: Sequence[Outcome]) -> Table:
    group = alike(group)
    kept = {(o.planned.label, o.planned.seed): o.cell for o in group if o.cell is not None}
    metric = f"{group[0].planned.config.evaluation.metric.partition('@')[0]}@{file.shown}"
    maker = _Figures(file, metric, kept)
    labels = list(dict.fromkeys(each.planned.label for each in group))
    rows = [maker.row([o for o in group if o.planned.label == label]) for label in labels]
    data: Mapping[str, Any] = next((cell.origin["data"] for cell in kept.values()), {})
    return Table(axes, metric, _judged(rows), tuple(maker.clients(labels)), data)


def _judged(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Judge scores' differences together by column: many rows make many chances to look clear.

    Differences of clients, the least gain and those of worst clients, have no draws to judge by.
    """
    metrics = dict.fromkeys(name for row in rows for name in row.over_reference)
    over = {name: _column([row.over_reference.get(name) for row in rows]) for name in metrics}
    return tuple(
        replace(
            row,
            over_reference={
                name: value for name in metrics if (value := over[name][place]) is not None
            },
        )
        for place, row in enumerate(rows)
    )


def _column(values: Sequence[Estimate | None]) -> list[Estimate | None]:
    judged = iter(judged_together([value for value in values if value is not None]))
    return [None if value is None else next(judged) for value in values]


class _Figures:
    """Makes the figures of one table. kept: cells by label and seed.

    What many figures are made of is drawn once: means over users, by metric, and clients' means.
    """

    def __init__(
        self, file: ComparisonFile, metric: str, kept: Mapping[tuple[str, int], Cell]
    ) -> None:
        self._file = file
        self._metric = metric
        self._kept = kept
        self._draws: dict[str, Draws] = {}
        self._over_users: dict[tuple[str, str, int], Numbers] = {}
        self._over_clients: dict[tuple[str, int], Numbers] = {}

    def row(self, group: Sequence[Outcome]) -> Row:
        label = group[0].planned.label
        cells = {o.planned.seed: o.cell for o in group if o.cell is not None}
        row = Row(
            label,
            group[0].planned.peer is not None,
            tuple(cells.values()),
            tuple((o.planned.seed, o.failure.reason) for o in group if o.failure),
            tuple(o.planned.seed for o in group if not (o.cell or o.failure)),
            any(o.cell is not None and not o.current for o in group),
            tuple(sorted({name for o in group for name in o.shown_by})),
        )
        if not cells:
            return row
        file, metric = self._file, self._metric
        known = list(next(iter(cells.values())).scores)
        over = {name: self._against(label, file.reference, self._mean(name)) for name in known}
        gap = self._clients(relative_gap)
        return replace(
            row,
            overall={
                name: self._over(self._seeds(label), label, self._mean(name)) for name in known
            },
            over_reference={name: value for name, value in over.items() if value is not None},
            of_ceiling=self._against(label, file.ceiling, self._mean(metric), quotient),
            over_floor=self._gains(label, file.floor),
            worst=self._worst(label),
            worst_over_reference=self._worst_over(label, file.reference),
            worst_over_floor=self._worst_over(label, file.floor),
            gap=self._among(label, gap),
            gap_by_chance=self._chance(label),
            gap_of_reference=self._share(label, file.reference, gap),
            jain=self._among(label, self._clients(jain)),
            course=course_of(list(cells.values()), self._reference_best(cells)),
        )

    def clients(self, labels: Sequence[str]) -> list[ClientScore]:
        """Return every client of every seed, with the score that each row gives it."""
        found = []
        for seed in sorted({seed for _, seed in self._kept}):
            divided = self._divided(seed)
            if divided is None:
                continue
            owner, whose = divided
            here = [label for label in labels if (label, seed) in self._kept]
            means = {label: self._means(label, seed) for label in here}
            for number, client in enumerate(owner.summary["clients"]):
                if np.isnan(means[here[0]][0, number]):  # none of its users was scored
                    continue
                scores = {label: estimate([means[label][:, number]]) for label in here}
                users = int((whose == number).sum())
                found.append(ClientScore(seed, str(client["id"]), users, scores))
        return found

    def _seeds(self, *labels: str) -> list[int]:
        """Return the seeds that all these labels have, ascending."""
        sets = [{seed for name, seed in self._kept if name == label} for label in labels]
        return sorted(set.intersection(*sets))

    def _over(self, seeds: Sequence[int], label: str, figure: _Figure) -> Estimate:
        return estimate([figure(label, seed) for seed in seeds])

    def _among(self, label: str, figure: _Figure) -> Estimate | None:
        """Return a figure over clients, where a seed's users are divided into clients."""
        seeds = self._divided_seeds(label)
        return self._over(seeds, label, figure) if seeds else None

    def _against(
        self, label: str, other: str, figure: _Figure, how: _How = np.subtract
    ) -> Estimate | None:
        """Compare two rows in every draw, seed by seed."""
        seeds = self._seeds(label, other)
        if not seeds or other == label:
            return None
        found = [how(figure(label, seed), figure(other, seed)) for seed in seeds]
        if any(np.isnan(values[0]) for values in found):  # a quotient by 0
            return None
        return estimate(found)

    def _share(self, label: str, other: str, figure: _Figure) -> Estimate | None:
        """Divide by another row's figure over clients."""
        seeds = self._divided_seeds(label, other)
        return self._against(label, other, figure, quotient) if seeds else None

    def _divided_seeds(self, *labels: str) -> list[int]:
        return [seed for seed in self._seeds(*labels) if self._divided(seed) is not None]

    def _mean(self, metric: str) -> _Figure:
        def figure(label: str, seed: int) -> Numbers:
            place = metric, label, seed
            if place not in self._over_users:
                cell = self._kept[label, seed]
                scores = scores_of(cell, self._users(cell), metric)
                self._over_users[place] = self._drawn(cell).mean(scores)
            return self._over_users[place]

        return figure

    def _clients(self, of: Callable[[Numbers], Numbers]) -> _Figure:
        def figure(label: str, seed: int) -> Numbers:
            return of(self._means(label, seed))

        return figure

    def _means(self, label: str, seed: int) -> Numbers:
        """Return the clients' means in each draw, divided as the seed's federation is."""
        if (label, seed) not in self._over_clients:
            self._over_clients[label, seed] = self._drawn_clients(label, seed)
        return self._over_clients[label, seed]

    def _drawn_clients(self, label: str, seed: int) -> Numbers:
        cell, divided = self._kept[label, seed], self._divided(seed)
        if divided is None:
            raise RunError(f"{cell.name}: no run of seed {seed} divides users into clients")
        owner, whose = divided
        scores = scores_of(cell, self._users(cell), self._metric)
        return self._drawn(cell).clients(scores, whose, len(owner.summary["clients"]))

    def _divided(self, seed: int) -> tuple[Cell, NDArray[np.int64]] | None:
        """Return the cell whose clients count for a seed, and each user's: the reference's first.

        A row with a single client, or none, is read by the clients of the others.
        """
        order = [self._file.reference, *self._file.strategies]
        for label in order:
            cell = self._kept.get((label, seed))
            if cell is not None and cell.clients is not None and len(cell.summary["clients"]) > 1:
                whose = clients_of(cell, self._users(cell))
                if whose is not None:
                    return cell, whose
        return None

    def _worst(self, label: str) -> Estimate | None:
        seeds = self._divided_seeds(label)
        return lowest([self._means(label, seed) for seed in seeds]) if seeds else None

    def _gains(self, label: str, floor: str) -> Estimate | None:
        """Return the least gain over the floor among clients, over seeds."""
        pairs = self._pairs(label, floor)
        return lowest([one - other for one, other in pairs]) if pairs else None

    def _worst_over(self, label: str, other: str) -> Estimate | None:
        """Return the worst client's mean less that of another row's worst client, over seeds."""
        pairs = self._pairs(label, other)
        return lowest_over(pairs) if pairs else None

    def _pairs(self, label: str, other: str) -> list[tuple[Numbers, Numbers]]:
        """Return the clients' means in two rows, seed by seed; none of a row and itself."""
        if label == other:
            return []
        seeds = self._divided_seeds(label, other)
        return [(self._means(label, seed), self._means(other, seed)) for seed in seeds]

    def _chance(self, label: str) -> float | None:
        gaps = []
        for seed in self._seeds(label):
            divided = self._divided(seed)
            if divided is None:
                continue
            cell = self._kept[label, seed]
            scores = scores_of(cell, self._users(cell), self._metric)
            groups = [scores[divided[1] == number] for number in range(divided[1].max() + 1)]
            gaps.append(sampling_gap(groups, np.random.default_rng(0)))
        return float(np.mean(gaps)) if gaps else None

    def _reference_best(self, cells: Mapping[int, Cell]) -> list[float | None]:
        """Return the reference's best validation score for each seed of a row."""
        found = []
        for seed in cells:
            cell = self._kept.get((self._file.reference, seed))
            own = course_of([cell], [None]) if cell is not None else None
            found.append(own.best[0] if own is not None else None)
        return found

    def _users(self, cell: Cell) -> int:
        return int(cell.origin["data"]["users"])

    def _drawn(self, cell: Cell) -> Draws:
        """Return the same draws for every row and seed of the same users.

        Where each seed draws users of its own from the data, the seeds' draws are independent.
        """
        digest = cell.origin["data"]["digest"]
        if digest not in self._draws:
            rng = np.random.default_rng(len(self._draws))
            self._draws[digest] = Draws(self._users(cell), rng)
        return self._draws[digest]
