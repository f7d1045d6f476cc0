"""What the command line shows: tables, lines and numbers for people.

Nothing here computes results, and nothing heavy is imported, so that ``--help`` stays quick.
Titles, ids and names come from data that others wrote: they are shown as plain text, never as
markup or control codes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from fellrec.data.sources import Known
    from fellrec.federation.observer import RoundRecord
    from fellrec.serving.ranking import Recommendation
    from fellrec.serving.samples import Sample

Row = Mapping[str, Any]

_SHOWN_CLIENTS = 20  # rows of a table of clients
_SHOWN_WARMTHS = 10  # clients named one by one in a round's line
_SHOWN_TARGETS = 3
_SHOWN_KS = 4
LEGEND = (
    "Each round: mean loss; validation score before -> after mixing; attention between clients "
    "(least, median, most; inactive: too even to tell them apart); warmth: how far each client "
    "opens to the others."
)
_FILE_WIDTH = 200  # of tables in a file or a pipe, where nothing should be cut


def make_console(*, stderr: bool = False) -> Console:
    """Return a console that shows text as it is; in a pipe it does not wrap at 80 columns."""
    console = Console(stderr=stderr, markup=False, highlight=False, emoji=False)
    if not is_live(console):
        console.width = _FILE_WIDTH
    return console


def is_live(console: Console) -> bool:
    """Return whether bars can be drawn: on a terminal with a cursor, whatever FORCE_COLOR says."""
    return console.file.isatty() and not console.is_dumb_terminal


def plain(text: object) -> str:
    """Return a text on one line without anything that a terminal could act on."""
    letters = (letter if letter.isprintable() else " " for letter in str(text))
    return " ".join("".join(letters).split())


def client_table(rows: Sequence[Row], dropped: int) -> Table:
    """Show who holds how much. rows: client, users, interactions, share of all users."""
    table = make_table("client", ">users", ">interactions", ">share of users")
    for row in rows[:_SHOWN_CLIENTS]:
        share = f"{row['share']:.1%}"
        table.add_row(plain(row["client"]), f"{row['users']:,}", f"{row['interactions']:,}", share)
    rest = [_more(len(rows))] if len(rows) > _SHOWN_CLIENTS else []
    if dropped:
        rest.append(f"{dropped:,} users left out: too few interactions to test")
    if rest:
        table.caption = "\n".join(rest)
    return table


def round_parts(
    record: RoundRecord, rounds: int, metric: str, users: Mapping[str, int]
) -> list[str]:
    """Say what a round brought, in parts that may be joined or put on lines.

    The loss is the mean over training targets, scores over users. users: how many each client has.
    """
    names = list(record.reports)
    loss = _mean([(record.reports[n].loss, record.reports[n].examples) for n in names])
    before = _mean([(record.before[n], users[n]) for n in names])
    after = _mean([(record.valid[n], users[n]) for n in names])
    mixing = f"{_score(before)} -> {_score(after)}" if before is not None else _score(after)
    spread = record.spread
    numbers = f"{spread.min:.4f} {spread.median:.4f} {spread.max:.4f}"
    warmths = [record.warmth[name] for name in names]
    if len(names) <= _SHOWN_WARMTHS:
        each = zip(names, warmths, strict=True)
        warmth = "  ".join(f"{plain(name)} {value:.2f}" for name, value in each)
    else:
        warmth = f"{min(warmths):.2f} .. {max(warmths):.2f} ({len(names)} clients)"
    return [
        f"round {record.round + 1}/{rounds}",
        f"loss {'-' if loss is None else f'{loss:.3f}'}",
        f"valid {metric} {mixing}",
        f"{record.seconds:.1f} s",
        f"attention {numbers}" if spread.active else f"attention inactive ({numbers})",
        f"warmth {warmth}",
    ]


def print_parts(console: Console, parts: Sequence[str]) -> None:
    """Print parts on one line, or in a terminal that is too narrow on several."""
    if not is_live(console):
        console.print("   ".join(parts), soft_wrap=True)
        return
    lines = [parts[0]]
    for part in parts[1:]:
        longer = f"{lines[-1]}   {part}"
        if len(longer) <= console.width:
            lines[-1] = longer
        else:
            lines.append(f"  {part}")
    console.print("\n".join(lines))


def score_table(overall: Row, clients: Sequence[Row], metric: str) -> Table:
    """Show test scores. overall, clients: as in summary.json; metric: the one the run went by.

    Users are those that were scored, which may be a sample.
    """
    names = [name for name in overall if "@" in name]
    names.sort(key=lambda name: (name.startswith("ndcg"), int(name.partition("@")[2])))
    if len(names) > 2 * _SHOWN_KS:  # too many columns: keep those of the metric's length
        names = [name for name in names if name.partition("@")[2] == metric.partition("@")[2]]
    labels = [name.replace("recall", "Recall").replace("ndcg", "NDCG") for name in names]
    table = make_table(
        "test scores", ">users", *(f">{label.replace('@', chr(10) + '@')}" for label in labels)
    )

    def add(label: str, users: int, row: Row, style: str = "") -> None:
        table.add_row(label, f"{users:,}", *(_score(row[name]) for name in names), style=style)

    add("overall", sum(row["scored"] for row in clients), overall, "bold")
    for row in clients[:_SHOWN_CLIENTS]:
        add(plain(row["id"]), row["scored"], row)
    if len(clients) > _SHOWN_CLIENTS:
        table.caption = _more(len(clients))
    return table


def facts(rows: Sequence[tuple[str, str]]) -> Table:
    """Show labelled sentences, each beside its label."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for label, text in rows:
        table.add_row(label, text)
    return table


