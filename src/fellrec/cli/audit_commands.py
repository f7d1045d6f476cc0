"""The command that attacks a finished run to see what a server learns from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from fellrec import console as show
from fellrec.cli.shared import AsJson, RunPath, print_json, quiet, waiting

if TYPE_CHECKING:
    from fellrec.audit import Audit
    from fellrec.audit.findings import Veiled
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
    noise: Annotated[
        float,
        typer.Option(
            "--noise",
            min=0,
            help="Let clients blur what they send: the noise's length over a typical activation's.",
        ),
    ] = 0.0,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help="Leave attacks on uploads out: clients have to train for these."
        ),
    ] = False,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Draws the users.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Attack a run's own clients as a curious server could, and say how much it reads back.

    Users' histories go through the cuts once more, in scoring and in training. Attackers who know
    the public weights, or the exchanged adapters too, try to tell from what crosses which items
    they hold and what came next; from what a client uploads, which items its users touched and
    whose histories it learned from. Writes RUN/audit.json, which fellrec report shows.
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
            noise=noise,
            uploads=not quick,
            seed=seed,
            progress=say,
        )
    if as_json:
        print_json(found.as_json())
        return
    for table in (_read_back(found), _told(found), _touched(found), _members(found)):
        if table.row_count:
            console.print()
            console.print(table)
    if found.veil is not None:
        console.print(f"\n{_price(found.veil)}", soft_wrap=True)
    console.print(f"\nwritten to {run / 'audit.json'}", soft_wrap=True)


def _read_back(found: Audit) -> Table:
    spelled = any(each.rouge_l is not None for each in found.inversion)
    own = f", item residual {found.item_residual}" if found.recommender == "hllm" else ""
    table = _table(
        f"{found.users} users' histories, read back at the first cut: k_in {found.k_in}, "
        f"{found.codec}{own}",
        *("attacker", "knows", ">items found", ">95 %", ">right place"),
        *((">tokens", ">ROUGE-L") if spelled else ()),
    )
    for each in found.inversion:
        rest = (each.placed, each.token_accuracy, each.rouge_l)
        table.add_row(
            each.attack,
            _KNOWN[each.knows],
            *_interval(each.recovered),
            *(f"{value:.3f}" for value in rest if value is not None),
        )
    table.add_row("chance", "what is popular", *_interval(found.chance))
    return table


def _told(found: Audit) -> Table:
    table = _table(
        f"{found.learners} last targets of training, told from what crossed: k_in {found.k_in}, "
        f"k_out {found.k_out}",
        *("attacker", "knows", ">first guess", ">95 %", ">among ten", ">95 %"),
    )
    for each in found.labels:
        table.add_row(each.attack, _KNOWN[each.knows], *_interval(each.first), *_interval(each.ten))
    table.add_row("chance", "what is popular", "-", "", *_interval(found.label_chance))
    return table


def _touched(found: Audit) -> Table:
    table = _table(
        "Items that a client's users touched, told from what it uploads after a round",
        *("attacker", ">AUC", ">least client", ">most", ">by popularity", ">guessing"),
    )
    for each in found.touched:
        values = (each.auc, each.least, each.most, each.popularity, 0.5)
        table.add_row(each.attack, *(f"{value:.3f}" for value in values))
    return table


def _members(found: Audit) -> Table:
    table = _table(
        f"{found.members} users from whom a client learned alone, told from {found.others} others "
        "of the same client",
        *("attacker", ">AUC", ">95 %", ">caught, 1 in 20 others wrongly"),
    )
    for each in found.membership:
        table.add_row(each.attack, *_interval(each.auc), f"{each.caught:.3f}")
    return table


def _price(veil: Veiled) -> str:
    mean, low, high = veil.difference
    promised = "no ε" if veil.epsilon is None else f"a local ε of {veil.epsilon:,.0f}"
    return (
        f"with noise of {veil.noise:g} the models reach {veil.metric} {veil.score.mean:.4f}, "
        f"without {veil.without.mean:.4f}: a difference of {mean:+.4f} ({low:+.4f} to {high:+.4f})."
        f" For a history of {veil.positions} positions that crosses once this promises {promised} "
        f"at δ = {veil.delta:g}"
    )


def _table(title: str, *columns: str) -> Table:
    table = show.make_table(*columns)
    table.title, table.title_justify = title, "left"
    return table


def _interval(value: Interval) -> tuple[str, str]:
    mean, low, high = value
    return f"{mean:.3f}", f"{low:.3f} … {high:.3f}"
