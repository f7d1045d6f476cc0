"""The page of a comparison of many runs."""

from __future__ import annotations

from pathlib import Path

from fellrec import __version__
from fellrec.comparison.rows import Compared
from fellrec.report import frame
from fellrec.report.blocks import Block, Folded, Page, Section, Text
from fellrec.report.sections.compared import (
    axes,
    clients,
    costs,
    curves,
    headline,
    mixed,
    people,
    recipe,
    scores,
)
from fellrec.report.sections.compared.view import View

EXAMPLES = 2
"""Users of each client that are shown unless asked otherwise."""


def write_comparison(
    compared: Compared, out: Path, *, runs: Path | None = None, examples: int = EXAMPLES
) -> Path:
    """Write a comparison's page, and return where.

    runs: the folder of the cells' run directories, for users and what each row recommends to them;
    where they are gone the page says so. examples: users of each client, at most six in all, of the
    first seed; each row that serves them costs the seconds in which its data and weights are
    loaded. 0 leaves data and models alone.

    Raises ConfigError for a recipe that can't be resolved any more, RunError when the page can't be
    written.
    """
    page = comparison_page(compared, runs=runs, examples=examples)
    return frame.write(page, Path(out))


def comparison_page(
    compared: Compared, *, runs: Path | None = None, examples: int = EXAMPLES
) -> Page:
    """Put the page together; see `write_comparison`."""
    file = compared.file
    if len(compared.tables) == 1:
        view = View(file, compared.tables[0])
        said, tiles = headline.lead(view), [headline.tiles(view)]
        sections = _sections(view, runs, examples)
    else:
        views = [
            View(file, table, f"t{place}-") for place, table in enumerate(compared.tables, start=1)
        ]
        said, tiles = headline.over_axes(views), []
        sections = [Section("overview", "What the settings change", axes.blocks(compared))]
        for place, view in enumerate(views, start=1):
            shown = examples if place == 1 else 0
            sections.append(_together(f"table-{place}", view, runs, shown))
    about = [file.about.strip()] if file.about else []
    return Page(
        title=file.title,
        kicker=headline.kicker(compared),
        lead=[*about, *said],
        summary=[block for block in tiles if block.tiles],
        sections=[*sections, Section("recipe", "The recipe", recipe.blocks(compared))],
        colophon=(
            f"Written by fellrec {__version__}. Intervals come from 2,000 bootstrap samples of the "
            "users, the same for all rows and seeds, so that differences are paired: they say what "
            "other users would have changed, not what another seed would. They are percentiles, "
            "but for worst clients, their differences and least gains, where the ends hold "
            "whichever client it is. Differences of scores are judged together with their column; "
            "shares, least gains and differences of worst clients row by row."
        ),
    )


def _sections(view: View, runs: Path | None, examples: int) -> list[Section]:
    found = [
        Section("scores", "How good each strategy is", scores.blocks(view)),
        Section("clients", "How well each client is served", clients.blocks(view)),
        Section("learning", "How they learned", curves.blocks(view)),
        Section("mixing", "What clients took from each other", mixed.blocks(view)),
        Section("cost", "What it took", costs.blocks(view)),
    ]
    if examples:
        blocks = people.blocks(view, runs, examples)
        found.append(Section("examples", "Real recommendations", blocks))
    return found


def _together(name: str, view: View, runs: Path | None, examples: int) -> Section:
    """Put all about one table of several into a single section, most of it folded."""
    first, *others = _sections(view, runs, examples)
    blocks: list[Block] = [Text(headline.lead(view)), *first.blocks]
    blocks += [Folded(each.heading, each.blocks) for each in others]
    return Section(name, view.where, blocks)
