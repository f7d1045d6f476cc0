"""What it took: what each side holds, what crossed between them, how long it took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fellrec.report import words
from fellrec.report.blocks import Block, Figure, Section, Table
from fellrec.report.charts import Bar, Words, bar_chart, bar_legend
from fellrec.report.reading import FinishedRun, RoundLog
from fellrec.report.sections.mixing import pick
from fellrec.split.ledger import LedgerRow

KINDS = {
    "activations": ("activation",),
    "gradients": ("gradient",),
    "adapters": ("lora", "dense"),
    "lengths, scalars, metrics": (),
}
"""Kinds of the ledger that are drawn as one; the last takes in all others."""

_PANEL, _BARS = 330.0, 20
_SHARES = ("a client's own work", "waiting for the trunk")


def section(run: FinishedRun) -> Section:
    """Show sizes, traffic and seconds."""
    blocks: list[Block] = [_sides(run.summary["cost"])]
    if run.ledger:
        blocks.append(_traffic(run))
    if run.rounds:
        blocks.append(_seconds(run))
    return Section("cost", "What it took", blocks)


def _sides(cost: Mapping[str, Any]) -> Figure:
    held = [(side, cost.get(f"{side}_parameters") or 0) for side in ("client", "server")]
    labels = {"client": "a client", "server": "the server"}
    bars = [
        Bar(labels[side], words.count(value), (value, 0) if side == "client" else (0, value))
        for side, value in held
    ]
    share = cost.get("client_parameter_share")
    sizes = [words.count(value) for _, value in held]
    point = f"A client holds {sizes[0]} parameters, the server {sizes[1]}."
    told = Words("sides", "Parameters that each side holds", point)
    own = cost.get("server_adapter_parameters")
    rows = [
        [name, *(show(cost.get(f"{side}_{key}")) for side in ("client", "server"))]
        for name, key, show in (
            ("parameters", "parameters", words.whole),
            ("bytes", "bytes", words.size),
            ("blocks", "blocks", words.whole),
            ("parameters in blocks", "block_parameters", words.whole),
        )
    ]
    rows.append(["adapter, once for each client", "among its parameters", words.whole(own)])
    largest = float(max(value for _, value in held))
    return Figure(
        "Who holds what",
        f"{point} That is {words.percent(share)} of the model with a client; in blocks, "
        f"{words.percent(cost.get('client_block_share'))}. Frozen tensors count.",
        [bar_chart(told, bars, width=_PANEL, largest=largest)],
        [Table("What each side holds", ["", "a client", "the server"], rows, folded=True)],
        layout="pairs",
    )


def _traffic(run: FinishedRun) -> Figure:
    groups = _groups(run)
    sums = {
        direction: [_kinds(run.ledger, direction, rounds) for _, rounds in groups]
        for direction in ("up", "down")
    }
    largest = max(sum(parts) for rows in sums.values() for parts in rows)
    charts = []
    for direction, label in (("up", "up: client to server"), ("down", "down: server to client")):
        total = int(sum(map(sum, sums[direction])))
        bars = [
            Bar(name, words.size(int(sum(parts))), parts)
            for (name, _), parts in zip(groups, sums[direction], strict=True)
        ]
        by_kind = [int(sum(kind)) for kind in zip(*sums[direction], strict=True)]
        most = max(range(len(by_kind)), key=by_kind.__getitem__)
        said = f"{words.size(total)} in all, most of it {list(KINDS)[most]}."
        told = Words(f"bytes-{direction}", f"Bytes that went {direction} by round", said)
        charts.append(bar_chart(told, bars, width=_PANEL, largest=largest, label=label))
    cost = run.summary["cost"]
    return Figure(
        "What crossed, by round",
        f"{words.size(cost['bytes_up'])} went up and {words.size(cost['bytes_down'])} down, over "
        "all clients, training and scoring. Histories, items and users' scores never cross.",
        charts,
        [_traffic_table(run)],
        bar_legend("bytes", list(KINDS)),
        layout="pairs",
    )


def _groups(run: FinishedRun) -> list[tuple[str, list[int]]]:
    """Put the ledger's rounds into at most `_BARS` rows; what follows the last is the test."""
    rounds = sorted({row.round for row in run.ledger})
    training = [number for number in rounds if number < run.summary["rounds"]]
    step = -(-len(training) // _BARS) if training else 1
    groups = []
    for first in range(0, len(training), step):
        part = training[first : first + step]
        name = f"round {part[0] + 1}" if len(part) == 1 else f"rounds {part[0] + 1}–{part[-1] + 1}"
        groups.append((name, part))
    rest = [number for number in rounds if number >= run.summary["rounds"]]
    return [*groups, *([("test", rest)] if rest else [])]


def _kinds(rows: Sequence[LedgerRow], direction: str, rounds: Sequence[int]) -> list[float]:
    """Sum bytes of each group of kinds."""
    names = {kind: place for place, kinds in enumerate(KINDS.values()) for kind in kinds}
    sums = [0.0] * len(KINDS)
    for row in rows:
        if row.direction == direction and row.round in rounds:
            sums[names.get(row.kind, len(KINDS) - 1)] += row.bytes
    return sums


def _traffic_table(run: FinishedRun) -> Table:
    kinds = sorted({row.kind for row in run.ledger})
    sums: dict[tuple[int, str, str], int] = {}
    for row in run.ledger:
        key = row.round, row.direction, row.kind
        sums[key] = sums.get(key, 0) + row.bytes
    rows = []
    for number in sorted({row.round for row in run.ledger}):
        name = f"round {number + 1}" if number < run.summary["rounds"] else "test"
        for direction in ("up", "down"):
            cells = [sums.get((number, direction, kind), 0) for kind in kinds]
            rows.append([name, direction, *map(words.size, cells), words.size(sum(cells))])
    caption = "Bytes by round, direction and kind, over all clients"
    return Table(caption, ["round", "direction", *kinds, "in all"], rows, words=(1,), folded=True)


def _seconds(run: FinishedRun) -> Figure:
    """Show how long rounds took, as far as clients said so."""
    cost = run.summary["cost"]
    shown = pick(run.rounds, _BARS)
    known = [each for each in shown if each.total("seconds") is not None]
    bars = [
        Bar(f"round {each.number}", words.seconds(sum(_sides_of(each))), _sides_of(each))
        for each in known
    ]
    point = (
        f"{words.seconds(cost.get('train_seconds'))} of training over all clients, "
        f"{words.whole(cost.get('steps'))} steps; {words.seconds(cost.get('server_seconds'))} in "
        "the trunk, scoring included."
    )
    charts = []
    if bars:
        told = Words("seconds", "Seconds of training by round", point)
        largest = max(sum(bar.parts) for bar in bars)
        charts = [bar_chart(told, bars, width=_PANEL, largest=largest)]
    per_step = [cost.get(f"{side}_seconds_per_step") for side in ("client", "server")]
    lead = (
        f"{point} A step takes {words.fixed(per_step[0], 3)} s with a client and "
        f"{words.fixed(per_step[1], 3)} s with the server."
    )
    if not bars:
        lead += " The clients of this run kept their times to themselves."
    columns = ["round", "training", "of it waiting for the trunk", "in the trunk", "steps"]
    rows = [
        [
            f"round {each.number}",
            *(
                words.fixed(each.total(key), 1)
                for key in ("seconds", "waiting_seconds", "server_seconds")
            ),
            words.fixed(each.total("steps"), 0),
        ]
        for each in run.rounds
    ]
    return Figure(
        "Seconds by round",
        lead,
        charts,
        [Table("Seconds and steps by round, over all clients", columns, rows, folded=bool(bars))],
        bar_legend("seconds", _SHARES if bars else []),
        layout="pairs",
    )


def _sides_of(each: RoundLog) -> tuple[float, float]:
    """Return a round's seconds of the clients' own work, and of waiting for the trunk."""
    waiting = each.total("waiting_seconds") or 0.0
    return max((each.total("seconds") or 0.0) - waiting, 0.0), waiting
