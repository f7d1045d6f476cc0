"""The command line: each command parses, calls the library and prints.

Whatever is heavy is imported inside a command, so that ``fellrec --help`` answers at once. All that
the library raises on purpose becomes one line on standard error and the exit code 2; a traceback
means a bug. With ``--json`` standard output carries the result and nothing else.
"""

from __future__ import annotations

import json
import logging
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from fellrec import __version__
from fellrec import console as show
from fellrec.errors import ConfigError, FellrecError

if TYPE_CHECKING:
    from fellrec.config import RunConfig

INTERRUPTED = 130  # what shells give a program that Ctrl-C ended
REFUSED = 2


class CommandLine(TyperGroup):
    """Turns the library's errors into one line each."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except FellrecError as error:
            typer.echo(f"error: {show.plain(error)}", err=True)
            raise typer.Exit(REFUSED) from error


app = typer.Typer(
    cls=CommandLine,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="markdown",
)
data = typer.Typer(no_args_is_help=True, help="Bring your own data; see what has a name.")
app.add_typer(data, name="data")
results = typer.Typer(no_args_is_help=True, help="Keep finished runs as results; compare them.")
app.add_typer(results, name="results")

RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="Folder that `fellrec train` left.")]
ClientName = Annotated[
    str, typer.Option("--client", metavar="NAME", help="Client whose model is used, such as c0.")
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


@app.command()
def train(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE", help="A shipped recipe (see `fellrec recipes`) or a TOML file."
        ),
    ],
    settings: Settings = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Run folder to make. Default: runs/NAME."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted run in that folder.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Say what it would take: clients, sizes, traffic, memory. Loads no weights, "
            "trains nothing, leaves nothing.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train a recipe, and leave a folder with adapters, scores and logs.

    The folder has everything: the resolved recipe, summary.json, each client's adapter. The same
    recipe and seed give the same result.
    """
    from fellrec.config import RunConfig, parse_override

    changes = settings or []
    config = RunConfig.from_toml(recipe, dict(map(parse_override, changes)))
    console = show.make_console(stderr=as_json)
    if dry_run:
        _foresee(config, console, as_json)
        return
    path = out if out is not None else Path("runs") / config.name
    sets = [word for change in changes for word in ("--set", change)]
    again = ["fellrec", "train", recipe, *sets, "--out", str(path), "--resume"]
    with _resumable(path, shlex.join(again)):
        with _waiting(console, "starting"):
            from fellrec.federation import runs
            from fellrec.progress import watch

            _quiet()
        with watch(console, config.evaluation.metric) as observer:
            result = runs.train(config, path, resume=resume, observer=observer)
    if as_json:
        typer.echo(json.dumps(result.summary, indent=2))
    else:
        _report(console, result.path)


def _foresee(config: RunConfig, console: Console, as_json: bool) -> None:
    """Print what a recipe would take."""
    with _waiting(console, "reading the data"):
        from fellrec.federation.dryrun import dry_run

        _quiet()
        found = dry_run(config)
    if as_json:
        _print_json(found)
        return
    console.print(show.foreseen_text(found), soft_wrap=True)
    for table in (show.foreseen_clients(found), show.foreseen_sides(found)):
        console.print()
        console.print(table)


def _report(console: Console, path: Path) -> None:
    """Print what a finished run came to, and how to go on."""
    from fellrec.serving.run import load_run
    from fellrec.serving.samples import samples

    run = load_run(path)
    summary, metric = run.summary, run.config.evaluation.metric
    console.print()
    console.print(show.score_table(summary["overall"], summary["clients"], metric))
    console.print()
    facts = [("balance", show.balance_text(summary["balance"]))]
    facts.append(("cost", show.cost_text(summary["cost"])))
    console.print(show.facts(facts))
    with _waiting(console, "recommending for a few users"):
        drawn = samples(run)
    if drawn:
        console.print()
        console.print(show.sample_table(drawn, summary["items"]))
    console.print()
    console.print(f"run in {path}", soft_wrap=True)
    for sample in drawn[:1]:
        words = ["fellrec", "recommend", str(path), "--client", sample.client]
        command = shlex.join([*words, "--history", sample.history[-1]])
        console.print(f"go on: {command}", soft_wrap=True)


