"""The command that writes the page of a run or of a comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fellrec import console as show
from fellrec.cli.shared import ResultsFolder, quiet, waiting
from fellrec.errors import RunError


def report(
    source: Annotated[
        str,
        typer.Argument(
            metavar="RUN_OR_COMPARISON",
            help="Folder that `fellrec train` or `fellrec compare` left, or a comparison's name or "
            "file.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE",
            help="File to write. Default: RUN/report.html, RUNS/COMPARISON/comparison.html.",
        ),
    ] = None,
    examples: Annotated[
        int,
        typer.Option(
            "--examples",
            min=0,
            help="Users of each client whose recommendations are shown; 0 needs no data or model.",
        ),
    ] = 2,
    results: ResultsFolder = Path("results"),
    runs: Annotated[
        Path | None,
        typer.Option(
            "--runs",
            metavar="DIR",
            help="Folder of a comparison's runs. Default: beside its own folder, else runs.",
        ),
    ] = None,
) -> None:
    """Write one HTML page: of a finished run, or of a comparison as far as it has results.

    A run's has scores, curves, mixing, cost, recommendations; a comparison's has all strategies
    beside each other. Either is one file that needs no network. It shows histories of users: keep
    it where these may be, or leave them out with --examples 0.
    """
    console = show.make_console()
    with waiting(console, "reading the results"):
        from fellrec.comparison.plan import comparisons

        quiet()
        path, folder = Path(source), (Path(source) / "comparison.toml").is_file()
        if folder or path.is_file() or (source in comparisons() and not path.is_dir()):
            place = runs or (path.resolve().parent if folder else Path("runs"))
            target = _comparison(source, out, examples, results, place)
        elif not path.exists():
            raise RunError(
                f"{source}: neither a folder of a run nor a comparison; comparisons that come with "
                f"fellrec are {', '.join(comparisons())}"
            )
        else:
            from fellrec.report import write_report

            target = write_report(path, out, examples=examples)
    console.print(f"wrote {target}", soft_wrap=True)


def _comparison(source: str, out: Path | None, examples: int, results: Path, runs: Path) -> Path:
    """Write the page of what a comparison's cells are now."""
    from fellrec.comparison.plan import Comparison
    from fellrec.comparison.running import outcomes
    from fellrec.comparison.table import compare
    from fellrec.report import write_comparison

    path = Path(source)
    read = Comparison.read(path if path.is_dir() else source)
    compared = compare(read, outcomes(read, results))
    folder = path if path.is_dir() else runs / read.file.name
    target = folder / "comparison.html" if out is None else out
    return write_comparison(compared, target, runs=runs, examples=examples)
