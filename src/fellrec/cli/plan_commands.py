"""The command that says which cut, codec and batch fit a machine, a line and a secret."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer
from rich.filesize import decimal
from rich.table import Table

from fellrec import console as show
from fellrec.cli.shared import AsJson, Settings, print_json, quiet, waiting

if TYPE_CHECKING:
    from fellrec.planning import Choice, Limits, Plan


class Recommender(StrEnum):
    """Which recommender's recipe is planned."""

    HLLM = "hllm"
    BIGREC = "bigrec"
    RECFORMER = "recformer"


_RECIPES = {
    Recommender.HLLM: "ml100k",
    Recommender.BIGREC: "bigrec-ml100k",
    Recommender.RECFORMER: "recformer-ml100k",
}
_LIMITS = {
    "client_memory": ("--client-memory", "memory"),
    "max_recovery": ("--max-recovery", "read back"),
    "max_seconds": ("--max-seconds", "too slow"),
}


def plan(
    recommender: Annotated[
        Recommender, typer.Option("--recommender", help="Whose recipe for MovieLens-100K it is.")
    ] = Recommender.HLLM,
    base: Annotated[
        str | None, typer.Option("--base", help="The model: a name or a folder. Default: its own.")
    ] = None,
    client_memory: Annotated[
        str | None, typer.Option("--client-memory", help="What a client has, such as 2GB.")
    ] = None,
    uplink: Annotated[
        str | None, typer.Option("--uplink", help="A client's line a second, such as 20Mbit.")
    ] = None,
    downlink: Annotated[
        str | None, typer.Option("--downlink", help="The other way; as the uplink if not given.")
    ] = None,
    latency: Annotated[
        float, typer.Option("--latency", min=0, help="Seconds there and back.")
    ] = 0.02,
    max_recovery: Annotated[
        float | None,
        typer.Option(
            "--max-recovery",
            min=0,
            max=1,
            help="Largest share of a history's items that a server may read back.",
        ),
    ] = None,
    max_seconds: Annotated[
        float | None, typer.Option("--max-seconds", min=0, help="Longest that a step may take.")
    ] = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Say which blocks, codec, noise and batch fit a client, and what each choice takes.

    Memory and bytes are foreseen, seconds measured on this machine, and so is what a server that
    knows the head reads back of histories that nobody had. Nothing is trained, so what noise costs
    in score is not said. Other data or settings: --set, as for train.
    """
    from fellrec.config import RunConfig, parse_override
    from fellrec.planning import Limits, bytes_of
    from fellrec.planning import plan as work_out

    def size(text: str | None, option: str) -> int | None:
        return None if text is None else bytes_of(text, option)

    limits = Limits(
        size(client_memory, "--client-memory"),
        size(uplink, "--uplink"),
        size(downlink, "--downlink"),
        latency,
        max_recovery,
        max_seconds,
    )
    changes = {} if base is None else {"model.base": base}
    changes |= dict(map(parse_override, settings or []))
    config = RunConfig.from_toml(_RECIPES[recommender], changes)
    console = show.make_console(stderr=as_json)
    with waiting(console, "reading the data") as say:
        quiet()
        found = work_out(config, limits, progress=say)
    if as_json:
        print_json(_json(found))
        return
    console.print()
    console.print(_table(found, config.model.base))
    console.print(f"\n{verdict(found)}", soft_wrap=True)


def _json(found: Plan) -> dict[str, object]:
    chosen = found.chosen
    return {
        "limits": asdict(found.limits),
        "chosen": None if chosen is None else asdict(chosen),
        "hindrances": {name: asdict(each) for name, each in found.hindrances().items()}
        if chosen is None
        else {},
        "choices": [asdict(each) for each in found.choices],
    }


def _table(found: Plan, base: str) -> Table:
    table = show.make_table(
        *(">k_in", "codec", ">noise", ">batch", ">client memory", ">server", ">up a step"),
        *(">seconds", ">read back", "fits"),
    )
    table.title = f"{base}: the fastest choice for each number of blocks on the client"
    table.title_justify = "left"
    for each in found.best:
        missed = ", ".join(_LIMITS[name][1] for name in each.misses)
        table.add_row(
            str(each.k_in),
            each.codec,
            f"{each.noise:g}",
            str(each.batch),
            decimal(each.memory),
            decimal(each.server_memory),
            decimal(each.bytes_up),
            f"{each.seconds:.2f}",
            f"{each.recovered:.0%} ({each.attack})",
            f"no: {missed}" if missed else "yes",
        )
    return table


def verdict(found: Plan) -> str:
    """Say which choice to take, or what stands in the way of all."""
    chosen = found.chosen
    if chosen is not None:
        return (
            f"take --set model.k_in={chosen.k_in} --set model.k_out={chosen.k_out} "
            f"--set split.codec={chosen.codec} --set privacy.noise={chosen.noise:g} "
            f"--set train.batch_size={chosen.batch}: a step takes "
            f"{chosen.client_seconds:.2f} s of the client, {chosen.server_seconds:.2f} s of the "
            f"server and {chosen.wire_seconds:.2f} s of the line"
        )
    said = "; ".join(
        f"{_LIMITS[name][0]} {_limit(found.limits, name)} stands in the way, the nearest is "
        f"{_value(nearest, name)} at k_in {nearest.k_in}, {nearest.codec}, "
        f"noise {nearest.noise:g}, batch {nearest.batch}"
        for name, nearest in found.hindrances().items()
    )
    return f"nothing fits: {said or 'each choice breaks another limit; loosen one of them'}"


def _limit(limits: Limits, name: str) -> str:
    match name:
        case "client_memory":
            return decimal(limits.client_memory or 0)
        case "max_recovery":
            return f"{limits.max_recovery:g}"
    return f"{limits.max_seconds:g}"


def _value(choice: Choice, name: str) -> str:
    match name:
        case "client_memory":
            return decimal(choice.memory)
        case "max_recovery":
            return f"{choice.recovered:.3f}"
    return f"{choice.seconds:.2f} s"
