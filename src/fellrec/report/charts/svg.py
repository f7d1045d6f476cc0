"""SVG elements as escaped markup, and the frame that every chart has."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from markupsafe import Markup, escape


@dataclass(frozen=True)
class Words:
    """What a chart says to those who do not see it.

    name: of letters, digits and hyphens, no other chart's on the page. title: what is shown.
    description: the main point, in a sentence.
    """

    name: str
    title: str
    description: str


def element(tag: str, *children: str | Markup, **attributes: object) -> Markup:
    """Return an element; children and values that are no markup are escaped.

    Underscores in attribute names become hyphens, a last one is dropped (`class_`); None is left
    out.
    """
    given = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(number(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    inner = "".join(escape(child) for child in children)
    return Markup(f"<{tag}{given}>{inner}</{tag}>" if children else f"<{tag}{given}/>")


def number(value: object) -> str:
    """Write a coordinate with at most two decimals, anything else as it is."""
    if isinstance(value, float):
        return f"{round(value, 2) + 0.0:.2f}".rstrip("0").rstrip(".")
    return str(value)


def text(x: float, y: float, words: str, *, anchor: str = "start", class_: str = "") -> Markup:
    """Write words; anchor: which end of them lies at x."""
    return element(
        "text",
        words,
        x=x,
        y=y,
        text_anchor=None if anchor == "start" else anchor,
        class_=class_ or None,
    )


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """Draw a straight line."""
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def path(points: Iterable[tuple[float, float]], class_: str) -> Markup:
    """Draw a line through points."""
    steps = " ".join(f"{number(float(x))},{number(float(y))}" for x, y in points)
    return element("polyline", points=steps, class_=class_)


def chart(words: Words, width: float, height: float, parts: Iterable[Markup]) -> Markup:
    """Frame a chart of this size in pixels; it shrinks and grows with its place on the page."""
    heading = element("title", words.title, id=f"{words.name}-title")
    told = element("desc", words.description, id=f"{words.name}-desc")
    return element(
        "svg",
        heading,
        told,
        *parts,
        viewBox=f"0 0 {number(float(width))} {number(float(height))}",
        role="img",
        aria_labelledby=f"{words.name}-title",
        aria_describedby=f"{words.name}-desc",
        style=f"max-width:{number(1.2 * width)}px",
    )


def sample(*parts: Markup) -> Markup:
    """Draw a sample of a line, a marker or a pattern for a legend: 28 by 12 pixels, unnamed."""
    return element(
        "svg", *parts, viewBox="0 0 28 12", width=28, height=12, class_="sample", aria_hidden="true"
    )


def legend(entries: Iterable[tuple[Markup, str]]) -> Markup:
    """Write a legend: samples, each with its words."""
    items = (element("li", drawn, element("span", words)) for drawn, words in entries)
    return element("ul", *items, class_="legend")