def balance_text(balance: Row) -> str:
    """Say how evenly clients are served."""
    chance = balance["relative_gap_by_sampling_alone"]
    by_luck = "" if chance is None else f" ({chance:.0%} if clients differed by chance alone)"
    return (
        f"{balance['metric']} per client from {balance['min']:.4f} to {balance['max']:.4f}: "
        f"gap {balance['relative_gap']:.0%}{by_luck}, "
        f"std {balance['std']:.4f}, Jain {balance['jain']:.3f}"
    )


def cost_text(cost: Row) -> str:
    """Say what each side holds, what crossed, and how long training took."""
    return (
        f"a client holds {_millions(cost['client_parameters'])} parameters "
        f"({decimal(cost['client_bytes'])}), the server "
        f"{_millions(cost['server_parameters'])} ({decimal(cost['server_bytes'])}); "
        f"{decimal(cost['bytes_up'])} went up, {decimal(cost['bytes_down'])} down; "
        f"{cost['train_seconds']:.1f} s of training"
    )


def foreseen_text(found: Row) -> str:
    """Say what a dry run found of the data. found: as `dry_run` gives it."""
    dropped = found["users_dropped"]
    left_out = f" ({dropped:,} left out: too few interactions to test)" if dropped else ""
    return (
        f"dry run of {plain(found['name'])}: {found['recommender']} on {plain(found['base'])}; "
        f"{plain(found['dataset'])} with {found['users']:,} users{left_out} and "
        f"{found['items']:,} items; {found['rounds']} rounds"
    )


_LENGTHS = {
    "exact": "exact",
    "tokenised": "from the base's own tokens",
    "estimated": "estimated, four characters a token: the base's tokenizer is not here",
}


def foreseen_clients(found: Row) -> Table:
    """Show what each client's part in a round would be."""
    table = make_table(
        "a round's training",
        ">users",
        ">sequences",
        ">steps",
        ">positions",
        ">adapter",
        ">activations",
        ">gradients",
    )
    sums = ("adapter_bytes", "activation_bytes", "gradient_bytes")
    for row in found["clients"][:_SHOWN_CLIENTS]:
        counts = [f"{row[key]:,}" for key in ("users", "sequences", "steps", "positions")]
        table.add_row(plain(row["id"]), *counts, *(decimal(row[key]) for key in sums))
    clients = len(found["clients"])
    rest = [_more(clients)] if clients > _SHOWN_CLIENTS else []
    rest.append(f"bytes are each way; lengths of texts are {_LENGTHS[found['lengths']]}")
    table.caption = "\n".join(rest)
    return table


