"""A grid of numbers as a heat map, with the numbers in the cells where there is room."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from fellrec.report.charts.scale import shorten, text_width
from fellrec.report.charts.svg import Words, chart, element, number, text

LEVELS = 8
"""Shades, lightest first; the style sheet has a colour for each."""

_SIZE, _LOWEST, _LOW, _HIGHEST = 12.0, 6.0, 18.0, 30.0
_DEEP = 5  # from this shade on numbers are in the other ink
_MANY = 12  # more rows than these are low
_WIDEST, _NARROWEST = 76.0, 300.0  # a cell; a map, so that few columns are not blown up


@dataclass(frozen=True)
class Grid:
    """rows, columns: labels. values: by row, None for a cell that is left open.

    decimals: of the numbers in the cells.
    """

    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float | None]]
    decimals: int = 2


@dataclass(frozen=True)
class Shade:
    """The values that the lightest and the darkest shade stand for."""

    low: float
    high: float

    def level(self, value: float) -> int:
        """Return the shade of a value; what lies outside gets the nearest."""
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return min(LEVELS - 1, max(0, int(share * LEVELS)))


def heat_map(words: Words, grid: Grid, shade: Shade, *, width: float, label: str = "") -> Markup:
    """Draw the grid. label: above it."""
    names = [each if each else " " for each in grid.rows]
    left = min(max(text_width(each, _SIZE) for each in names), 0.3 * width) + 8
    head = 20.0 if label else 0.0
    cell = min((width - left - 2) / max(1, len(grid.columns)), _WIDEST)
    width = max(left + cell * len(grid.columns) + 2, min(width, _NARROWEST))
    height = min(_HIGHEST if len(names) <= _MANY else _LOW, max(_LOWEST, cell * 0.72))
    top = head + 20
    parts = [text(0, 13, shorten(label, width, 13), class_="label")] if label else []
    parts += _column_labels(grid.columns, left, cell, head + 13)
    step = max(1, math.ceil(15 / height))
    for index in range(0, len(names), step):
        middle = top + (index + 0.5) * height + 4
        shown = shorten(names[index], left - 8, _SIZE)
        parts.append(text(left - 6, middle, shown, anchor="end", class_="name"))
    parts += _cells(grid, shade, left, top, cell, height)
    return chart(words, width, top + len(names) * height + 2, parts)


def heat_legend(shade: Shade, words: str, *, decimals: int = 2) -> Markup:
    """Show the shades from the lowest value to the highest."""
    swatches = Markup("").join(
        element("span", "", class_=f"swatch h{level}") for level in range(LEVELS)
    )
    return element(
        "p",
        element("span", f"{words} "),
        element("span", f"{shade.low:.{decimals}f}", class_="number"),
        element("span", swatches, class_="ramp", aria_hidden="true"),
        element("span", f"{shade.high:.{decimals}f}", class_="number"),
        class_="legend",
    )


def _column_labels(columns: Sequence[str], left: float, cell: float, y: float) -> list[Markup]:
    """Label every column, or as many as have room; names too long for that become numbers."""
    widest = max((text_width(each, _SIZE) for each in columns), default=0.0)
    if widest + 4 > cell and widest > 40:
        columns = [str(index) for index in range(1, len(columns) + 1)]
        widest = text_width(columns[-1], _SIZE)
    step = max(1, math.ceil((widest + 4) / cell))
    return [
        text(left + (index + 0.5) * cell, y, columns[index], anchor="middle", class_="tick")
        for index in range(0, len(columns), step)
        if left + (index + 0.5) * cell + widest / 2 <= left + len(columns) * cell + 2
    ]


def _cells(
    grid: Grid, shade: Shade, left: float, top: float, cell: float, height: float
) -> list[Markup]:
    """Draw all cells of a shade as one path: a grid of thousands stays small."""
    gap = 1.0 if cell > 12 else 0.3
    squares: dict[str, list[str]] = {}
    numbers = []
    room = cell >= text_width(f"{shade.high:.{grid.decimals}f}", 11) + 2 and height >= 14
    for row, values in enumerate(grid.values):
        for column, value in enumerate(values):
            x, y = left + column * cell, top + row * height
            level = "open" if value is None else f"h{shade.level(value)}"
            squares.setdefault(level, []).append(
                f"M{number(x)} {number(y)}h{number(cell - gap)}v{number(height - gap)}"
                f"h{number(gap - cell)}z"
            )
            if room:
                words, kind = _number(value, shade, grid.decimals)
                middle = x + cell / 2, y + height / 2 + 4
                numbers.append(text(*middle, words, anchor="middle", class_=kind))
    drawn = [element("path", d="".join(d), class_=level) for level, d in sorted(squares.items())]
    return drawn + numbers


def _number(value: float | None, shade: Shade, decimals: int) -> tuple[str, str]:
    """Return what a cell says, and its class."""
    if value is None:
        return "–", "cell none"
    return f"{value:.{decimals}f}", "cell high" if shade.level(value) >= _DEEP else "cell"
