"""What a setting changes: score and gap of every row against the values of an axis."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from fellrec.comparison.rows import Compared, Row
from fellrec.comparison.rows import Table as Tabled
from fellrec.comparison.statistics import Estimate
from fellrec.report import words
from fellrec.report.blocks import Block, Figure, Folded, Table
from fellrec.report.sections.compared.curves import LARGE, beside, legend, panel
from fellrec.report.sections.compared.view import known, plain, shown_value

Curves = dict[str, list[float | None]]


def blocks(compared: Compared) -> list[Block]:
    """Draw two figures for each axis with more than one value, once for all others' values."""
    found: list[Block] = []
    for place, (key, values) in enumerate(compared.file.axes.items()):
        if len(values) < 2:
            continue
        for number, (others, tables) in enumerate(_groups(compared, key)):
            figures = []
            for name, title, of, digits in _KINDS:
                prefix = f"axis{place}-{number}-{name}"
                figure = _figure(compared, key, others, tables, prefix, title, of, digits)
                if figure is not None:
                    figures.append(figure)
            found += [Folded(f"By {key} with {others}", figures)] if number else figures
    return found


def _score(table: Tabled, row: Row) -> Estimate | None:
    return row.overall.get(table.metric)


def _gap(table: Tabled, row: Row) -> Estimate | None:
    return row.gap


_Of = Callable[[Tabled, Row], Estimate | None]
_KINDS: tuple[tuple[str, str, _Of, int], ...] = (
    ("score", "Test {metric}", _score, 4),
    ("gap", "Relative gap between clients", _gap, 2),
)


def _groups(compared: Compared, key: str) -> Iterator[tuple[str, list[Tabled]]]:
    """Yield the tables that differ in one axis only, and what the other axes are there."""
    groups: dict[tuple[tuple[str, Any], ...], list[Tabled]] = {}
    for table in compared.tables:
        rest = tuple(pair for pair in table.axes if pair[0] != key)
        groups.setdefault(rest, []).append(table)
    for rest, tables in groups.items():
        yield ", ".join(f"{name} = {shown_value(value)}" for name, value in rest), tables


def _figure(
    compared: Compared,
    key: str,
    others: str,
    tables: Sequence[Tabled],
    prefix: str,
    title: str,
    of: _Of,
    digits: int,
) -> Figure | None:
    labels = list(dict.fromkeys(row.label for table in tables for row in table.rows))
    found: dict[str, list[Estimate | None]] = {}
    for label in labels:
        rows = [table.row(label) for table in tables]
        values = [
            None if row is None else of(table, row) for table, row in zip(tables, rows, strict=True)
        ]
        if any(known(value) for value in values):
            found[label] = values
    if not found:
        return None
    curves: Curves = {
        label: [
            value.interval.mean if value is not None and known(value) else None for value in values
        ]
        for label, values in found.items()
    }
    places = [shown_value(dict(table.axes)[key]) for table in tables]
    heading = f"{title.format(metric=words.metric(tables[0].metric))} by {key}"
    heading += f", {others}" if others else ""
    small = len(curves) > LARGE
    every = [value for values in curves.values() for value in values]
    frame = panel(every, len(places), small=small, places=places)
    columns = ["strategy", *(f"{key} = {place}" for place in places)]
    numbers = [
        [label, *(plain(value, digits) for value in values)] for label, values in found.items()
    ]
    lead = f"Below each panel stand the values of {key}, evenly apart; the numbers have intervals."
    reference = compared.file.reference
    return Figure(
        heading,
        lead,
        beside(prefix, heading, frame, curves, reference, digits),
        [Table(f"{heading}, in numbers", columns, numbers, folded=True)],
        legend(list(curves), reference),
        layout="small" if small else "panels",
    )
