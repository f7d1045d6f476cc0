"""Lines over rounds, or other steps: one panel, made to stand beside others on the same scales."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from fellrec.report.charts.scale import (
    Scale,
    extent,
    shorten,
    text_width,
    tick_labels,
    ticks,
    whole_ticks,
)
from fellrec.report.charts.svg import Words, chart, element, legend, line, path, sample, text

STYLES = ("main", "second", "context")
"""main: a solid line with discs; second: dashed, with rings; context: thin, without markers."""

_SIZE, _RADIUS = 12.0, 3.2


@dataclass(frozen=True)
class Line:
    """One series. points: (round, value), None where there is no value. style: of `STYLES`."""

    points: Sequence[tuple[int, float | None]]
    style: str = "main"


@dataclass(frozen=True)
class LineFrame:
    """What panels side by side share.

    width, height: pixels. rounds: first and last. ticks: of the y axis, ascending, at least two.
    places: what stands below the axis in the place of rounds, a label for each from the first on.
    """

    width: float
    height: float
    rounds: tuple[int, int]
    ticks: tuple[float, ...]
    places: tuple[str, ...] = ()

    @classmethod
    def around(
        cls,
        values: Iterable[float | None],
        rounds: tuple[int, int],
        *,
        small: bool = False,
        places: Sequence[str] = (),
    ) -> LineFrame:
        """Fit the axes to all values that will be shown; small: for dozens of panels."""
        low, high = extent(values) or (0.0, 1.0)
        marks = ticks(low, high, 3 if small else 5)
        width, height = (164.0, 104.0) if small else (300.0, 184.0)
        shown = tuple((marks[0], marks[-1]) if small else marks)
        return cls(width, height, rounds, shown, tuple(places))


def line_chart(
    words: Words,
    frame: LineFrame,
    lines: Sequence[Line],
    *,
    label: str,
    note: str = "",
    best: int | None = None,
    gone: Sequence[int] = (),
) -> Markup:
    """Draw one panel.

    label, note: above it, left and right. best: the round to ring on the main line. gone: rounds
    that have no value because something failed; a cross stands at the foot of each.
    """
    labels = tick_labels(frame.ticks)
    left = max(text_width(each, _SIZE) for each in labels) + 8
    right, top, bottom = frame.width - 10, 28.0, frame.height - 22
    x = Scale(frame.rounds[0], frame.rounds[1], left + 8, right)
    y = Scale(frame.ticks[0], frame.ticks[-1], bottom - 4, top)
    parts = [line(left, y(tick), right + 6, y(tick), "grid") for tick in frame.ticks]
    parts += [
        text(left - 5, y(tick) + 4, words_, anchor="end", class_="tick")
        for tick, words_ in zip(frame.ticks, labels, strict=True)
    ]
    parts += _places(frame, x, bottom) if frame.places else _rounds(frame, x, bottom)
    for each in sorted(lines, key=lambda one: -STYLES.index(one.style)):
        parts += _drawn(each, x, y, dots=frame.width > 200)
    parts += [_cross(x(float(each)), bottom - 8) for each in gone]
    known = {
        number: value for each in lines if each.style == "main" for number, value in each.points
    }
    if best is not None and known.get(best) is not None:
        value = known[best] or 0.0
        parts.append(element("circle", cx=x(best), cy=y(value), r=6.5, class_="ring"))
    note_width = text_width(note, _SIZE) + 8 if note else 0.0
    parts.append(text(0, 12, shorten(label, frame.width - note_width, 13), class_="label"))
    if note:
        parts.append(text(frame.width, 12, note, anchor="end", class_="tick"))
    return chart(words, frame.width, frame.height, parts)


def line_legend(entries: Sequence[tuple[str, str]], *, best: bool = False) -> Markup:
    """Explain the styles in use: (style, words); best: the ring as well."""
    shown = [
        (sample(*_drawn(Line([(0, 0.0), (1, 0.0)], style), *_LEGEND_SCALES, dots=True)), words)
        for style, words in entries
    ]
    if best:
        ring = element("circle", cx=14.0, cy=6.0, r=5.0, class_="ring")
        dot = element("circle", cx=14.0, cy=6.0, r=_RADIUS, class_="dot main")
        shown.append((sample(dot, ring), "best round"))
    return legend(shown)


_LEGEND_SCALES = (Scale(0.0, 1.0, 5.0, 23.0), Scale(0.0, 0.0, 6.0, 6.0))


def _rounds(frame: LineFrame, x: Scale, bottom: float) -> list[Markup]:
    """Label the rounds: the first in words, the others by their numbers."""
    first, last = frame.rounds
    y = bottom + 16
    if first == last:
        return [text(x(first), y, f"round {first}", anchor="middle", class_="tick")]
    named = f"round {first}"
    parts = [text(x.start - 8, y, named, class_="tick")]
    free = x.start - 8 + text_width(named, _SIZE) + 6
    count = 2 if frame.width < 200 else 6
    marks = whole_ticks(first, last, count)
    marks = [first, last] if count == 2 else marks
    for mark in marks[1:]:
        half = text_width(str(mark), _SIZE) / 2
        place = min(x(mark), frame.width - half)
        if place - half >= free:
            parts.append(text(place, y, str(mark), anchor="middle", class_="tick"))
            free = place + half + 6
    return parts


def _places(frame: LineFrame, x: Scale, bottom: float) -> list[Markup]:
    """Label the steps by their own names, as many as have room beside each other."""
    free, parts = -1.0, []
    for number, named in enumerate(frame.places, start=frame.rounds[0]):
        shown = shorten(named, 0.6 * frame.width, _SIZE)
        half = text_width(shown, _SIZE) / 2
        place = min(max(x(number), half), frame.width - half)
        if place - half >= free:
            parts.append(text(place, bottom + 16, shown, anchor="middle", class_="tick"))
            free = place + half + 6
    return parts


def _drawn(each: Line, x: Scale, y: Scale, *, dots: bool) -> list[Markup]:
    """Draw a line, broken where there is no value; a value between two gaps is a dot."""
    runs: list[list[tuple[float, float]]] = [[]]
    for number, value in each.points:
        if value is None:
            runs.append([])
        else:
            runs[-1].append((x(number), y(value)))
    parts = [path(run, f"line {each.style}") for run in runs if len(run) > 1]
    if each.style == "context":
        return parts
    return parts + [
        element("circle", cx=a, cy=b, r=_RADIUS, class_=f"dot {each.style}")
        for run in runs
        for a, b in run
        if dots or len(run) == 1
    ]


def _cross(x: float, y: float) -> Markup:
    d = f"M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8"
    return element("path", d=d, class_="cross")
