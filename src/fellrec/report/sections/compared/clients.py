"""How evenly each row serves the clients, between what they reach alone and all in one place."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from fellrec.comparison.rows import ClientScore
from fellrec.report import words
from fellrec.report.blocks import Block, Figure, Folded, Table, Text
from fellrec.report.charts import (
    Grid,
    Mark,
    Row,
    Shade,
    Words,
    heat_legend,
    heat_map,
    interval_chart,
    interval_legend,
)
from fellrec.report.sections.compared.picture import NARROW, WIDE, picture
from fellrec.report.sections.compared.view import View, known, mark, plain, share, signed

PANELS = 9
"""Clients that get a panel each; more are drawn as one map."""
SHOWN = 50
"""Clients in a map, as many as can be seen."""

_PANEL = 316.0


def blocks(view: View) -> list[Block]:
    """Show each client's scores, the first seed's at once, and the figures over clients."""
    seeds = sorted({client.seed for client in view.table.clients})
    if not seeds:
        return [Text(["No row with a result divides the users into clients."])]
    first, *others = seeds
    found: list[Block] = [_figure(view, first)]
    found += [Folded(f"The clients of seed {seed}", [_figure(view, seed)]) for seed in others]
    found.append(_table(view))
    found += [figure for figure in (_worst(view), _gap(view)) if figure is not None]
    return found


def _figure(view: View, seed: int) -> Figure:
    clients = [client for client in view.table.clients if client.seed == seed]
    labels = [row.label for row in view.scored if row.label in clients[0].scores]
    several = f", seed {seed}" if len(view.seeds) > 1 else ""
    heading = f"Test {view.metric} of each client{several}"
    floor, ceiling = view.file.floor, view.file.ceiling
    bounds = [label for label in (floor, ceiling) if label in labels]
    lead = f"{words.several(len(clients), 'client')}, largest first, on one scale."
    if bounds:
        named = {floor: f"{floor} is what a client reaches alone", ceiling: f"{ceiling} what all"}
        lead += f" {'; '.join(named[label] for label in bounds)}"
        lead += " histories in one place give its users." if ceiling in bounds else "."
    columns = ["strategy", *(f"{client.name} ({client.users:,} users)" for client in clients)]
    rows = [[label, *(plain(client.scores.get(label)) for client in clients)] for label in labels]
    tables = [Table(f"{heading}, in numbers", columns, rows, folded=True)]
    if len(clients) > PANELS:
        return _map(view, seed, clients, labels, heading, lead, tables)
    legend = interval_legend(
        ["mean of the client's users, 95 % interval"],
        reference=floor if floor in bounds else "",
        second=ceiling if ceiling in bounds else "",
    )
    return Figure(heading, lead, _panels(view, seed, clients, labels), tables, legend)


def _panels(
    view: View, seed: int, clients: Sequence[ClientScore], labels: Sequence[str]
) -> list[Markup]:
    every = [
        end
        for client in clients
        for label in labels
        if known(client.scores.get(label))
        for end in client.scores[label].interval
    ]
    charts = []
    for place, client in enumerate(clients):
        rows = [
            Row(label, words.score(client.scores[label].interval.mean), mark(client.scores[label]))
            for label in labels
            if known(client.scores.get(label))
        ]
        best = max(rows, key=lambda row: row.marks[0].value)
        told = Words(
            f"{view.prefix}clients-{seed}-{place}",
            f"Test {view.metric} of client {client.name} by strategy",
            f"Highest with {best.label}: {best.note}.",
        )
        ends = [_mean(client, label) for label in (view.file.floor, view.file.ceiling)]
        charts.append(
            interval_chart(
                told,
                rows,
                width=_PANEL,
                reference=ends[0],
                second=ends[1],
                span=every,
                stacked=True,
                label=f"{client.name} · {words.several(client.users, 'user')}",
            )
        )
    return charts


def _map(
    view: View,
    seed: int,
    clients: Sequence[ClientScore],
    labels: Sequence[str],
    heading: str,
    lead: str,
    tables: Sequence[Table],
) -> Figure:
    shown = clients[:SHOWN]
    if len(clients) > SHOWN:
        lead += f" The {SHOWN} largest are drawn; the table has all."
    values = [[_mean(client, label) for client in shown] for label in labels]
    top = max((value for row in values for value in row if value is not None), default=0.0)
    shade = Shade(0.0, max(top, 0.01))
    grid = Grid(labels, [client.name for client in shown], values, decimals=2)
    charts = []
    for width, size in ((WIDE, "wide"), (NARROW, "narrow")):
        name = f"{view.prefix}clients-{seed}-{size}"
        told = Words(name, f"{heading} by strategy", f"The highest is {top:.4f}.")
        charts.append(heat_map(told, grid, shade, width=width, label="client"))
    legend = heat_legend(shade, view.metric)
    return Figure(heading, lead, charts[:1], tables, legend, layout="full", narrow=charts[1:])


def _mean(client: ClientScore, label: str) -> float | None:
    value = client.scores.get(label)
    return value.interval.mean if value is not None and known(value) else None


def _table(view: View) -> Table:
    reference = view.file.reference
    floor = view.file.floor if view.table.row(view.file.floor) is not None else ""
    columns = ["strategy", f"worst client's {view.metric}"]
    columns += [f"over {reference}'s worst"] if reference else []
    if floor:
        columns += [f"over {floor}'s worst", f"least gain of a client over {floor}"]
    columns += ["relative gap", "gap by chance"]
    columns += [f"share of {reference}'s gap"] if reference else []
    columns.append("Jain's index")
    rows = []
    for row in view.scored:
        if row.worst is None:
            continue
        cells = [row.label, plain(row.worst, 3)]
        cells += [signed(row.worst_over_reference, 3)] if reference else []
        if floor:
            cells += [signed(row.worst_over_floor, 3), signed(row.over_floor, 3)]
        cells.append(plain(row.gap, 2))
        cells.append(words.fixed(row.gap_by_chance, 2))
        cells += [share(row.gap_of_reference)] if reference else []
        rows.append([*cells, plain(row.jain, 2)])
    caption = (
        "How evenly clients are served, over all seeds, below each figure its 95 % interval; what "
        "is clear is bold, each row judged by itself"
    )
    return Table(caption, columns, rows)


def _worst(view: View) -> Figure | None:
    rows, numbers = [], []
    for row in view.scored:
        if row.worst is not None and known(row.worst):
            note = words.score(row.worst.interval.mean)
            rows.append(Row(row.label, note, mark(row.worst)))
            numbers.append([row.label, note, words.between(row.worst.interval)])
    if not rows:
        return None
    floor = view.table.row(view.file.floor)
    alone = None if floor is None else floor.worst
    best = max(rows, key=lambda row: row.marks[0].value)
    point = f"Highest with {best.label}: {best.note}."
    title = f"{view.metric} of the worst client"
    columns = ["strategy", view.metric, "95 % interval"]
    return picture(
        Words(f"{view.prefix}worst", title, point),
        rows,
        Table(f"{title}, in numbers", columns, numbers, folded=True),
        lead=f"{point} Which client is worst may differ from row to row.",
        legend=interval_legend(
            ["the worst client"], reference=view.file.floor if alone is not None else ""
        ),
        reference=None if alone is None else alone.interval.mean,
    )


def _gap(view: View) -> Figure | None:
    rows, numbers = [], []
    for row in view.scored:
        if row.gap is not None and known(row.gap):
            chance = row.gap_by_chance
            marks = mark(row.gap) + ([] if chance is None else [Mark(chance, series=1)])
            rows.append(Row(row.label, f"{row.gap.interval.mean:.2f}", marks))
            numbers.append([row.label, plain(row.gap, 2), words.fixed(chance, 2)])
    if not rows:
        return None
    least = min(rows, key=lambda row: row.marks[0].value)
    point = f"Narrowest with {least.label}: {least.note}."
    title = "Relative gap between the best and the worst client"
    columns = ["strategy", "relative gap", "by chance"]
    return picture(
        Words(f"{view.prefix}gap", title, point),
        rows,
        Table(f"{title}, in numbers", columns, numbers, folded=True),
        lead=f"{point} Clients that are all served alike would show the gap by chance, on average: "
        "only what lies well beyond it is imbalance.",
        legend=interval_legend(["gap, 95 % interval", "gap by chance alone"]),
    )
