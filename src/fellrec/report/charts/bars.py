"""Bars made of parts, a row each: how much of what, and how much in all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from fellrec.report.charts.scale import Scale, shorten, text_width
from fellrec.report.charts.svg import Words, chart, element, legend, sample, text

_SIZE, _STEP, _BAR = 12.0, 24.0, 16.0
PATTERNS = 4
"""Parts that can be told apart: solid, hatched, dotted, outlined."""


@dataclass(frozen=True)
class Bar:
    """label: at the left. note: at the right. parts: one value of each kind, not negative."""

    label: str
    note: str
    parts: Sequence[float]


def bar_chart(
    words: Words,
    bars: Sequence[Bar],
    *,
    width: float,
    largest: float,
    label: str = "",
    names: float = 0.3,
) -> Markup:
    """Draw the bars.

    largest: the sum that fills the width, shared by charts side by side. names: the largest share
    of the width that the bars' labels get.
    """
    widest = max((text_width(bar.label, _SIZE) for bar in bars), default=0.0)
    left = min(widest, names * width) + 8
    right = width - max((text_width(bar.note, _SIZE) for bar in bars), default=0.0) - 8
    scale = Scale(0.0, largest or 1.0, 0.0, max(right - left, 10.0))
    top = 24.0 if label else 2.0
    parts = [_definitions(words.name)]
    if label:
        parts.append(text(0, 12, shorten(label, width, 13), class_="label"))
    for index, bar in enumerate(bars):
        y = top + index * _STEP
        base = y + _BAR / 2 + 4
        parts.append(text(0, base, shorten(bar.label, left - 8, _SIZE), class_="name"))
        x = left
        for kind, value in enumerate(bar.parts):
            length = scale(value)
            if length >= 0.25:
                parts += _filled(x, y, length, _BAR, kind, words.name)
            x += length
        parts.append(text(x + 6, base, bar.note, class_="tick"))
    return chart(words, width, top + len(bars) * _STEP, parts)


def bar_legend(name: str, kinds: Sequence[str]) -> Markup:
    """Explain the parts. name: no chart's, for the patterns."""
    return legend(
        (
            sample(
                _definitions(f"{name}-{kind}"), *_filled(2, 0.5, 24, 11, kind, f"{name}-{kind}")
            ),
            words,
        )
        for kind, words in enumerate(kinds)
    )


def _filled(x: float, y: float, width: float, height: float, kind: int, name: str) -> list[Markup]:
    kind %= PATTERNS
    box = {"x": x, "y": y, "width": width, "height": height}
    parts = [element("rect", class_=f"part k{kind}", **box)]
    if kind in (1, 2):
        parts.append(element("rect", fill=f"url(#{name}-p{kind})", **box))
    return parts


def _definitions(name: str) -> Markup:
    """Define the patterns that lie over a part's colour; each chart has its own."""
    hatch = element("path", d="M-1 1l2 -2M0 6l6 -6M5 7l2 -2", class_="over")
    dot = element("circle", cx=3, cy=3, r=1.2, class_="over")
    size = {"width": 6, "height": 6, "patternUnits": "userSpaceOnUse"}
    return element(
        "defs",
        element("pattern", hatch, id=f"{name}-p1", **size),
        element("pattern", dot, id=f"{name}-p2", **size),
    )
