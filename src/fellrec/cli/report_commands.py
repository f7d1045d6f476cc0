"""The command that writes a run's page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fellrec import console as show
from fellrec.cli.shared import RunPath, quiet, waiting


def report(
    run: RunPath,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="File to write. Default: RUN/report.html."),
    ] = None,
    examples: Annotated[
        int,
        typer.Option(
            "--examples",
            min=0,
            help="Users of each client whose recommendations are shown; 0 needs no data or model.",
        ),
    ] = 2,
) -> None:
    """Write one HTML page about a finished run: scores, curves, mixing, cost, recommendations.

    The page is one file that needs no network. It shows histories of users: keep it where these
    may be, or leave them out with --examples 0.
    """
    console = show.make_console()
    with waiting(console, "reading the run"):
        from fellrec.report import write_report

        quiet()
        target = write_report(run, out, examples=examples)
    console.print(f"wrote {target}", soft_wrap=True)
