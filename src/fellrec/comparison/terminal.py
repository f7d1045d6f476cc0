"""A comparison in the terminal: what goes on while its cells are made, and the table at the end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text

from fellrec.comparison.plan import Planned
from fellrec.comparison.rows import Compared, Row, Table
from fellrec.comparison.running import Step, Told
from fellrec.comparison.states import ALL, computed_on, vouched_for
from fellrec.comparison.statistics import Estimate
from fellrec.comparison.writing import seeds_text
from fellrec.console import is_live, make_table, plain
from fellrec.results.markdown import NOTHING, metric_name

_LEGEND = "* clear: leaves out 0, in all seeds; differences of scores judged together by column"
_WIDE = Console(width=1000)  # to measure with


@contextmanager
def watching(console: Console, cells: int) -> Iterator[Told]:
    """Lend a function that says what happens to cells; cells: how many are to be made.

    A line when one ends; what is being worked on, below, where lines can be drawn over.
    """
    working: dict[str, str] = {}
    ended = 0
    with console.status("") if is_live(console) else _nothing() as status:

        def told(planned: Planned, step: Step, text: str) -> None:
            nonlocal ended
            name = _name(planned)
            if step in ("begins", "goes on"):
                working[planned.key] = f"{name} ({text})" if text else name
            else:
                working.pop(planned.key, None)
                ended += 1
                reason = f": {plain(text)}" if text else ""
                console.print(f"{ended} of {cells}  {name} {step}{reason}", soft_wrap=True)
            if status is not None:
                status.update(plain(" · ".join(working.values())))

        yield told


def tables(compared: Compared, width: int) -> Iterator[RichTable]:
    """Yield a table for each set of axis values: scores, and how evenly clients are served.

    width: of the terminal; columns that do not fit are left out, the least important first.
    """
    for table in compared.tables:
        yield _fitted(_scores(compared, table), width, _title(table))
        rows = [row for row in table.rows if row.worst is not None]
        if rows:
            yield _fitted(_balance(compared, rows), width, "", _LEGEND)


def remarks(compared: Compared) -> Iterator[str]:
    """Yield a line for each reason why cells have no result, and on those of other code."""
    for table in compared.tables:
        where = "".join(f" {key}={value}" for key, value in table.axes)
        for row in table.rows:
            reasons: dict[str, list[int]] = {}
            for seed, reason in row.failures:
                reasons.setdefault(reason, []).append(seed)
            for reason, seeds in reasons.items():
                yield f"{row.label}{where}, {seeds_text(seeds)}, failed: {reason}"
        absent = [f"{r.label} ({seeds_text(r.missing)})" for r in table.rows if r.missing]
        if absent:
            yield f"not run yet{where}: {', '.join(absent)}"
        old = [row.label for row in table.rows if row.old]
        if old:
            yield f"made by an earlier state of the code{where}: {', '.join(old)}"
        for shown_by, labels in vouched_for(table.rows):
            yield (
                f"made by earlier code that today's gives the same as{where}: {', '.join(labels)} "
                f"(shown by {', '.join(shown_by)})"
            )
        for device, labels in computed_on(table.rows):
            yield f"computed on {device}{where}: {', '.join(labels) or ALL}"


@dataclass(frozen=True)
class _Column:
    """header: as `make_table` takes it. cells: top to bottom. spare: those with more go first."""

    header: str
    cells: list[Text]
    spare: int = 0


def _fitted(columns: list[_Column], width: int, title: str, caption: str = "") -> RichTable:
    """Return a table of the columns that fit; those that may not be spared wrap."""
    shown = list(columns)
    while True:
        table = make_table(*(column.header for column in shown))
        table.padding = (0, 1, 0, 0)
        table.title, table.title_justify = title or None, "left"
        table.caption = caption or None
        for cells in zip(*(column.cells for column in shown), strict=True):
            table.add_row(*cells)
        spare = max(shown, key=lambda column: column.spare)
        if spare.spare == 0 or Measurement.get(_WIDE, _WIDE.options, table).maximum <= width:
            return table
        shown.remove(spare)


def _scores(compared: Compared, table: Table) -> list[_Column]:
    file, rows = compared.file, table.rows
    recall = f"recall@{file.shown}"
    level = [row.overall.get(table.metric) for row in rows]
    columns = [
        _Column("strategy", [Text(row.label) for row in rows]),
        _Column(">seeds", [Text(_count(row)) for row in rows], 2),
        _Column(_over(metric_name(recall)), [_mean(row.overall.get(recall)) for row in rows], 4),
        _Column(_over(metric_name(table.metric)), [_mean(value) for value in level]),
        _Column(">95 %", [_interval(value) for value in level], 5),
    ]
    if file.reference:
        gains = [row.over_reference.get(table.metric) for row in rows]
        columns += _difference(f">over\n{file.reference}", gains, 3)
    if table.row(file.ceiling) is not None:
        shares = [_mean(row.of_ceiling, 3) for row in rows]
        columns.append(_Column(f">of\n{file.ceiling}", shares, 6))
    return columns


def _balance(compared: Compared, rows: list[Row]) -> list[_Column]:
    file = compared.file
    columns = [
        _Column("strategy", [Text(row.label) for row in rows]),
        _Column(">worst\nclient", [_mean(row.worst) for row in rows]),
        _Column(">95 %", [_interval(row.worst) for row in rows], 6),
    ]
    if file.reference:
        worst = [row.worst_over_reference for row in rows]
        columns += _difference(f">over\n{file.reference}'s", worst, 5)
    if any(row.over_floor is not None for row in rows):
        gains = [row.over_floor for row in rows]
        columns += _difference(f">least gain\nover {file.floor}", gains, 4)
    chance = [row.gap_by_chance for row in rows]
    return [
        *columns,
        _Column(">gap", [_mean(row.gap, 2) for row in rows], 2),
        _Column(">by\nchance", [Text(NOTHING if c is None else f"{c:.2f}") for c in chance], 3),
    ]


def _difference(header: str, values: list[Estimate | None], spare: int) -> list[_Column]:
    """Return a column of differences and one of their intervals, which may be spared."""
    cells = [_signed(value) for value in values]
    return [_Column(header, cells), _Column(">95 %", [_signs(value) for value in values], spare)]


def _title(table: Table) -> str:
    values = [f"{key} = {value}" for key, value in table.axes]
    data = table.data
    about = [f"{data['dataset']}, {table.split}, {table.users}"] if data else []
    return plain(", ".join([*about, *values]))


def _count(row: Row) -> str:
    """Return how many seeds have a result, and of how many where some have none."""
    lacking = len(row.failures) + len(row.missing)
    return f"{len(row.cells)} of {len(row.cells) + lacking}" if lacking else f"{len(row.cells)}"


def _over(metric: str) -> str:
    """Return a header of two lines: the metric above its length."""
    return f">{metric.replace('@', chr(10) + '@')}"


def _mean(value: Estimate | None, digits: int = 4) -> Text:
    return Text(NOTHING if value is None else f"{value.interval.mean:.{digits}f}")


def _interval(value: Estimate | None) -> Text:
    if value is None:
        return Text("")
    return Text(f"{value.interval.low:.3f} … {value.interval.high:.3f}", style="dim")


def _signed(value: Estimate | None) -> Text:
    """Return a difference, bold and with a star where it is clear."""
    if value is None:
        return Text(f"{NOTHING} ")
    star = "*" if value.clear else " "
    return Text(f"{value.interval.mean:+.4f}{star}", "bold" if value.clear else "")


def _signs(value: Estimate | None) -> Text:
    if value is None:
        return Text("")
    return Text(f"{value.interval.low:+.3f} … {value.interval.high:+.3f}", style="dim")


def _name(planned: Planned) -> str:
    values = "".join(f" {key.rpartition('.')[2]}={value}" for key, value in planned.axes)
    return plain(f"{planned.label}{values} seed {planned.seed}")


@contextmanager
def _nothing() -> Iterator[None]:
    yield None
