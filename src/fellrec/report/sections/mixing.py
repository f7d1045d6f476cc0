"""What the clients took from each other: attention (M1), warmth (M2), weights (M3)."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from fellrec.balance.attention import ACTIVE_SPREAD
from fellrec.report import words
from fellrec.report.blocks import Block, Figure, Section, Table, Text
from fellrec.report.charts import (
    Grid,
    Mark,
    Row,
    Shade,
    Words,
    heat_legend,
    heat_map,
    interval_chart,
)
from fellrec.report.charts.scale import extent
from fellrec.report.reading import FinishedRun, RoundLog

SHOWN = 50
"""Clients in a matrix, in the order of the round; more would not be seen."""

_NUMBERED = 9  # clients whose matrix has its numbers in the cells
_LEAST_RANGE = 0.1  # of the shades of attention: what is nearly even should look even
_WIDE, _NARROW, _PANEL = 900.0, 330.0, 316.0


def section(run: FinishedRun) -> Section:
    """Show the matrices by round, and how far clients opened to each other."""
    heading = "What they took from each other"
    if len(run.names) < 2:
        return Section("mixing", heading, [Text(["One client alone: there is nothing to mix."])])
    if not run.rounds:
        return Section("mixing", heading, [Text(["No round was run, so nothing was mixed."])])
    blocks: list[Block] = [
        figure
        for figure in (attention(run), _spread(run), warmth(run), _weights(run))
        if figure is not None
    ]
    return Section("mixing", heading, blocks)


def pick(rounds: Sequence[RoundLog], count: int) -> list[RoundLog]:
    """Choose at most `count` rounds, evenly apart, the first and the last among them."""
    if len(rounds) <= count:
        return list(rounds)
    places = {round(index * (len(rounds) - 1) / (count - 1)) for index in range(count)}
    return [rounds[place] for place in sorted(places)]


def attention(run: FinishedRun, *, prefix: str = "") -> Figure | None:
    """Draw the matrices of M1; None where none was logged. prefix: of the charts' names."""
    shown = [each for each in run.rounds if each.matrix("attention")]
    values = [value for each in shown for value in _off_diagonal(each)]
    ends = extent(values)
    if ends is None:
        return None
    high = min(1.0, max(ends[1], ends[0] + _LEAST_RANGE))
    shade = Shade(min(ends[0], high - _LEAST_RANGE), high)
    inactive = [each.number for each in shown if not each.active]
    if len(inactive) == len(shown):
        badge, said = "attention inactive", "In no round did attention tell the clients apart"
    elif inactive:
        badge = f"attention inactive in {words.several(len(inactive), 'round')}"
        numbers = ", ".join(map(str, inactive))
        said = f"In round {numbers} attention did not tell the clients apart"
    else:
        badge, said = "", "Attention told the clients apart in every round"
    lead = (
        f"{said}: between different clients it ran from {ends[0]:.3f} to {ends[1]:.3f}. It says "
        "how alike two clients' adapters are; the diagonal, always 1, is left open."
    )
    heading = "Attention between clients (M1)"
    return _matrices(run, shown, "attention", heading, lead, shade, badge, prefix)


def _weights(run: FinishedRun) -> Figure | None:
    shown = [each for each in run.rounds if each.matrix("weights")]
    own = [
        value
        for each in shown
        for index, row in enumerate(each.matrix("weights"))
        if (value := row[index]) is not None
    ]
    values = [value for each in shown for row in each.matrix("weights") for value in row]
    ends = extent(values)
    if ends is None or not own:
        return None
    lead = (
        "Each row is the mixture that a client got, of the models in the columns; a row sums to 1. "
        f"Of its own model a client kept between {min(own):.2f} and {max(own):.2f}."
    )
    shade = Shade(0.0, max(ends[1], 0.01))
    return _matrices(run, shown, "weights", "Weights of the mixtures (M3)", lead, shade, "")


def _matrices(
    run: FinishedRun,
    logged: Sequence[RoundLog],
    key: str,
    heading: str,
    lead: str,
    shade: Shade,
    badge: str,
    prefix: str = "",
) -> Figure:
    """Draw a matrix for each round, or for a choice of them where there are many."""
    large = len(run.names) > _NUMBERED
    shown = pick(logged, 3 if large else 6)
    charts, tables = [], []
    for each in shown:
        names, cells = _cells(run, each, key)
        state = "" if key != "attention" or each.active else " · inactive"
        told = Words(
            f"{prefix}{key}-{each.number}", f"{heading}, round {each.number}", _point(names, cells)
        )
        grid = Grid(names, names, cells)
        label = f"round {each.number}{state}"
        charts.append(heat_map(told, grid, shade, width=_PANEL, label=label))
        rows = [
            [name, *(words.fixed(value, 4) for value in row)]
            for name, row in zip(names, cells, strict=True)
        ]
        caption = f"{heading}, round {each.number}, in numbers"
        tables.append(Table(caption, ["client", *names], rows, folded=True))
    if large:
        lead += " Columns are in the order of the rows."
    if len(shown) < len(logged):
        lead += f" {len(shown)} of {len(logged)} rounds are drawn."
    if max(len(each.lines) for each in shown) > SHOWN:
        lead += f" The first {SHOWN} clients of a round are drawn."
    legend = heat_legend(shade, "weight" if key == "weights" else "attention")
    return Figure(heading, lead, charts, tables, legend, badge=badge)


