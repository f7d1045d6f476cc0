"""How the rows learned, round by round, each beside the reference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from markupsafe import Markup

from fellrec.comparison.course import Course
from fellrec.report import words
from fellrec.report.blocks import Block, Figure, Folded, Table, Text
from fellrec.report.charts import Line, LineFrame, Words, line_chart, line_legend
from fellrec.report.sections import learning
from fellrec.report.sections.compared.view import View

LARGE = 9
"""Rows that get large panels; more get small ones."""

_SMALL_HEIGHT = 150.0
_PANELS = 9  # clients of one row that are drawn; its table has all


def blocks(view: View) -> list[Block]:
    """Show a panel for each row that trained, and below, when opened, its clients'."""
    curves = {row.label: mean_curve(row.course) for row in view.scored if row.course is not None}
    if not curves:
        return [Text(["No row with a result has been trained by rounds."])]
    found: list[Block] = [_figure(view, curves)]
    seed = f", seed {view.seeds[0]}" if len(view.seeds) > 1 else ""
    each = [
        Folded(
            row.label,
            [learning.validation(run, prefix=f"{view.prefix}c{place}-", most=_PANELS)],
        )
        for place, (row, run) in enumerate(view.runs())
    ]
    return [*found, Folded(f"The clients of each row, round by round{seed}", each)]


def mean_curve(course: Course) -> list[float | None]:
    """Average the seeds' validation scores after each round, over the seeds that have them."""
    found: list[float | None] = []
    for number in range(max(map(len, course.curve))):
        values = [curve[number] for curve in course.curve if number < len(curve)]
        known = [value for value in values if math.isfinite(value)]
        found.append(sum(known) / len(known) if known else None)
    return found


def beside(
    name: str,
    title: str,
    frame: LineFrame,
    curves: dict[str, list[float | None]],
    reference: str,
    digits: int = 4,
) -> list[Markup]:
    """Draw a panel for each curve: the reference dashed, all others faint behind it."""
    charts = []
    first = frame.rounds[0]
    lines = {label: list(enumerate(values, start=first)) for label, values in curves.items()}
    for place, (label, points) in enumerate(lines.items()):
        drawn = [Line(points)]
        for other, theirs in lines.items():
            if other != label:
                drawn.append(Line(theirs, "second" if other == reference else "context"))
        known = [value for _, value in points if value is not None]
        said = (
            "It has no value."
            if not known
            else f"From {known[0]:.{digits}f} to {known[-1]:.{digits}f}."
        )
        note = f"{known[-1]:.{digits}f}" if known and frame.width > 200 else ""
        told = Words(f"{name}-{place}", f"{title}: {label}", said)
        charts.append(line_chart(told, frame, drawn, label=label, note=note))
    return charts


def panel(
    values: Sequence[float | None], count: int, *, small: bool, places: Sequence[str] = ()
) -> LineFrame:
    """Return what the panels share; small ones are higher than wide, so that lines part."""
    frame = LineFrame.around(values, (1, count), small=small, places=places)
    return replace(frame, height=_SMALL_HEIGHT) if small else frame


def legend(curves: Sequence[str], reference: str) -> Markup:
    """Explain the lines of `beside`."""
    entries = [("main", "the row")]
    entries += [("second", reference)] if reference in curves else []
    entries += [("context", "the others")] if len(curves) > 1 else []
    return line_legend(entries)


def _figure(view: View, curves: dict[str, list[float | None]]) -> Figure:
    rounds = max(map(len, curves.values()))
    small = len(curves) > LARGE
    every = [value for values in curves.values() for value in values]
    frame = panel(every, rounds, small=small)
    config = next(cell.config for row in view.scored for cell in row.cells if cell.config)
    metric = words.metric(config.evaluation.metric)
    title = f"Validation {metric} by round"
    best = {
        label: max((value for value in values if value is not None), default=None)
        for label, values in curves.items()
    }
    top = max(best, key=lambda label: best[label] or 0.0)
    lead = f"The highest is {top}'s {words.score(best[top])}, over all clients' validation users"
    lead += f"; the mean of {len(view.seeds)} seeds." if len(view.seeds) > 1 else "."
    flat = [row.label for row in view.scored if row.course is not None and all(row.course.flat)]
    rising = len(curves) - len(flat)
    if rising:
        lead += (
            f" {words.several(rising, 'row')} of {len(curves)} still rose by more than 1 % in the "
            "last two rounds: with more rounds their order might be another."
        )
    numbers = [
        [
            label,
            *(words.score(value) for value in values),
            *[words.NOTHING] * (rounds - len(values)),
        ]
        for label, values in curves.items()
    ]
    columns = ["strategy", *(f"round {number}" for number in range(1, rounds + 1))]
    return Figure(
        title,
        lead,
        beside(f"{view.prefix}curve", title, frame, curves, view.file.reference),
        [Table(f"{title}, in numbers", columns, numbers, folded=True)],
        legend(list(curves), view.file.reference),
        layout="small" if small else "panels",
    )
