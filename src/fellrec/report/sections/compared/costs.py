"""What every row took: what each side holds, what crossed, how long it ran until it was as good."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fellrec.comparison.rows import Row
from fellrec.report import words
from fellrec.report.blocks import Block, Figure, Table, Text, ranged
from fellrec.report.charts import Bar, Words, bar_chart, bar_legend
from fellrec.report.sections.compared.view import View
from fellrec.results.cells import Cell

_PANEL, _NAMES = 330.0, 0.42
_PARTS = ("clients' own seconds", "seconds in the trunk", "bytes up", "bytes down")


def blocks(view: View) -> list[Block]:
    """Show one table of the rows that were trained as recipes, one of the peers, and pictures."""
    trained = [row for row in view.scored if not row.peer]
    peers = [row for row in view.scored if row.peer]
    found: list[Block] = []
    if trained:
        found += [_table(view, trained), _pictures(view, trained)]
    if peers:
        found.append(_peers(peers))
    return found or [Text(["No row has a result yet."])]


def _table(view: View, rows: Sequence[Row]) -> Table:
    aim = view.file.reference
    columns = ["strategy", "a client holds", "a client needs", "the server holds", "crossed"]
    columns += ["time", "tokens read", *([f"rounds to {aim}'s best"] if aim else [])]
    lines = []
    for row in rows:
        costs = [cell.summary["cost"] for cell in row.cells]
        line = [row.label, _held(costs[0], "client"), _needed(row), _held(costs[0], "server")]
        up, down = map(_bytes, _traffic(row.cells))
        line.append(ranged(f"{up} up", f"{down} down"))
        own, trunk = map(words.seconds, _seconds(row.cells))
        line.append(ranged(f"{own} clients", f"{trunk} trunk"))
        line.append(words.whole(_whole(_average(row.cells, _tokens))))
        line += [_reached(row)] if aim else []
        lines.append(line)
    caption = (
        "Parameters held, memory that a client needs in training as foreseen, what crossed, time "
        "of training (waits for the trunk left out), over all clients; the mean over seeds"
    )
    return Table(caption, columns, lines)


def _held(cost: dict[str, Any], side: str) -> str:
    """Write parameters with their bytes, and a client's share."""
    size = words.size(cost.get(f"{side}_bytes"))
    part = cost.get("client_parameter_share") if side == "client" else None
    below = size if part is None else f"{size}, {part:.0%}"
    return ranged(words.count(cost.get(f"{side}_parameters")), below)


def _needed(row: Row) -> str:
    memory = row.cells[0].origin.get("memory")
    return words.NOTHING if memory is None else words.size(memory["client"]["total"])


def _reached(row: Row) -> str:
    """Write after which round each seed was as good, and after what time on average."""
    if row.course is None:
        return words.NOTHING
    reached = [each for each in row.course.reached if each is not None]
    total = len(row.course.reached)
    if not reached:
        return "never"
    rounds = ", ".join(str(number) for number, _ in reached)
    if len(reached) < total:
        return ranged(rounds, f"in {len(reached)} of {total} seeds")
    known = [spent for _, spent in reached if spent is not None]
    whole = len(known) == total
    return ranged(rounds, f"after {words.seconds(sum(known) / total)}" if whole else "")


def _pictures(view: View, rows: Sequence[Row]) -> Figure:
    """Draw seconds by side and bytes by direction."""
    charts, numbers = [], [[row.label] for row in rows]
    for first, name, label, shown in (
        (0, "seconds", "Seconds of training", words.seconds),
        (2, "bytes", "Bytes that crossed", _bytes),
    ):
        found = [_seconds(row.cells) if name == "seconds" else _traffic(row.cells) for row in rows]
        for line, parts in zip(numbers, found, strict=True):
            line += map(shown, parts)
        bars = []
        for row, parts in zip(rows, found, strict=True):
            known = [part for part in parts if part is not None]
            if len(known) == len(parts):
                bars.append(Bar(row.label, shown(sum(known)), [*[0.0] * first, *known]))
        if bars:
            most = max(bars, key=lambda bar: sum(bar.parts))
            point = f"Most with {most.label}: {most.note}."
            told = Words(f"{view.prefix}cost-{name}", f"{label} of each row", point)
            largest = sum(most.parts)
            charts.append(
                bar_chart(told, bars, width=_PANEL, largest=largest, label=label, names=_NAMES)
            )
    title = "Time and traffic"
    return Figure(
        title,
        "The sums over all clients, one after another, the mean over seeds.",
        charts,
        [Table(f"{title}, in numbers", ["strategy", *_PARTS], numbers, folded=True)],
        bar_legend(f"{view.prefix}cost", _PARTS),
        layout="pairs",
    )


def _peers(rows: Sequence[Row]) -> Table:
    lines = []
    for row in rows:
        costs = [cell.summary["cost"] for cell in row.cells]
        chosen = row.cells[0].summary.get("chosen") or {}
        settings = ", ".join(f"{key} = {value}" for key, value in chosen.items())
        parameters = words.count(_whole(_mean(costs, "parameters")))
        line = [row.label, parameters, words.seconds(_mean(costs, "seconds"))]
        lines.append([*line, settings or words.NOTHING])
    caption = (
        "Peers, which are no language models; settings are those that validation chose for the "
        "first seed, and seconds include the search"
    )
    columns = ["peer", "parameters", "seconds", "settings"]
    return Table(caption, columns, lines, words=(3,))


def _seconds(cells: Sequence[Cell]) -> list[float | None]:
    """Return the mean seconds of a run's clients, waits left out, and of its trunk."""

    def own(cell: Cell) -> float | None:
        lines = [line for line in cell.rounds if "failed" not in line]
        values = [(line.get("seconds"), line.get("waiting_seconds")) for line in lines]
        known = [a - b for a, b in values if a is not None and b is not None]
        return sum(known) if known and len(known) == len(values) else None

    def trunk(cell: Cell) -> float | None:
        values = [line.get("server_seconds") for line in cell.rounds if "failed" not in line]
        known = [value for value in values if value is not None]
        return sum(known) if known and len(known) == len(values) else None

    return [_average(cells, own), _average(cells, trunk)]


def _traffic(cells: Sequence[Cell]) -> list[float | None]:
    """Return the mean bytes up and down."""
    costs = [cell.summary["cost"] for cell in cells]
    return [_mean(costs, f"bytes_{way}") for way in ("up", "down")]


def _bytes(value: float | None) -> str:
    return words.size(_whole(value))


def _tokens(cell: Cell) -> float | None:
    values = [client.get("tokens") for client in cell.summary["clients"]]
    return None if None in values else float(sum(values))


def _average(cells: Sequence[Cell], of: Callable[[Cell], float | None]) -> float | None:
    values = [of(cell) for cell in cells]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _mean(costs: Sequence[dict[str, Any]], key: str) -> float | None:
    values = [cost.get(key) for cost in costs]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)
