"""Commands for results: add, table, run, vouch."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from fellrec import console as show
from fellrec.cli.shared import ResultsFolder, RunPath, quiet, resumable, waiting

results = typer.Typer(no_args_is_help=True, help="Keep finished runs as results; compare them.")


@results.command("add")
def add(
    run: RunPath,
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="Name of the result. Default: the run's."),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Put it in the place of a result of that name.")
    ] = False,
    folder: ResultsFolder = Path("results"),
) -> None:
    """Keep a finished run as a result: its recipe, summary and per-user scores, without ids.

    Popularity on the same data is kept beside it.
    """
    console = show.make_console()
    with waiting(console, "starting") as say:
        from fellrec.results.keeping import keep

        quiet()
        kept = keep(run, folder, name, replace=replace, progress=say)
    console.print(f"kept {folder / kept.cell.name}, beside {kept.baseline.name}", soft_wrap=True)


@results.command("table")
def table(
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="File to write. Default: standard output."),
    ] = None,
    folder: ResultsFolder = Path("results"),
) -> None:
    """Write the page that compares all kept results, in Markdown."""
    console = show.make_console(stderr=out is None)
    with waiting(console, "drawing users"):
        from fellrec.comparison.writing import parts_of_page
        from fellrec.results.cells import read_all
        from fellrec.results.tables import write_page

        text = write_page(read_all(folder), out, parts_of_page(folder))
    if out is None:
        typer.echo(text, nl=False)
    else:
        console.print(f"wrote {out}", soft_wrap=True)


@results.command("run")
def run_(
    names: Annotated[
        list[str], typer.Argument(metavar="RECIPE...", help="Shipped recipes or TOML files.")
    ],
    runs: Annotated[
        Path, typer.Option("--runs", metavar="DIR", help="Folder where runs are made.")
    ] = Path("runs"),
    folder: ResultsFolder = Path("results"),
) -> None:
    """Train recipes, and score their bases untrained, where no result stands yet.

    A run that was interrupted goes on. What recipe, code and data have not changed is left alone.
    """
    console = show.make_console()
    with waiting(console, "starting"):
        from fellrec.config import RunConfig
        from fellrec.federation.runs import train as train_run
        from fellrec.progress import watch
        from fellrec.results.keeping import keep
        from fellrec.results.plan import standing, untrained

        quiet()
    command = ["fellrec", "results", "run", *names]
    given = [RunConfig.from_toml(name) for name in names]
    for config in (each for recipe in given for each in (untrained(recipe), recipe)):
        path = runs / config.name
        found = standing(config, folder, runs)
        if found == "kept":
            console.print(f"{folder / config.name} stands", soft_wrap=True)
            continue
        if found != "finished":
            again = shlex.join([*command, "--runs", str(runs), "--results", str(folder)])
            with (
                resumable(path / "config.toml", again) as interrupts,
                watch(console, config.evaluation.metric, interrupts) as observer,
            ):
                train_run(config, path, resume=found == "begun", observer=observer)
        keep(path, folder, replace=True)
        console.print(f"kept {folder / config.name}", soft_wrap=True)


@results.command("vouch")
def vouch(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="CELL...", help="Kept cells of earlier code: names, or paths of their folders."
        ),
    ],
    runs: Annotated[
        Path, typer.Option("--runs", metavar="DIR", help="Folder where runs are made.")
    ] = Path("runs"),
    folder: ResultsFolder = Path("results"),
) -> None:
    """Show that today's code gives what earlier code gave: make these cells anew, and compare.

    If every score, round and figure is the same to the last bit, results/same.json says so, and all
    cells of that code stand again. If not, the first difference is named.

    It shows nothing of code that these cells do not run, so name cells of several kinds:
    fellrec results vouch fellrec-s0-cef7acd8f7d0 local-s0-88369414a3a3
    """
    console = show.make_console()
    with waiting(console, "starting"):
        from fellrec.progress import watch
        from fellrec.results import vouching
        from fellrec.results.vouched import SAME

        quiet()
        found = vouching.claims(names, folder)
    again = ["fellrec", "results", "vouch", *names, "--runs", str(runs), "--results", str(folder)]
    for claim in found:
        path, metric = claim.run(runs), claim.config.evaluation.metric
        with (
            resumable(path / "config.toml", shlex.join(again)) as interrupts,
            watch(console, metric, interrupts) as observer,
        ):
            vouching.show(claim, runs, observer)
        console.print(f"{claim.cell.name} comes out the same", soft_wrap=True)
    vouching.vouch(found, folder)
    console.print(f"wrote {folder / SAME}", soft_wrap=True)