def foreseen_sides(found: Row) -> Table:
    """Show what a client and the server would hold, and the largest memory of each."""
    cost, memory = found["cost"], found["memory"]
    table = make_table("", ">a client", ">the server")
    for label, key in (("blocks", "blocks"), ("parameters", "parameters"), ("bytes", "bytes")):
        values = [cost[f"{side}_{key}"] for side in ("client", "server")]
        table.add_row(label, *(decimal(v) if key == "bytes" else _millions(v) for v in values))
    trained = (cost[f"{side}_trained_parameters"] for side in ("client", "server"))
    table.add_row("trained parameters", *map(_millions, trained))
    table.add_row("share of all blocks", f"{cost['client_block_share']:.1%}", "")
    table.add_section()
    for label, key in (
        ("memory: program, libraries", "program"),
        ("weights", "weights"),
        ("data, tokenizer", "data"),
        ("gradients and moments", "training"),
        ("then activations", "activations"),
        ("  items and scores", "scores"),
        ("  frames", "frames"),
        ("or, in their place, scoring", "scoring"),
        ("at most, in all", "total"),
    ):
        values = [memory[side][key] for side in ("client", "server")]
        table.add_row(label, *map(decimal, values), style="bold" if key == "total" else "")
    table.caption = "each side is a process of its own; a simulation has both in one"
    return table


def sample_table(samples: Sequence[Sample], items: int) -> Table:
    """Show users' histories beside their recommendations, and where what they took next stands."""
    table = make_table("user", "last in the history", "recommended")
    for sample in samples:
        label = f"{plain(sample.user)} ({plain(sample.client)})"
        length = max(len(sample.history), len(sample.recommended))
        for row in range(length):
            past = plain(sample.history[row]) if row < len(sample.history) else ""
            next_ = Text("")
            if row < len(sample.recommended):
                entry = sample.recommended[row]
                hit = sample.hit(entry)
                text = f"{row + 1} {plain(entry.title)}{' <- hit' if hit else ''}"
                next_ = Text(text, style="bold green" if hit else "")
            table.add_row("" if row else label, past, next_)
        for target in sample.held_out[:_SHOWN_TARGETS]:
            place = (
                f"rank {target.rank:,} of {items:,}" if target.rank else "in the history already"
            )
            table.add_row("", f"held out: {plain(target.title)}", place, style="dim")
        table.add_section()
    return table


def recommendation_table(ranked: Sequence[Recommendation]) -> Table:
    """Show ranked items."""
    table = make_table(">rank", "title", ">score")
    for rank, entry in enumerate(ranked, start=1):
        table.add_row(str(rank), plain(entry.title), f"{entry.score:.4f}")
    return table


def known_table(entries: Sequence[Known]) -> Table:
    """Show what can be asked for by name."""
    table = make_table("name", "kind", ">size", "cached", "terms, then sources in their order")
    table.columns[0].no_wrap = True
    table.columns[-1].overflow = "fold"  # an address has no spaces to break at
    for entry in entries:
        kind = "data set" if entry.kind == "dataset" else entry.kind
        cached = "yes" if entry.cached else "no"
        lines = "\n".join([entry.terms, *entry.sources])
        table.add_row(entry.name, kind, decimal(entry.size), cached, lines)
        table.add_section()
    return table


def recipe_table(kind: str, rows: Sequence[tuple[str, str]]) -> Table:
    """Show recipes, or another kind of shipped files, and what each is for."""
    table = make_table(kind, "what it is")
    for name, text in rows:
        table.add_row(name, text)
    return table


def make_table(*headers: str) -> Table:
    """Make a table as wide as its content; a header that begins with ">" is of numbers."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, caption_justify="left")
    for header in headers:
        number = header.startswith(">")
        table.add_column(
            header.removeprefix(">"), justify="right" if number else "left", no_wrap=number
        )
    return table


def _more(clients: int) -> str:
    return f"and {clients - _SHOWN_CLIENTS:,} more clients"


def _mean(pairs: Sequence[tuple[float | None, int]]) -> float | None:
    """Weighted mean of what is a number; None where nothing is."""
    known = [(value, weight) for value, weight in pairs if value is not None and value == value]
    total = sum(weight for _, weight in known)
    return sum(value * weight for value, weight in known) / total if total else None


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f} M" if count >= 100_000 else f"{count:,}"
