"""What clients took from each other, in the rows that give each client a mixture of its own."""

from __future__ import annotations

from fellrec.comparison.rows import Row
from fellrec.report import words
from fellrec.report.blocks import Block, Figure, Folded, Table, Text
from fellrec.report.charts import Grid, Shade, Words, heat_legend, heat_map
from fellrec.report.reading import FinishedRun, RoundLog
from fellrec.report.sections import mixing
from fellrec.report.sections.compared.picture import NARROW, WIDE
from fellrec.report.sections.compared.view import View

_ROUNDS = 20  # columns of a map

Personal = list[tuple[Row, FinishedRun]]


def blocks(view: View) -> list[Block]:
    """Show all rows that mix personally side by side, and each one's rounds when opened."""
    found = [(row, run) for row, run in view.runs() if any(map(is_personal, run.rounds))]
    if not found:
        return [Text(["No row with a result gave each client a mixture of its own."])]
    seed = f", seed {view.seeds[0]}" if len(view.seeds) > 1 else ""
    shown: list[Block] = [_warmth(view, found), _spread(view, found)]
    each: list[Block] = []
    for place, (row, run) in enumerate(found):
        prefix = f"{view.prefix}m{place}-"
        figures = [mixing.attention(run, prefix=prefix), mixing.warmth(run, prefix=prefix)]
        inner = [figure for figure in figures if figure is not None]
        if inner:
            each.append(Folded(row.label, inner))
    return [*shown, Folded(f"Attention and warmth between the clients of each row{seed}", each)]


def is_personal(log: RoundLog) -> bool:
    """Return whether clients got something from others, and not all the same."""
    weights = log.matrix("weights")
    mixed = any(
        value for row, values in enumerate(weights) for at, value in enumerate(values) if at != row
    )
    return mixed and any(values != weights[0] for values in weights)


def _warmth(view: View, found: Personal) -> Figure:
    lead = (
        "At 0 clients keep their own models; at 1 they take in the others' as far as attention "
        "says. Warmth can differ between clients: each row's clients are below."
    )
    values = {row.label: [_mean_warmth(log) for log in run.rounds] for row, run in found}
    title = "Warmth by round, the mean over clients (M2)"
    return _map(view, "warmth", title, lead, values, Shade(0.0, 1.0), 2)


def _spread(view: View, found: Personal) -> Figure:
    values = {row.label: [_range(log) for log in run.rounds] for row, run in found}
    idle = [row.label for row, run in found if not any(log.active for log in run.rounds)]
    lead = (
        "The largest attention between two clients less the smallest: near 0 attention is as good "
        "as uniform."
    )
    if idle:
        lead += f" It told nobody apart in any round with {', '.join(idle)}."
    top = max((value for row in values.values() for value in row if value is not None), default=0.0)
    title = "Spread of attention by round (M1)"
    return _map(view, "spread", title, lead, values, Shade(0.0, max(top, 0.1)), 2)


def _map(
    view: View,
    name: str,
    title: str,
    lead: str,
    values: dict[str, list[float | None]],
    shade: Shade,
    decimals: int,
) -> Figure:
    rounds = max(map(len, values.values()))
    padded = [row + [None] * (rounds - len(row)) for row in values.values()]
    step = -(-rounds // _ROUNDS)
    places = range(0, rounds, step)
    columns = [str(place + 1) for place in places]
    grid = Grid(
        list(values), columns, [[row[place] for place in places] for row in padded], decimals
    )
    known = [value for row in padded for value in row if value is not None]
    said = f"From {min(known):.2f} to {max(known):.2f}." if known else "Nothing was logged."
    charts = []
    for width, size in ((WIDE, "wide"), (NARROW, "narrow")):
        told = Words(f"{view.prefix}mixed-{name}-{size}", title, said)
        charts.append(heat_map(told, grid, shade, width=width, label="round"))
    numbers = [
        [label, *(words.fixed(value, 4) for value in row)]
        for label, row in zip(values, padded, strict=True)
    ]
    header = ["strategy", *(f"round {number}" for number in range(1, rounds + 1))]
    return Figure(
        title,
        lead,
        charts[:1],
        [Table(f"{title}, in numbers", header, numbers, folded=True)],
        heat_legend(shade, name),
        layout="full",
        narrow=charts[1:],
    )


def _mean_warmth(log: RoundLog) -> float | None:
    known = [value for value in log.values("warmth") if value is not None]
    return sum(known) / len(known) if known else None


def _range(log: RoundLog) -> float | None:
    return None if log.spread is None else log.spread[2] - log.spread[0]
