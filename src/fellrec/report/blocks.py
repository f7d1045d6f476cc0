"""What a page is made of: texts, figures, tables, tiles. Each names the template that shows it.

Texts are plain and escaped by the templates; only charts and legends come as markup, from
`fellrec.report.charts`, and figures in tables that have an interval below them, from `ranged`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from markupsafe import Markup, escape


@dataclass(frozen=True)
class Block:
    """A part of a section. template: the file that shows it."""

    template: ClassVar[str]


@dataclass(frozen=True)
class Text(Block):
    """Paragraphs."""

    paragraphs: Sequence[str]
    template: ClassVar[str] = "text"


@dataclass(frozen=True)
class Table(Block):
    """caption: what it shows. columns: the first names the rows, the others are numbers.

    rows: cells as text, one for each column. words: columns that hold words, by their index.
    folded: shown only when opened. strong: how many of the first rows sum up the others.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: Sequence[int] = ()
    folded: bool = False
    strong: int = 0
    template: ClassVar[str] = "table"


@dataclass(frozen=True)
class Figure(Block):
    """Charts under one heading, with their legend and their numbers.

    lead: what is to be seen. tables: all numbers that the charts show. layout: "panels" side by
    side, "small" ones by the dozen, or "full": as wide as the page. narrow: what stands in the
    place of `charts` on a narrow screen. badge: a warning beside the heading, in a few words.
    """

    heading: str
    lead: str
    charts: Sequence[Markup]
    tables: Sequence[Table]
    legend: Markup = field(default_factory=Markup)
    layout: str = "panels"
    narrow: Sequence[Markup] = ()
    badge: str = ""
    template: ClassVar[str] = "figure"


@dataclass(frozen=True)
class Tile:
    """A figure to remember. value: large. label: above. note: below."""

    label: str
    value: str
    note: str


@dataclass(frozen=True)
class Tiles(Block):
    """A row of tiles."""

    tiles: Sequence[Tile]
    template: ClassVar[str] = "tiles"


@dataclass(frozen=True)
class Listing(Block):
    """A text file, shown when opened. label: what it is."""

    label: str
    content: str
    template: ClassVar[str] = "listing"


@dataclass(frozen=True)
class Folded(Block):
    """Other blocks, shown when opened. label: what they are."""

    label: str
    blocks: Sequence[Block]
    template: ClassVar[str] = "folded"


@dataclass(frozen=True)
class Entry:
    """A line of a list. mark: what is special about it, in a word or two."""

    title: str
    mark: str = ""


@dataclass(frozen=True)
class Person:
    """A user. before: what was taken, oldest first. offered: the recommendations, best first.

    after: what the user took next, each with its place in the ranking.
    """

    name: str
    client: str
    before: Sequence[str]
    offered: Sequence[Entry]
    after: Sequence[Entry]


@dataclass(frozen=True)
class People(Block):
    """Users side by side."""

    people: Sequence[Person]
    template: ClassVar[str] = "people"


@dataclass(frozen=True)
class Offer:
    """What one of several recommends. place: of what the user took next, in a few words."""

    label: str
    entries: Sequence[Entry]
    place: str


@dataclass(frozen=True)
class Case:
    """A user whom several serve. before: what was taken, oldest first. after: what came next."""

    name: str
    client: str
    before: Sequence[str]
    after: Sequence[str]
    offers: Sequence[Offer]


@dataclass(frozen=True)
class Cases(Block):
    """Users one below the other, for each the recommendations side by side."""

    cases: Sequence[Case]
    template: ClassVar[str] = "cases"


@dataclass(frozen=True)
class Section:
    """name: of the place on the page, letters and hyphens. heading: as in the contents."""

    name: str
    heading: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """title: the one main heading. kicker: above it, in a few words. lead: what it all came to.

    summary: right below the lead, before the contents and the sections. colophon: at the foot.
    """

    title: str
    kicker: str
    lead: Sequence[str]
    summary: Sequence[Block]
    sections: Sequence[Section]
    colophon: str


def ranged(value: str, below: str, *, strong: bool = False) -> Markup:
    """Write a table's cell: a figure and, smaller below it, its interval or a remark."""
    shown = Markup("<strong>{}</strong>").format(value) if strong else escape(value)
    return shown + Markup(' <span class="range">{}</span>').format(below) if below else shown
