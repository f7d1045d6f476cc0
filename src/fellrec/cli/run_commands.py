"""Commands that make a run or work with one: train, evaluate, recommend, export, recipes."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from fellrec import console as show
from fellrec.cli.shared import (
    AsJson,
    ClientName,
    Recipe,
    RunFolder,
    RunPath,
    Settings,
    print_json,
    quiet,
    resumable,
    waiting,
)
from fellrec.errors import ConfigError
from fellrec.extras import need

if TYPE_CHECKING:
    from fellrec.config import RunConfig


def train(
    recipe: Recipe,
    settings: Settings = None,
    out: RunFolder = None,
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
    with resumable(path / "config.toml", shlex.join(again)) as interrupts:
        with waiting(console, "starting"):
            from fellrec.federation import runs
            from fellrec.progress import watch

            quiet()
        with watch(console, config.evaluation.metric, interrupts) as observer:
            result = runs.train(config, path, resume=resume, observer=observer)
    if as_json:
        typer.echo(json.dumps(result.summary, indent=2))
    else:
        report(console, result.path)


def _foresee(config: RunConfig, console: Console, as_json: bool) -> None:
    """Print what a recipe would take."""
    with waiting(console, "reading the data"):
        from fellrec.federation.dryrun import dry_run

        quiet()
        found = dry_run(config)
    if as_json:
        print_json(found)
        return
    console.print(show.foreseen_text(found), soft_wrap=True)
    for table in (show.foreseen_clients(found), show.foreseen_sides(found)):
        console.print()
        console.print(table)


def report(console: Console, path: Path) -> None:
    """Print what a finished run came to, and how to go on."""
    from fellrec.report.promised import sentences
    from fellrec.serving.run import load_run
    from fellrec.serving.samples import samples

    run = load_run(path)
    summary, metric = run.summary, run.config.evaluation.metric
    console.print()
    console.print(show.score_table(summary["overall"], summary["clients"], metric))
    console.print()
    facts = [("balance", show.balance_text(summary["balance"]))]
    facts.append(("cost", show.cost_text(summary["cost"])))
    facts += [("privacy", each) for each in sentences(summary.get("privacy", {}))]
    console.print(show.facts(facts))
    with waiting(console, "recommending for a few users"):
        drawn = samples(run)
    if drawn:
        console.print()
        console.print(show.sample_table(drawn, summary["items"]))
    console.print()
    console.print(f"run in {path}", soft_wrap=True)
    command = suggestion(path, [(sample.client, sample.history[-1]) for sample in drawn])
    if command is not None:
        console.print(f"go on: {command}", soft_wrap=True)


def suggestion(path: Path, taken: Sequence[tuple[str, str]]) -> str | None:
    """Return a command that recommends for one of these clients and titles, None for none.

    A title is printed as it is, to be typed, so one that a terminal would act on is passed over.
    """
    for client, title in taken:
        if show.plain(title) == title:
            words = ["fellrec", "recommend", str(path), "--client", client, "--history", title]
            return shlex.join(words)
    return None


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
    with waiting(console, "starting") as say:
        from fellrec.config import parse_override
        from fellrec.serving.rescore import rescore
        from fellrec.serving.run import load_run

        quiet()
        opened = load_run(run, dict(map(parse_override, settings or [])))
        scores = rescore(opened, lambda client: say(f"scoring {client}"))
    if as_json:
        print_json(
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


def _moved(option: str, what: str) -> Any:
    """Declare an option for a file that is elsewhere than a client's part says."""
    return typer.Option(option, metavar="FILE", help=f"For a client's part: where {what} is now.")


def recommend(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN",
            help="Folder that `fellrec train` left, or a client's own part of a deployment's run.",
        ),
    ],
    client: Annotated[
        str | None,
        typer.Option(
            "--client",
            metavar="NAME",
            help="Client whose model is used, such as c0. A client's part has but one.",
        ),
    ] = None,
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
    trunk: Annotated[
        str | None,
        typer.Option(
            "--trunk",
            metavar="HOST:PORT",
            help="For a client's part: the trunk server that has this client's adapter.",
        ),
    ] = None,
    data: Annotated[Path | None, _moved("--data", "its data file")] = None,
    certificate: Annotated[Path | None, _moved("--certificate", "its certificate")] = None,
    key: Annotated[Path | None, _moved("--key", "its private key")] = None,
    authority: Annotated[Path | None, _moved("--authority", "the authority's certificate")] = None,
    as_json: AsJson = False,
) -> None:
    """Rank the catalogue for a user, or for a history of titles.

    RUN is a folder that `fellrec train` left, or what one client kept of a deployment's run. In
    that case the trunk does its share, read-only, by the adapter that it has of this client;
    neither history nor recommendations leave this machine.
    """
    if (user is None) == (not history):
        raise ConfigError("give either --user or --history, and not both")
    elsewhere = {
        "trunk": trunk,
        "data": data,
        "certificate": certificate,
        "key": key,
        "authority": authority,
    }
    given: dict[str, Any] = {name: each for name, each in elsewhere.items() if each is not None}
    console = show.make_console(stderr=as_json)
    with waiting(console, "starting"):
        from fellrec.federation.deployment.place import is_part

        quiet()
        if is_part(run):
            need("deploy", ("cryptography", "grpc"), "to be served by a trunk")
            from fellrec.serving.part import open_part

            with open_part(run, client=client, **given) as part:
                ranked = part.recommend(history or None, user=user, k=k)
        else:
            from fellrec.serving.run import load_run

            if given:
                raise ConfigError(f"{run}: no client's part of a run; leave out --{min(given)}")
            if client is None:
                raise ConfigError(f"{run}: a run of several clients; choose one, --client NAME")
            ranked = load_run(run).client(client).recommend(history or None, user=user, k=k)
    if as_json:
        print_json(
            [
                {"rank": rank, "item": entry.item, "title": entry.title, "score": entry.score}
                for rank, entry in enumerate(ranked, start=1)
            ]
        )
    else:
        console.print(show.recommendation_table(ranked))


def export(
    run: RunPath,
    client: ClientName,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to make.")],
) -> None:
    """Write a client's adapter for use with peft, on the whole base model."""
    console = show.make_console()
    with waiting(console, "starting"):
        from fellrec.serving.export import export_adapter
        from fellrec.serving.run import load_run

        quiet()
        opened = load_run(run)
        target = export_adapter(opened, client, out)
    base = opened.config.model.base
    console.print(f"wrote {target}: client {show.plain(client)}'s adapter", soft_wrap=True)
    console.print(
        f"load it with peft.PeftModel.from_pretrained(base, {str(target)!r}) on the model {base}",
        soft_wrap=True,
    )


def recipes() -> None:
    """List the shipped recipes and comparisons."""
    from fellrec import config
    from fellrec.comparison.plan import comparisons
    from fellrec.recipes import about

    console = show.make_console()
    rows = [(name, about(name)) for name in config.recipes()]
    console.print(show.recipe_table("recipe", rows))
    console.print()
    rows = [(name, about(name, "fellrec.comparisons")) for name in comparisons()]
    console.print(show.recipe_table("comparison", rows))
