"""The command line: each command parses, calls the library and prints.

Whatever is heavy is imported inside a command, so that ``fellrec --help`` answers at once. All that
the library raises on purpose becomes one line on standard error and the exit code 2; a traceback
means a bug. With ``--json`` standard output carries the result and nothing else.
"""

from __future__ import annotations

import errno
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from fellrec import __version__
from fellrec import console as show
from fellrec.cli import (
    audit_commands,
    compare_commands,
    deploy_commands,
    plan_commands,
    report_commands,
    run_commands,
)
from fellrec.cli.data_commands import data
from fellrec.cli.result_commands import results
from fellrec.errors import FellrecError, RunError

REFUSED = 2


class CommandLine(TyperGroup):
    """Turns the library's errors into one line each."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        told: FellrecError
        try:
            return super().invoke(ctx)
        except FellrecError as error:
            told = error
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            # Any path may be the first that the system refuses to look for, in any command.
            told = RunError(f"{error.filename}: the name is too long; choose a shorter one")
        typer.echo(f"error: {show.plain(told)}", err=True)
        raise typer.Exit(REFUSED) from told


app = typer.Typer(
    cls=CommandLine,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="markdown",
)
for command in (
    run_commands.train,
    run_commands.evaluate,
    run_commands.recommend,
    run_commands.export,
    compare_commands.compare,
    report_commands.report,
    audit_commands.audit,
    plan_commands.plan,
    deploy_commands.rehearse,
    deploy_commands.trunk,
    deploy_commands.certificates,
    run_commands.recipes,
):
    app.command()(command)
app.add_typer(data, name="data")
app.add_typer(results, name="results")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fellrec {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Train one language model as a recommender for many parties, none of which shows its data.

    Clients keep their histories and the first and last blocks of the model; a server runs the
    blocks between. Start with: fellrec train smoke
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a title the terminal can't show must not end a run
            stream.reconfigure(errors="replace")