def _spread(run: FinishedRun) -> Figure | None:
    found = [(each, each.spread) for each in run.rounds]
    rounds = [
        (each, spread) for each, spread in found if spread is not None and len(each.lines) > 1
    ]
    if not rounds:
        return None
    chosen = {each.number for each in pick([each for each, _ in rounds], 20)}
    charts = []
    for width, size in ((_WIDE, "wide"), (_NARROW, "narrow")):
        rows = [
            Row(
                f"round {each.number}",
                f"{spread[2] - spread[0]:.4f}" if each.active else "inactive",
                [Mark(spread[1], spread[0], spread[2])],
            )
            for each, spread in rounds
            if each.number in chosen
        ]
        last = rounds[-1][1]
        told = Words(
            f"spread-{size}",
            "Spread of attention by round",
            f"In the last round attention ran from {last[0]:.4f} to {last[2]:.4f}.",
        )
        charts.append(interval_chart(told, rows, width=width, zero=False))
    table = Table(
        "Spread of attention by round, in numbers",
        ["round", "least", "median", "largest", "state"],
        [
            [
                str(each.number),
                *(f"{value:.4f}" for value in spread),
                "active" if each.active else "inactive",
            ]
            for each, spread in rounds
        ],
        words=(4,),
        folded=True,
    )
    return Figure(
        "Spread of attention by round",
        "From the least to the largest attention between two clients, with the median; at the "
        f"right the difference. Below {ACTIVE_SPREAD} attention is inactive: as good as uniform.",
        charts[:1],
        [table],
        narrow=charts[1:],
        layout="full",
    )


def warmth(run: FinishedRun, *, prefix: str = "") -> Figure | None:
    """Draw each client's warmth; None where none was logged. prefix: of the charts' names."""
    names = run.names[:SHOWN]
    chosen = pick(run.rounds, 20)
    values = [[each.value(name, "warmth") for each in chosen] for name in names]
    ends = extent(value for row in values for value in row)
    if ends is None:
        return None
    columns = [str(each.number) for each in chosen]
    charts: list[Markup] = []
    point = f"Warmth runs from {ends[0]:.2f} to {ends[1]:.2f}."
    for width, size in ((_WIDE, "wide"), (_NARROW, "narrow")):
        told = Words(f"{prefix}warmth-{size}", "Warmth of each client by round", point)
        grid = Grid(names, columns, values)
        charts.append(heat_map(told, grid, Shade(0.0, 1.0), width=width, label="round"))
    rows = [
        [name, *(words.fixed(each.value(name, "warmth"), 4) for each in run.rounds)]
        for name in run.names
    ]
    header = ["client", *(f"round {each.number}" for each in run.rounds)]
    return Figure(
        "Warmth of each client by round (M2)",
        f"{point} At 0 a client keeps its own model; at 1 it takes in the others' as far as "
        "attention says. A client that struggles with its own data opens more slowly.",
        charts[:1],
        [Table("Warmth of each client by round, in numbers", header, rows, folded=True)],
        heat_legend(Shade(0.0, 1.0), "warmth"),
        layout="full",
        narrow=charts[1:],
    )


def _cells(
    run: FinishedRun, each: RoundLog, key: str
) -> tuple[list[str], list[list[float | None]]]:
    """Return names and values to draw; attention's diagonal is left open.

    All clients, open where one is missing; where that would be too many, those of the round.
    """
    names = run.names if len(run.names) <= SHOWN else list(each.lines)[:SHOWN]
    places = {name: place for place, name in enumerate(each.lines)}
    matrix = each.matrix(key)

    def value(row: str, column: str) -> float | None:
        if row not in places or column not in places or (row == column and key == "attention"):
            return None
        return matrix[places[row]][places[column]]

    return names, [[value(row, column) for column in names] for row in names]


def _off_diagonal(each: RoundLog) -> list[float | None]:
    return [
        value
        for row, values in enumerate(each.matrix("attention"))
        for column, value in enumerate(values)
        if row != column
    ]


def _point(names: Sequence[str], cells: Sequence[Sequence[float | None]]) -> str:
    """Say where the largest number between two clients stands."""
    found = [
        (value, names[row], names[column])
        for row, values in enumerate(cells)
        for column, value in enumerate(values)
        if value is not None and row != column
    ]
    if not found:
        return "Only one client completed the round."
    most, least = max(found), min(found)
    return (
        f"Largest between {most[1]} and {most[2]}: {most[0]:.3f}. "
        f"Least between {least[1]} and {least[2]}: {least[0]:.3f}."
    )
