"""Values with their intervals, a row each: who has how much, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from markupsafe import Markup

from fellrec.report.charts.scale import Scale, extent, shorten, text_width, tick_labels, ticks
from fellrec.report.charts.svg import Words, chart, element, legend, line, number, sample, text

_SIZE, _STEP, _PAD = 12.0, 15.0, 11.0
_OVER, _UNDER = 16.0, 8.0  # of a stacked row: its label, and the space below its marks
SHAPES = ("disc", "diamond", "square", "triangle")
"""The markers of the first series, the second, …; also their classes of colour."""


@dataclass(frozen=True)
class Mark:
    """A value, with the ends of its interval where they are known. series: index into `SHAPES`."""

    value: float
    low: float | None = None
    high: float | None = None
    series: int = 0


@dataclass(frozen=True)
class Row:
    """label: at the left. note: at the right. marks: one under the other, at most one a series.

    strong: a row that sums up the others.
    """

    label: str
    note: str
    marks: Sequence[Mark]
    strong: bool = False


def interval_chart(
    words: Words,
    rows: Sequence[Row],
    *,
    width: float,
    zero: bool = True,
    reference: float | None = None,
    second: float | None = None,
    span: Sequence[float] = (),
    label: str = "",
    stacked: bool = False,
) -> Markup:
    """Draw the rows on one scale.

    zero: it begins at 0. reference, second: values to draw a dashed and a dotted line at. span:
    values that the scale must reach as well, for charts side by side. label: above the chart.
    stacked: rows' labels and notes may stand above their marks, where these would otherwise have
    less than half of the width.
    """
    named = max((text_width(row.label, _SIZE) for row in rows), default=0.0)
    note_width = max((text_width(row.note, _SIZE) for row in rows), default=0.0)
    label_width = min(named, 0.28 * width)
    stacked = stacked and named + note_width + 28 > width / 2
    left, right = (6.0, width - 6) if stacked else (label_width + 14, width - note_width - 14)
    ends = [end for row in rows for mark in row.marks for end in (mark.low, mark.value, mark.high)]
    every = [*ends, reference, second, *span, *([0.0] if zero else [])]
    low, high = extent(every) or (0.0, 1.0)
    marks = ticks(low, high, max(3, min(7, int((right - left) / 40))))
    x = Scale(marks[0], marks[-1], left, right)
    over = _OVER if stacked else 0.0
    pad = _UNDER if stacked else _PAD
    heights = [over + max(1, len(row.marks)) * _STEP + pad for row in rows]
    above = 20.0 if label else 0.0
    bottom = above + 6 + sum(heights)
    parts = [text(0, 12, shorten(label, width, 13), class_="label")] if label else []
    tops = list(accumulate(heights, initial=above + 6))[:-1]
    zones = [(above + 4, bottom)]
    if stacked:
        zones = [(a + over, a + b - pad + 2) for a, b in zip(tops, heights, strict=True)]
    parts += [_upright(x(tick), zones, "grid") for tick in marks]
    parts += _axis(marks, x, bottom, width)
    for value, kind in ((reference, "reference"), (second, "reference dotted")):
        if value is not None:
            parts.append(_upright(x(value), zones, kind))
    for row, top, height in zip(rows, tops, heights, strict=True):
        middle = top + over + (height - over - (pad if stacked else 0)) / 2
        foot = top + over - 3 if stacked else middle + 4
        kind = "label" if row.strong else "name"
        room = width - text_width(row.note, 13) - 8 if stacked else label_width
        shown = shorten(row.label, room, 13 if stacked else _SIZE)
        parts.append(text(0, foot, shown, class_=kind))
        parts.append(text(width, foot, row.note, anchor="end", class_=kind))
        for place, mark in enumerate(row.marks):
            parts += _mark(mark, x, middle + (place - (len(row.marks) - 1) / 2) * _STEP)
    return chart(words, width, bottom + 22, parts)


def interval_legend(
    series: Sequence[str], *, reference: str = "", second: str = "", sure: bool = True
) -> Markup:
    """Explain the markers, and the lines if there are any. sure: they have intervals."""
    scale = Scale(0.0, 1.0, 2.0, 26.0)
    shown_as = Mark(0.5, 0.0, 1.0) if sure else Mark(0.5)
    shown = [
        (sample(*_mark(replace(shown_as, series=index), scale, 6.0)), words)
        for index, words in enumerate(series)
    ]
    for words, kind in ((reference, "reference"), (second, "reference dotted")):
        if words:
            shown.append((sample(line(14, 0, 14, 12, kind)), words))
    return legend(shown)


def _upright(x: float, zones: Sequence[tuple[float, float]], class_: str) -> Markup:
    """Draw a line from top to bottom, or a piece of it in each of several zones."""
    if len(zones) == 1:
        return line(x, zones[0][0], x, zones[0][1], class_)
    pieces = "".join(f"M{number(x)} {number(a)}V{number(b)}" for a, b in zones)
    return element("path", d=pieces, class_=class_)


def _axis(marks: Sequence[float], x: Scale, bottom: float, width: float) -> list[Markup]:
    """Label as many ticks as fit beside each other."""
    labels, free = tick_labels(marks), -1.0
    parts: list[Markup] = []
    for mark, label in zip(marks, labels, strict=True):
        half = text_width(label, _SIZE) / 2
        place = min(max(x(mark), half), width - half)
        if place - half > free:
            parts.append(text(place, bottom + 16, label, anchor="middle", class_="tick"))
            free = place + half + 6
    return parts


def _mark(mark: Mark, x: Scale, y: float) -> list[Markup]:
    index = mark.series % len(SHAPES)
    parts = []
    if mark.low is not None and mark.high is not None:
        parts.append(line(x(mark.low), y, x(mark.high), y, f"whisker s{index}"))
    parts.append(_shape(SHAPES[index], x(mark.value), y, f"mark s{index}"))
    return parts


def _shape(shape: str, x: float, y: float, class_: str) -> Markup:
    if shape == "disc":
        return element("circle", cx=x, cy=y, r=4.6, class_=class_)
    outlines: dict[str, list[tuple[float, float]]] = {
        "diamond": [(0, -5.6), (5.6, 0), (0, 5.6), (-5.6, 0)],
        "square": [(-4.2, -4.2), (4.2, -4.2), (4.2, 4.2), (-4.2, 4.2)],
        "triangle": [(0, -5), (5, 4), (-5, 4)],
    }
    points = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in outlines[shape])
    return element("polygon", points=points, class_=class_)