@app.command()
def evaluate(
    run: RunPath,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Serve otherwise than in the run, as in bigrec.decode=retrieve. Repeatable.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Score a finished run's best models on its test targets again."""
    console = show.make_console(stderr=as_json)
    with _waiting(console, "starting") as say:
        from fellrec.config import parse_override
        from fellrec.serving.rescore import rescore
        from fellrec.serving.run import load_run

        _quiet()
        opened = load_run(run, dict(map(parse_override, settings or [])))
        scores = rescore(opened, lambda client: say(f"scoring {client}"))
    if as_json:
        _print_json(
            {
                "overall": scores.overall,
                "clients": scores.clients,
                "differences": scores.differences,
            }
        )
        return
    metric = opened.config.evaluation.metric
    console.print(show.score_table(scores.overall, scores.clients, metric))
    console.print()
    same = [] if settings else ["the same as in summary.json"]
    for line in scores.differences or same:
        console.print(line, soft_wrap=True)


@app.command()
def recommend(
    run: RunPath,
    client: ClientName,
    user: Annotated[
        str | None, typer.Option("--user", metavar="ID", help="One of the client's users.")
    ] = None,
    history: Annotated[
        list[str] | None,
        typer.Option(
            "--history", metavar="TITLE", help="Title in the history; repeat it, oldest first."
        ),
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many items.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Rank the catalogue for a user, or for a history of titles."""
    if (user is None) == (not history):
        raise ConfigError("give either --user or --history, and not both")
    console = show.make_console(stderr=as_json)
    with _waiting(console, "starting"):
        from fellrec.serving.run import load_run

        _quiet()
        ranked = load_run(run).client(client).recommend(history or None, user=user, k=k)
    if as_json:
        _print_json(
            [
                {"rank": rank, "item": entry.item, "title": entry.title, "score": entry.score}
                for rank, entry in enumerate(ranked, start=1)
            ]
        )
    else:
        console.print(show.recommendation_table(ranked))


@app.command()
def export(
    run: RunPath,
    client: ClientName,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to make.")],
) -> None:
    """Write a client's adapter for use with peft, on the whole base model."""
    console = show.make_console()
    with _waiting(console, "starting"):
        from fellrec.serving.export import export_adapter
        from fellrec.serving.run import load_run

        _quiet()
        opened = load_run(run)
        target = export_adapter(opened, client, out)
    base = opened.config.model.base
    console.print(f"wrote {target}: client {show.plain(client)}'s adapter", soft_wrap=True)
    console.print(
        f"load it with peft.PeftModel.from_pretrained(base, {str(target)!r}) on the model {base}",
        soft_wrap=True,
    )


@app.command()
def recipes() -> None:
    """List the shipped recipes."""
    from fellrec import config
    from fellrec.recipes import about

    rows = [(name, about(name)) for name in config.recipes()]
    show.make_console().print(show.recipe_table(rows))


@data.command("import")
def import_(
    interactions: Annotated[
        Path,
        typer.Option(
            "--interactions",
            metavar="FILE",
            help="Who took what when. A table: .csv, .tsv, .jsonl, .parquet.",
        ),
    ],
    items: Annotated[
        Path, typer.Option("--items", metavar="FILE", help="The items and their texts.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to make.")],
    form: Annotated[
        str,
        typer.Option(
            "--form",
            help="table, whose columns you name, amazon-2018, amazon-2023 or microlens.",
        ),
    ] = "table",
    user: Annotated[
        str | None, typer.Option("--user", metavar="COLUMN", help="Column of user ids.")
    ] = None,
    item: Annotated[
        str | None,
        typer.Option("--item", metavar="COLUMN", help="Column of item ids, in both files."),
    ] = None,
    time: Annotated[
        str | None, typer.Option("--time", metavar="COLUMN", help="Column of times.")
    ] = None,
    title: Annotated[
        str | None, typer.Option("--title", metavar="COLUMN", help="Column of titles.")
    ] = None,
    attribute: Annotated[
        list[str] | None,
        typer.Option(
            "--attribute", metavar="COLUMN", help="Further text column of the items. Repeatable."
        ),
    ] = None,
    k_core: Annotated[
        int,
        typer.Option(
            "--k-core", min=0, help="Keep users and items with this many interactions; 0: all."
        ),
    ] = 0,
) -> None:
    """Turn a file of interactions and one of items into a data set that a recipe can name."""
    from fellrec.data.atomic import write_atomic
    from fellrec.data.folders import new_folder
    from fellrec.data.forms import import_files

    with new_folder(out) as folder:
        imported = import_files(
            interactions,
            items,
            form=form,
            user=user,
            item=item,
            time=time,
            title=title,
            attributes=attribute or [],
            k=k_core,
        )
        write_atomic(imported.dataset, folder)
    console = show.make_console()
    for remark in imported.remarks():
        console.print(remark, soft_wrap=True)
    counts = {
        "users": len(imported.dataset.users),
        "items": len(imported.dataset.catalogue),
        "interactions": len(imported.dataset.interactions),
    }
    said = ", ".join(f"{count:,} {name}" for name, count in counts.items())
    command = shlex.join(["fellrec", "train", "demo", "--set", f"data.source={out}"])
    console.print(f"wrote {out}: {said}", soft_wrap=True)
    console.print(f"go on: {command}", soft_wrap=True)


@data.command("list")
def list_() -> None:
    """List data sets and models that have a name, and where they come from."""
    from fellrec.data.sources import known

    show.make_console().print(show.known_table(known()))


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
    with _waiting(console, "starting") as say:
        from fellrec.results.keeping import keep

        _quiet()
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
    with _waiting(console, "drawing users"):
        from fellrec.results.cells import read_all
        from fellrec.results.tables import write_page

        text = write_page(read_all(folder), out)
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
    with _waiting(console, "starting"):
        from fellrec.config import RunConfig
        from fellrec.federation.runs import train as train_run
        from fellrec.progress import watch
        from fellrec.results.keeping import keep
        from fellrec.results.plan import standing, untrained

        _quiet()
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
            with _resumable(path, again), watch(console, config.evaluation.metric) as observer:
                train_run(config, path, resume=found == "begun", observer=observer)
        keep(path, folder, replace=True)
        console.print(f"kept {folder / config.name}", soft_wrap=True)


def _print_json(value: object) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, default=list))


@contextmanager
def _waiting(console: Console, text: str) -> Iterator[Callable[[str], None]]:
    """Show that something goes on, where bars can be drawn; lends a function to change the text."""
    if show.is_live(console):
        with console.status(text) as status:
            yield lambda other: status.update(show.plain(other))
    else:
        yield lambda other: None


def _quiet() -> None:
    """Keep other libraries' remarks out of the output; what matters is raised or printed."""
    logging.getLogger("fellrec").setLevel(logging.ERROR)  # a failed source is in the error's line
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)


@contextmanager
def _resumable(path: Path, command: str) -> Iterator[None]:
    """Say after Ctrl-C how an unfinished run goes on."""
    try:
        yield
    except KeyboardInterrupt:
        if (path / "config.toml").is_file():
            typer.echo(f"interrupted; go on with: {command}", err=True)
        else:
            typer.echo("interrupted before anything was learned; nothing is left", err=True)
        raise typer.Exit(INTERRUPTED) from None
