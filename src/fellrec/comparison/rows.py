"""What a comparison comes to: rows of figures, a table for each set of axis values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fellrec.comparison.course import Course
from fellrec.comparison.plan import ComparisonFile
from fellrec.comparison.statistics import Estimate
from fellrec.results.cells import Cell

Axes = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class ClientScore:
    """One client of one seed. scores: by label of a row, its mean over the client's users."""

    seed: int
    name: str
    users: int
    scores: Mapping[str, Estimate]


@dataclass(frozen=True)
class Row:
    """One strategy or peer. Estimates are None where something that they need is missing.

    old: whether other code than today's has made one of its cells. shown_by: where earlier code
    made some that today's is vouched to match, the cells that showed it.
    overall: by metric. The rest is of the metric that the comparison shows: over_reference, the
    difference from the reference; of_ceiling, the quotient by the ceiling; over_floor, the least of
    the clients' gains over learning alone; worst, gap, jain, of clients' means, and gap_by_chance,
    the gap that equal clients would show; worst_over_reference and worst_over_floor, differences of
    worst clients; gap_of_reference, the quotient of gaps. over_reference is judged together with
    the other rows', the rest row by row.
    """

    label: str
    peer: bool
    cells: tuple[Cell, ...]
    failures: tuple[tuple[int, str], ...] = ()
    missing: tuple[int, ...] = ()
    old: bool = False
    shown_by: tuple[str, ...] = ()
    overall: Mapping[str, Estimate] = field(default_factory=dict)
    over_reference: Mapping[str, Estimate] = field(default_factory=dict)
    of_ceiling: Estimate | None = None
    over_floor: Estimate | None = None
    worst: Estimate | None = None
    worst_over_reference: Estimate | None = None
    worst_over_floor: Estimate | None = None
    gap: Estimate | None = None
    gap_by_chance: float | None = None
    gap_of_reference: Estimate | None = None
    jain: Estimate | None = None
    course: Course | None = None


@dataclass(frozen=True)
class Table:
    """The rows of one set of axis values, and the clients of its seeds.

    data: which data all cells are of; empty while there is none. users and split say it in words.
    """

    axes: Axes
    metric: str
    rows: tuple[Row, ...]
    clients: tuple[ClientScore, ...]
    data: Mapping[str, Any]

    @property
    def users(self) -> str:
        """How many users the data has, and of how many the scores are where not of all."""
        total = int(self.data["users"])
        scored = max((len(cell.rows) for row in self.rows for cell in row.cells), default=total)
        return f"{total:,} users" + (f", {scored:,} of them scored" if scored < total else "")

    @property
    def split(self) -> str:
        """By which rule items were held out."""
        rule = str(self.data["split"])
        return "the data's own split" if rule == "files" else rule

    def row(self, label: str) -> Row | None:
        """Return the row of a label that has figures."""
        return next((row for row in self.rows if row.label == label and row.cells), None)


@dataclass(frozen=True)
class Compared:
    """A comparison with all its figures."""

    file: ComparisonFile
    tables: tuple[Table, ...]

    @property
    def complete(self) -> bool:
        """Whether every cell has a result."""
        rows = [row for table in self.tables for row in table.rows]
        return not any(row.failures or row.missing for row in rows)
