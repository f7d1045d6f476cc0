"""The command that attacks a finished run to see what a server learns from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from fellrec import console as show
from fellrec.cli.shared import AsJson, RunPath, print_json, quiet, waiting

if TYPE_CHECKING:
    from fellrec.audit import Audit
    from fellrec.evaluation.bootstrap import Interval

_KNOWN = {"base": "public weights", "adapters": "also the exchanged adapters"}


def audit(
    run: RunPath,
    users: Annotated[
        int, typer.Option("--users", min=0, help="Users that are attacked; 0 for all.")
    ] = 20,
    most: Annotated[
        int,
        typer.Option(
            "--candidates",
            min=0,
            help="Items that the search tries at a position; 0 for the whole catalogue.",
        ),
    ] = 256,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Draws the users.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Attack a run's own clients as a curious server could, and say how much it reads back.

    Users' histories go through the cuts once more, in scoring and in training. Attackers who know
    the public weights, or the exchanged adapters too, try to tell from what crosses which items
    they hold and what came next. Writes RUN/audit.json.
    """
    console = show.make_console(stderr=as_json)
    with waiting(console, "loading the run") as say:
        from fellrec import audit as auditing
        from fellrec.serving.run import load_run

        quiet()
        found = auditing.audit(
            load_run(run),
            users=users,
            most=most,
            seed=seed,
            progress=lambda client: say(f"attacking client {client}"),
        )
    if as_json:
        print_json(found.as_json())
        return
    for table in (_read_back(found), _told(found)):
        console.print()
        console.print(table)
    if found.touched is not None:
        it = found.touched
        console.print(
            "\nthe item table that a client uploads tells which items its users touched: AUC "
            f"{it.auc:.3f} ({it.least:.3f} to {it.most:.3f} by client; 0.5 is guessing, popularity "
            f"{it.popularity:.3f})",
            soft_wrap=True,
        )
    console.print(f"\nwritten to {run / 'audit.json'}", soft_wrap=True)


def _read_back(found: Audit) -> Table:
    table = show.make_table("attacker", "knows", ">items found", ">95 %", ">right place")
    table.title = (
        f"{found.users} users' histories, read back at the first cut: k_in {found.k_in}, "
        f"{found.codec}, item residual {found.item_residual}"
    )
    table.title_justify = "left"
    for each in found.inversion:
        table.add_row(
            each.attack, _KNOWN[each.knows], *_interval(each.recovered), f"{each.placed:.3f}"
        )
    table.add_row("chance", "what is popular", *_interval(found.chance), "-")
    return table


def _told(found: Audit) -> Table:
    table = show.make_table("attacker", "knows", ">first guess", ">95 %", ">among ten", ">95 %")
    table.title = (
        f"{found.learners} users' last targets in training, told at the second cut: k_out "
        f"{found.k_out}"
    )
    table.title_justify = "left"
    for each in found.labels:
        table.add_row(each.attack, _KNOWN[each.knows], *_interval(each.first), *_interval(each.ten))
    table.add_row("chance", "what is popular", "-", "", *_interval(found.label_chance))
    return table


def _interval(value: Interval) -> tuple[str, str]:
    mean, low, high = value
    return f"{mean:.3f}", f"{low:.3f} … {high:.3f}"
