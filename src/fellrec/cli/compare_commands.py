"""The command that compares strategies."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from fellrec import console as show
from fellrec.cli.shared import AsJson, ResultsFolder, print_json, quiet, resumable, waiting


def compare(
    comparison: Annotated[
        str,
        typer.Argument(
            metavar="COMPARISON", help="A shipped comparison, such as compare-ml100k, or a file."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Where the tables go. Default: RUNS/NAME."),
    ] = None,
    jobs: Annotated[
        int, typer.Option("--jobs", min=1, help="Cells at a time; cores are divided among them.")
    ] = 1,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="LABEL", help="Make only these rows. Repeatable."),
    ] = None,
    retry: Annotated[
        bool, typer.Option("--retry", help="Try cells that failed by this code once more.")
    ] = False,
    keep_old: Annotated[
        bool,
        typer.Option("--keep-old", help="Leave results alone that earlier code has made."),
    ] = False,
    as_they_are: Annotated[
        bool, typer.Option("--as-they-are", help="Make nothing; show what there is.")
    ] = False,
    examples: Annotated[
        int,
        typer.Option(
            "--examples",
            min=0,
            help="Users of each client on the page, as far as runs are there; 0 for none.",
        ),
    ] = 2,
    folder: ResultsFolder = Path("results"),
    runs: Annotated[
        Path, typer.Option("--runs", metavar="DIR", help="Folder where runs are made.")
    ] = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Run a grid of strategies, seeds and settings, and compare them on the same users.

    Each cell is an ordinary run, kept small in the folder of results as it ends; what stands there
    unchanged is not run again. Tables and pictures go to comparison.html, figures to
    comparison.csv. The page shows histories of users, unless --examples is 0: keep it where these
    may be.
    """
    console = show.make_console(stderr=as_json)
    with waiting(console, "starting"):
        from fellrec.comparison import running, terminal, writing
        from fellrec.comparison.plan import Comparison
        from fellrec.comparison.table import compare as work_out
        from fellrec.report import write_comparison

        quiet()
        read = Comparison.read(comparison)
        place = running.Place(folder, runs)
        found = running.outcomes(read, folder)
    target = out if out is not None else runs / read.file.name
    labels = tuple(only or ())
    todo = running.lacking(found, retry=retry, keep_old=keep_old, only=labels)
    if not as_they_are:
        again = ["fellrec", "compare", comparison, "--runs", str(runs), "--results", str(folder)]
        again += ["--jobs", str(jobs), *(word for label in labels for word in ("--only", label))]
        again += ["--keep-old"] if keep_old else []
        with (
            resumable(runs / read.file.name / "comparison.toml", shlex.join(again)),
            terminal.watching(console, len(todo)) as told,
        ):
            found = running.run(read, place, todo, jobs=jobs, told=told)
    with waiting(console, "drawing users"):
        compared = work_out(read, found)
        writing.write(compared, read, target)
    with waiting(console, "writing the page"):
        write_comparison(compared, target / "comparison.html", runs=runs, examples=examples)
    if as_json:
        print_json(writing.as_rows(compared))
        return
    for table in terminal.tables(compared, console.width):
        console.print()
        console.print(table)
    console.print()
    for line in terminal.remarks(compared):
        console.print(show.plain(line), soft_wrap=True)
    console.print(f"tables in {target}", soft_wrap=True)
