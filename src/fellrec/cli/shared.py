"""What the commands share: arguments, waiting, JSON, the way on after Ctrl-C."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fellrec import console as show
from fellrec.errors import RunError
from fellrec.interrupts import Interrupts, noting

INTERRUPTED = 130  # what shells give a program that Ctrl-C ended


def _there(run: Path) -> Path:
    """Refuse a folder that is not there before anything large is imported."""
    if not run.is_dir():
        raise RunError(f"{run}: no such folder; give the one that a training run left")
    return run


RunPath = Annotated[
    Path,
    typer.Argument(metavar="RUN", help="Folder that `fellrec train` left.", callback=_there),
]
ClientName = Annotated[
    str, typer.Option("--client", metavar="NAME", help="Client whose model is used, such as c0.")
]
Recipe = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE", help="A shipped recipe (see `fellrec recipes`) or a TOML file."
    ),
]
RunFolder = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="Run folder to make. Default: runs/NAME."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change a setting, as in train.rounds=2. Repeatable."
    ),
]
ResultsFolder = Annotated[
    Path, typer.Option("--results", metavar="DIR", help="Folder of kept results.")
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print JSON on standard output, and nothing else there.")
]


def print_json(value: object) -> None:
    """Print a result on standard output."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, default=list))


@contextmanager
def waiting(console: Console, text: str) -> Iterator[Callable[[str], None]]:
    """Show that something goes on, where bars can be drawn; lends a function to change the text."""
    if show.is_live(console):
        with console.status(text) as status:
            yield lambda other: status.update(show.plain(other))
    else:
        yield lambda other: None


def quiet() -> None:
    """Keep other libraries' remarks out of the output; what matters is raised or printed."""
    logging.getLogger("fellrec").setLevel(logging.ERROR)  # a failed source is in the error's line
    logging.getLogger("fellrec.data.atomic").setLevel(logging.WARNING)  # what it leaves out counts
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)


@contextmanager
def resumable(marker: Path, command: str) -> Iterator[Interrupts]:
    """Say after Ctrl-C how an unfinished run goes on; marker: a file that is there once it can.

    A library that is interrupted while it reads may raise something else: of safetensors, torch
    then asks for the shape of a storage, which is a ValueError.
    """
    with noting() as interrupts:
        try:
            yield interrupts
        except BaseException as error:
            if not interrupts.raised and not isinstance(error, KeyboardInterrupt):
                raise
            if marker.is_file():
                typer.echo(f"interrupted; go on with: {command}", err=True)
            else:
                typer.echo("interrupted before anything was learned; nothing is left", err=True)
            raise typer.Exit(INTERRUPTED) from None
