"""How well each client is served, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from fellrec.evaluation.bootstrap import Interval
from fellrec.report import words
from fellrec.report.blocks import Figure, Section, Table
from fellrec.report.charts import Mark, Row, Words, interval_chart, interval_legend
from fellrec.report.reading import FinishedRun
from fellrec.report.sections.headline import best_and_worst

SHOWN = 50
"""Clients that are drawn: of more, the best and the worst."""

_WIDE, _NARROW = 900.0, 330.0


@dataclass(frozen=True)
class Reference:
    """Another run's scores, shown beside this one's: of the same clients, users and metric.

    name: such as "local only". clients: by client. overall: over all users.
    """

    name: str
    clients: Mapping[str, Interval]
    overall: Interval | None = None


@dataclass(frozen=True)
class Standing:
    """One row of the picture. intervals: this run's, then each reference's; None is unknown.

    value: this run's score where there is no interval.
    """

    name: str
    users: int
    value: float | None
    intervals: Sequence[Interval | None] = field(default_factory=tuple)

    def marks(self) -> list[Mark]:
        """Return what can be drawn."""
        found = [
            Mark(each.mean, each.low, each.high, series)
            for series, each in enumerate(self.intervals)
            if each is not None
        ]
        if self.value is not None and self.intervals[0] is None:
            found.insert(0, Mark(self.value))
        return found


def section(run: FinishedRun, references: Sequence[Reference] = ()) -> Section:
    """Show each client's test score."""
    standings = _standings(run, references)
    blocks = [_figure(run, standings, references), _client_table(run)]
    return Section("clients", "How well each client is served", blocks)


def interval_figures(
    name: str, title: str, description: str, standings: Sequence[Standing], reference: float | None
) -> tuple[Markup, Markup]:
    """Draw the picture for a wide screen and for a narrow one; the first row sums up the others."""
    charts = []
    for width, size in ((_WIDE, "wide"), (_NARROW, "narrow")):
        rows = [
            Row(
                each.name,
                words.score(each.value),
                each.marks(),
                strong=index == 0 and len(standings) > 1,
            )
            for index, each in enumerate(standings)
        ]
        told = Words(f"{name}-{size}", title, description)
        charts.append(interval_chart(told, rows, width=width, reference=reference))
    return charts[0], charts[1]


def _standings(run: FinishedRun, references: Sequence[Reference]) -> list[Standing]:
    metric = run.metric
    ranked = sorted(
        run.clients, key=lambda client: (client.get(metric) is None, -(client.get(metric) or 0.0))
    )
    found = []
    if len(ranked) > 1:
        every = [run.overall(metric), *(each.overall for each in references)]
        scored = sum(client["scored"] or 0 for client in ranked)
        found.append(Standing("all users", scored, run.summary["overall"].get(metric), every))
    for client in ranked:
        name = str(client["id"])
        own = [run.interval(name, metric), *(each.clients.get(name) for each in references)]
        found.append(Standing(name, client["scored"] or 0, client.get(metric), own))
    return found


def _ends(standings: Sequence[Standing]) -> tuple[Sequence[Standing], int]:
    """Keep the best and the worst of many clients, and say how many that leaves out."""
    hidden = len(standings) - 1 - SHOWN
    if hidden <= 0:
        return standings, 0
    return [*standings[: 1 + SHOWN // 2], *standings[-(SHOWN // 2) :]], hidden


def _figure(
    run: FinishedRun, standings: Sequence[Standing], references: Sequence[Reference]
) -> Figure:
    metric, several = words.metric(run.metric), len(run.clients) > 1
    pair = best_and_worst(run)
    if pair:
        ends = [f"{client['id']} with {words.score(client[run.metric])}" for client in pair]
        point = f"From {ends[0]} down to {ends[1]}."
    else:
        point = f"{metric} is {words.score(standings[0].value)}."
    overall = run.summary["overall"].get(run.metric) if several else None
    drawn, hidden = _ends(standings)
    wide, narrow = interval_figures(
        "balance", f"Test {metric} of each client", point, drawn, overall
    )
    series = [str(run.summary["strategy"]), *(each.name for each in references)]
    columns = ["client", "users"]
    for name in series:
        prefix = f"{name}: " if references else ""
        columns += [f"{prefix}{metric}", f"{prefix}95 % interval"]
    rows = []
    for each in standings:
        cells = [each.name, words.whole(each.users)]
        for index, interval in enumerate(each.intervals):
            value = each.value if index == 0 else (interval.mean if interval else None)
            cells += [words.score(value), words.between(interval)]
        rows.append(cells)
    lead = point
    sure = bool(run.scores) or bool(references)
    if sure:
        lead += " The bars are 95 % intervals over its users"
        lead += ": where they overlap, two clients may well be alike." if several else "."
    if hidden:
        lead += (
            f" {hidden:,} clients between the best and the worst are left out; the table has all."
        )
    line = "all users of this run" if overall is not None else ""
    return Figure(
        heading=f"Test {metric}",
        lead=lead,
        charts=[wide],
        narrow=[narrow],
        layout="full",
        legend=interval_legend(series, reference=line, sure=sure),
        tables=[Table(f"Test {metric} of each client, in numbers", columns, rows, folded=True)],
    )


def _client_table(run: FinishedRun) -> Table:
    metrics = list(run.summary["overall"])
    columns = ["client", "users", "scored", "targets an epoch", "tokens read", "best round"]
    columns += [f"validation {words.metric(run.metric)}", *map(words.metric, metrics)]
    valid = (run.summary.get("valid") or {}).get(run.metric)

    def total(key: str) -> str:
        values = [client.get(key) for client in run.clients]
        known = [int(value) for value in values if value is not None]
        return words.whole(sum(known) if len(known) == len(values) else None)

    rows = [
        [
            "all",
            *(total(key) for key in ("users", "scored", "examples", "tokens")),
            words.NOTHING,
            words.score(valid),
            *(words.score(run.summary["overall"][name]) for name in metrics),
        ]
    ]
    for client in run.clients:
        rows.append(
            [
                str(client["id"]),
                *(words.whole(client.get(key)) for key in ("users", "scored", "examples")),
                words.whole(client.get("tokens")),
                words.whole(client.get("best_round")),
                words.score(client.get("valid")),
                *(words.score(client.get(name)) for name in metrics),
            ]
        )
    return Table("The clients: data, training and test scores", columns, rows, strong=1)
