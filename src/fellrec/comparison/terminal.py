"""A comparison in the terminal: what goes on while its cells are made, and the table at the end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from fellrec.comparison.plan import Planned
from fellrec.comparison.running import Step, Told
from fellrec.comparison.statistics import Estimate
from fellrec.comparison.table import Compared, Row, Table
from fellrec.console import is_live, make_table, plain
from fellrec.results.markdown import NOTHING, metric_name


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


def tables(compared: Compared) -> Iterator[RichTable]:
    """Yield a table for each set of axis values: scores, and how evenly clients are served."""
    for table in compared.tables:
        yield _scores(compared, table)
        if any(row.worst is not None for row in table.rows):
            yield _balance(compared, table)


def remarks(compared: Compared) -> Iterator[str]:
    """Yield a line for every cell without a result, and for those that other code has made."""
    for table in compared.tables:
        where = "".join(f" {key}={value}" for key, value in table.axes)
        for row in table.rows:
            for seed, reason in row.failures:
                yield f"{row.label}{where} seed {seed} failed: {reason}"
            if row.missing:
                seeds = ", ".join(map(str, row.missing))
                yield f"{row.label}{where} has not been run yet for seeds {seeds}"
            if row.old:
                yield f"{row.label}{where} was made by an earlier state of the code"


def _scores(compared: Compared, table: Table) -> RichTable:
    file = compared.file
    ceiling = table.row(file.ceiling) is not None
    name = metric_name(table.metric)
    recall = f"recall@{file.shown}"
    headers = ["strategy", ">seeds", f">{metric_name(recall)}", f">{name}", ">95 %"]
    headers += [f">over {file.reference}", ">95 %"] if file.reference else []
    headers += [f">of {file.ceiling}"] if ceiling else []
    found = make_table(*headers)
    found.title = _title(table)
    for row in table.rows:
        cells = [
            *_begun(row),
            _mean(row.overall.get(recall)),
            *_with(row.overall.get(table.metric)),
        ]
        cells += _signed(row.over_reference.get(table.metric)) if file.reference else []
        cells += [_mean(row.of_ceiling, 3)] if ceiling else []
        found.add_row(*cells)
    return found


def _balance(compared: Compared, table: Table) -> RichTable:
    file = compared.file
    headers = ["strategy", ">worst client", ">95 %"]
    headers += [f">over {file.reference}'s", ">95 %"] if file.reference else []
    headers += [f">least gain over {file.floor}", ">95 %", ">gap", ">by chance"]
    found = make_table(*headers)
    for row in table.rows:
        if row.worst is None:
            continue
        cells = [Text(row.label), *_with(row.worst)]
        cells += _signed(row.worst_over_reference) if file.reference else []
        cells += [*_signed(row.over_floor), _mean(row.gap, 2)]
        chance = row.gap_by_chance
        found.add_row(*cells, Text(NOTHING if chance is None else f"{chance:.2f}"))
    return found


def _title(table: Table) -> str:
    values = [f"{key} = {value}" for key, value in table.axes]
    data = table.data
    about = f"{data['dataset']}, {data['split']}, {data['users']:,} users" if data else ""
    return plain(", ".join([about, *values]))


def _begun(row: Row) -> list[Text]:
    failed = f" ({len(row.failures)} failed)" if row.failures else ""
    return [Text(row.label), Text(f"{len(row.cells)}{failed}")]


def _mean(value: Estimate | None, digits: int = 4) -> Text:
    return Text(NOTHING if value is None else f"{value.interval.mean:.{digits}f}")


def _with(value: Estimate | None) -> list[Text]:
    """Return a figure and its interval."""
    if value is None:
        return [Text(NOTHING), Text("")]
    _, low, high = value.interval
    return [_mean(value), Text(f"{low:.3f} … {high:.3f}", style="dim")]


def _signed(value: Estimate | None) -> list[Text]:
    """Return a difference and its interval, bold where it is clear."""
    if value is None:
        return [Text(NOTHING), Text("")]
    mean, low, high = value.interval
    style = "bold" if value.clear else ""
    return [Text(f"{mean:+.4f}", style), Text(f"{low:+.3f} … {high:+.3f}", style or "dim")]


def _name(planned: Planned) -> str:
    values = "".join(f" {key.rpartition('.')[2]}={value}" for key, value in planned.axes)
    return plain(f"{planned.label}{values} seed {planned.seed}")


@contextmanager
def _nothing() -> Iterator[None]:
    yield None
