"""The page of one finished run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fellrec import __version__
from fellrec.report import frame
from fellrec.report.blocks import Listing, Page, Section
from fellrec.report.reading import FinishedRun, read_run
from fellrec.report.sections import balance, cost, examples, headline, learning, mixing, privacy
from fellrec.report.sections.balance import Reference

EXAMPLES = 2
"""Users of each client that are shown unless asked otherwise."""


def write_report(
    run: Path,
    out: Path | None = None,
    *,
    references: Sequence[Reference] = (),
    examples: int = EXAMPLES,
) -> Path:
    """Write a finished run's page, and return where: `out`, or report.html in the run's folder.

    references: other runs' scores of the same clients, shown beside this one's. examples: users of
    each client whose recommendations are shown; 0 leaves data and model alone.

    Raises RunError when the folder is no finished run, a file in it is damaged, or the page can't
    be written.
    """
    run = Path(run)
    page = run_page(read_run(run), references=references, examples=examples)
    return frame.write(page, run / "report.html" if out is None else Path(out))


def run_page(
    run: FinishedRun, *, references: Sequence[Reference] = (), examples: int = EXAMPLES
) -> Page:
    """Put the page together; see `write_report`."""
    return Page(
        title=f"Run {run.config.name}",
        kicker=headline.kicker(run),
        lead=headline.lead(run),
        summary=[headline.tiles(run)],
        sections=_sections(run, references, examples),
        colophon=(
            f"Written by fellrec report {__version__} from the run's folder. Intervals are "
            "percentiles of 2,000 bootstrap samples of the users: they say what other users would "
            "have changed, not what another seed would."
        ),
    )


def _sections(run: FinishedRun, references: Sequence[Reference], people: int) -> list[Section]:
    found = [
        balance.section(run, references),
        learning.section(run),
        mixing.section(run),
        cost.section(run),
    ]
    promised = run.summary.get("privacy", {})
    if run.audit is not None or promised:
        found.append(privacy.section(run.audit, promised))
    if people:
        found.append(examples.section(run, people))
    recipe = Listing("All settings, resolved (TOML)", run.config.to_toml())
    return [*found, Section("recipe", "The recipe", [recipe])]
