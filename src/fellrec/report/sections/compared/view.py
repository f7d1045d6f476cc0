"""One table of a comparison as its sections read it, and how its figures are written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fellrec.comparison.plan import ComparisonFile
from fellrec.comparison.rows import Row, Table
from fellrec.comparison.statistics import Estimate
from fellrec.report import words
from fellrec.report.blocks import ranged
from fellrec.report.charts import Mark
from fellrec.report.reading import FinishedRun, round_logs
from fellrec.results.cells import Cell


@dataclass(frozen=True)
class View:
    """A table with what its file says. prefix: of the names of its charts, none like another's."""

    file: ComparisonFile
    table: Table
    prefix: str = ""

    @property
    def name(self) -> str:
        """The metric that is shown, as a file names it."""
        return self.table.metric

    @property
    def metric(self) -> str:
        """The metric that is shown, as people write it."""
        return words.metric(self.table.metric)

    @cached_property
    def rows(self) -> list[Row]:
        """All rows, best first, then those without a result."""

        def order(row: Row) -> float:
            found = row.overall.get(self.name)
            return math.inf if found is None else -found.interval.mean

        return sorted(self.table.rows, key=order)

    @property
    def scored(self) -> list[Row]:
        """The rows that have a figure, best first."""
        return [row for row in self.rows if self.name in row.overall]

    @property
    def where(self) -> str:
        """The values that the table stands for, such as "clients.count = 3"."""
        return ", ".join(f"{key} = {shown_value(value)}" for key, value in self.table.axes)

    @cached_property
    def seeds(self) -> list[int]:
        """The seeds that any row has a result of, in the file's order."""
        here = {cell.origin["seed"] for row in self.table.rows for cell in row.cells}
        return [seed for seed in self.file.seeds if seed in here]

    def cell(self, row: Row, seed: int | None = None) -> Cell | None:
        """Return a row's cell of a seed; of the first that there is, unless one is given."""
        if seed is None and self.seeds:
            seed = self.seeds[0]
        return next((cell for cell in row.cells if cell.origin["seed"] == seed), None)

    def score(self, label: str) -> float | None:
        """Return a row's score; None where it has none."""
        row = self.table.row(label)
        found = None if row is None else row.overall.get(self.name)
        return None if found is None else found.interval.mean

    def runs(self) -> list[tuple[Row, FinishedRun]]:
        """Return the first seed's run of every row that trained by rounds, best first."""
        found = []
        for row in self.scored:
            cell = self.cell(row)
            if cell is not None and cell.config is not None and cell.rounds:
                logs = round_logs(cell.rounds)
                run = FinishedRun(Path(cell.name), cell.config, cell.summary, logs, (), {})
                found.append((row, run))
        return found


def known(value: Estimate | None) -> bool:
    """Return whether a figure is there and a number."""
    return value is not None and all(math.isfinite(number) for number in value.interval)


def plain(value: Estimate | None, digits: int = 4) -> str:
    """Write a figure with its interval as a table's cell."""
    if value is None or not known(value):
        return words.NOTHING
    mean, low, high = (f"{number:.{digits}f}" for number in value.interval)
    return ranged(mean, f"{low} to {high}")


def signed(value: Estimate | None, digits: int = 4) -> str:
    """Write a difference with its interval as a table's cell, bold where it is clear."""
    if value is None or not known(value):
        return words.NOTHING
    mean, low, high = (f"{number:+.{digits}f}" for number in value.interval)
    return ranged(mean, f"{low} to {high}", strong=value.clear)


def share(value: Estimate | None) -> str:
    """Write a quotient in per cent with its interval as a table's cell, bold where it is not 1."""
    if value is None or not known(value):
        return words.NOTHING
    mean, low, high = (f"{number:.0%}" for number in value.interval)
    return ranged(mean, f"{low} to {high}", strong=side_of_one(value) != 0)


def side_of_one(value: Estimate | None) -> int:
    """Return -1 or 1 where a quotient is clearly below or above 1 in all seeds, else 0."""
    if value is None or not known(value):
        return 0
    if value.interval.high < 1 and all(each < 1 for each in value.seeds):
        return -1
    return int(value.interval.low > 1 and all(each > 1 for each in value.seeds))


def mark(value: Estimate | None, series: int = 0) -> list[Mark]:
    """Return a figure's marker with its interval; none where it is not known."""
    if value is None or not known(value):
        return []
    return [Mark(*value.interval, series)]


def shown_value(value: object) -> str:
    """Write a setting's value as people do."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ", ".join(map(shown_value, value))
    return str(value)


def listed(names: Sequence[str], most: int = 6) -> str:
    """Write "a, b and c", or the first few and how many more."""
    if len(names) > most:
        return f"{', '.join(names[:most])} and {len(names) - most} more"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
