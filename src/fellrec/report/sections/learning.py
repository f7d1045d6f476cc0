"""How the clients learned, round by round."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from fellrec.report import words
from fellrec.report.blocks import Block, Figure, Section, Table, Text
from fellrec.report.charts import Line, LineFrame, Words, line_chart, line_legend
from fellrec.report.reading import FinishedRun

PANELS = 50
"""Clients that get a panel, largest first; the tables have all."""

_LARGE = 12  # more clients than these get small panels
_BEFORE, _AFTER = "valid_before_mixing", "valid"


def section(run: FinishedRun) -> Section:
    """Show validation scores and training losses."""
    heading = "How they learned"
    if not run.rounds:
        said = "No round was run: the base was scored as it comes, so there is nothing to follow."
        return Section("learning", heading, [Text([said])])
    blocks: list[Block] = [validation(run), _losses(run)]
    if any(each.failed for each in run.rounds):
        blocks.append(_failures(run))
    return Section("learning", heading, blocks)


def validation(run: FinishedRun, *, prefix: str = "", most: int = PANELS) -> Figure:
    """Draw each client's validation scores. prefix: of the charts' names. most: panels."""
    metric = words.metric(run.metric)
    before = any(value is not None for each in run.rounds for value in each.values(_BEFORE))
    every = [
        value for key in (_BEFORE, _AFTER) for each in run.rounds for value in each.values(key)
    ]
    frame = _frame(run, every)
    best = {str(client["id"]): client for client in run.clients}
    mean = _mean(run, _AFTER)
    charts = []
    for index, name in enumerate(run.names[:most]):
        lines = [Line(_points(run, name, _AFTER))]
        if before:
            lines.append(Line(_points(run, name, _BEFORE), "second"))
        if len(run.names) > 1:
            lines.append(Line(mean, "context"))
        top = best.get(name, {})
        reached, at = top.get("valid"), top.get("best_round") or None
        note = words.score(reached) if frame.width < 200 else _best_note(reached, at)
        told = Words(
            f"{prefix}valid-{index}",
            f"Validation {metric} of client {name} by round",
            _course(run, name, metric) + (f" Best in round {at}." if at else ""),
        )
        charts.append(
            line_chart(
                told,
                frame,
                lines,
                label=name,
                note="" if reached is None else note,
                best=at,
                gone=[each.number for each in run.rounds if name in each.failed],
            )
        )
    alone = run.config.balance.strategy == "local"
    entries = [("main", "the client's model" if alone else "the client's mixed model")]
    entries += [("second", "its model before mixing")] if before else []
    entries += [("context", "mean of all clients")] if len(run.names) > 1 else []
    what = "Each client's own" if alone else "The mixed"
    lead = f"{_gain(run, metric)} {what} model is scored before it trains on.{_more(run, most)}"
    columns = ["client", "round", "before mixing", metric]
    rows = [
        [name, str(each.number), words.score(each.value(name, _BEFORE)), _or_failed(run, name, at)]
        for name in run.names
        for at, each in enumerate(run.rounds)
    ]
    return Figure(
        heading=f"Validation {metric} by round",
        lead=lead,
        charts=charts,
        legend=line_legend(entries, best=True),
        layout=_layout(run),
        tables=[Table(f"Validation {metric} by client and round", columns, rows, folded=True)],
    )


def _losses(run: FinishedRun) -> Figure:
    frame = _frame(run, [value for each in run.rounds for value in each.values("loss")])
    mean = _mean(run, "loss")
    charts = []
    for index, name in enumerate(run.names[:PANELS]):
        points = _points(run, name, "loss")
        known = [value for _, value in points if value is not None]
        told = Words(
            f"loss-{index}",
            f"Training loss of client {name} by round",
            f"From {known[0]:.3f} to {known[-1]:.3f}." if known else "It completed no round.",
        )
        lines = [Line(points), *([Line(mean, "context")] if len(run.names) > 1 else [])]
        note = f"{known[-1]:.3f}" if known else ""
        charts.append(line_chart(told, frame, lines, label=name, note=note))
    entries = [("main", "the client"), ("context", "mean of all clients")]
    ends = [value for _, value in mean if value is not None]
    lead = (
        f"The mean over clients went from {ends[0]:.3f} to {ends[-1]:.3f}." if ends else "No loss."
    )
    rows = [
        [name, *(words.fixed(each.value(name, "loss"), 4) for each in run.rounds)]
        for name in run.names
    ]
    columns = ["client", *(f"round {each.number}" for each in run.rounds)]
    return Figure(
        heading="Training loss by round",
        lead=f"{lead} It is the mean over a round's targets, of each client's own data; its last "
        "value stands above.",
        charts=charts,
        legend=line_legend(entries) if len(run.names) > 1 else Markup(""),
        layout=_layout(run),
        tables=[Table("Training loss by client and round", columns, rows, folded=True)],
    )


def _failures(run: FinishedRun) -> Table:
    rows = [
        [str(each.number), name, reason]
        for each in run.rounds
        for name, reason in each.failed.items()
    ]
    return Table("Rounds that a client failed", ["round", "client", "reason"], rows, words=(1, 2))


def _layout(run: FinishedRun) -> str:
    return "small" if len(run.names) > _LARGE else "panels"


def _more(run: FinishedRun, most: int) -> str:
    hidden = len(run.names) - most
    return f" The {most} largest clients are drawn; the table has all." if hidden > 0 else ""


def _frame(run: FinishedRun, values: Sequence[float | None]) -> LineFrame:
    rounds = run.rounds[0].number, run.rounds[-1].number
    return LineFrame.around(values, rounds, small=len(run.names) > _LARGE)


def _points(run: FinishedRun, name: str, key: str) -> list[tuple[int, float | None]]:
    return [(each.number, each.value(name, key)) for each in run.rounds]


def _mean(run: FinishedRun, key: str) -> list[tuple[int, float | None]]:
    """Average over the clients that have a value in a round, each alike."""
    points: list[tuple[int, float | None]] = []
    for each in run.rounds:
        known = [value for value in each.values(key) if value is not None]
        points.append((each.number, sum(known) / len(known) if known else None))
    return points


def _best_note(reached: float | None, at: int | None) -> str:
    return f"{words.score(reached)} in round {at}" if at else words.score(reached)


def _course(run: FinishedRun, name: str, metric: str) -> str:
    known = [value for _, value in _points(run, name, _AFTER) if value is not None]
    if not known:
        return "It has no validation score."
    return f"{metric} goes from {words.score(known[0])} to {words.score(known[-1])}."


def _gain(run: FinishedRun, metric: str) -> str:
    ends = [value for _, value in _mean(run, _AFTER) if value is not None]
    if not ends:
        return "No client has a validation score."
    if len(ends) == 1:
        return f"The mean over clients is {words.score(ends[0])}."
    return f"The mean over clients went from {words.score(ends[0])} to {words.score(ends[-1])}."


def _or_failed(run: FinishedRun, name: str, at: int) -> str:
    each = run.rounds[at]
    return "failed" if name in each.failed else words.score(each.value(name, _AFTER))
