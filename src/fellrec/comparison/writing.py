"""A comparison's figures as CSV and as Markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from fellrec.comparison.course import Course
from fellrec.comparison.plan import Comparison, comparisons
from fellrec.comparison.rows import Compared, Row, Table
from fellrec.comparison.running import outcomes
from fellrec.comparison.states import ALL, computed_on, unlike
from fellrec.comparison.statistics import Estimate
from fellrec.comparison.table import compare
from fellrec.errors import RunError
from fellrec.files import write_bytes
from fellrec.results.markdown import NOTHING, metric_name, table_text
from fellrec.results.vouched import Vouched

_DIFFERENCES = ("over_reference", "over_floor", "worst_over_reference", "worst_over_floor")

_NOTHING = Vouched()
_HEADER = ("strategy", "seeds", "figure", "metric", "value", "low", "high", "clear", "by_seed")


def as_csv(compared: Compared) -> str:
    """Write every figure on a line of its own, for scripts.

    Columns: the axes, then strategy, seeds (with a result), figure, metric, value, low and high
    (of the 95 % interval), clear (of differences alone), by_seed (values with a semicolon between).
    A cell that failed has a line whose figure is "failed" and whose value is the reason.
    """
    axes = [key for key, _ in compared.tables[0].axes] if compared.tables else []
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow([*axes, *_HEADER])
    for table in compared.tables:
        where = [value for _, value in table.axes]
        for row in table.rows:
            begun = [*where, row.label, len(row.cells)]
            for seed, reason in row.failures:
                lines.writerow([*begun, "failed", "", f"seed {seed}: {reason}", "", "", "", ""])
            for figure, metric, value in figures(row, table.metric):
                each, seeds = value.interval, ";".join(f"{one:.6f}" for one in value.seeds)
                numbers = [f"{number:.6f}" for number in each]
                clear = str(value.clear).lower() if figure in _DIFFERENCES else ""
                lines.writerow([*begun, figure, metric, *numbers, clear, seeds])
    return text.getvalue()


def as_rows(compared: Compared) -> list[dict[str, object]]:
    """Return every figure as a mapping; keys as the columns of `as_csv`."""
    return list(csv.DictReader(io.StringIO(as_csv(compared))))


def write(compared: Compared, comparison: Comparison, folder: Path) -> None:
    """Write comparison.toml and comparison.csv into a folder.

    Raises RunError when they can't be written.
    """
    files = {"comparison.toml": comparison.text, "comparison.csv": as_csv(compared)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            write_bytes(folder / name, text.encode())
    except OSError as error:
        raise RunError(f"{folder}: can't be written ({error.strerror or error})") from error


def figures(row: Row, metric: str) -> Iterator[tuple[str, str, Estimate]]:
    """Yield the figures that a row has: name, metric, estimate."""
    yield from (("score", name, value) for name, value in row.overall.items())
    yield from (("over_reference", name, value) for name, value in row.over_reference.items())
    named = ("of_ceiling", "over_floor", "worst", "worst_over_reference", "worst_over_floor")
    for name in (*named, "gap", "gap_of_reference", "jain"):
        value = getattr(row, name)
        if value is not None:
            yield name, metric, value


def as_markdown(compared: Compared, command: str, vouched: Vouched = _NOTHING) -> str:
    """Write the comparison as a part of the page of results.

    command: what makes it. vouched: which states of the code are known to give the same.
    """
    file = compared.file
    parts = [f"## {file.title}\n"]
    if file.about:
        parts.append(f"{file.about.strip()}\n")
    empty = []
    for table in compared.tables:
        values = ", ".join(f"`{key}` = {value}" for key, value in table.axes)
        if not any(row.cells or row.failures for row in table.rows):
            empty.append(values)
            continue
        if values:
            parts.append(f"### {values}\n")
        if table.data:
            parts.append(f"{table.users}, {table.data['items']:,} items, {table.split}.\n")
        parts += [_scores(compared, table), _balance(compared, table), _courses(compared, table)]
        parts += _missing(table, vouched)
    if empty:
        parts.append(f"Not run yet: {'; '.join(empty)}.\n")
    seeds = ", ".join(map(str, file.seeds))
    parts.append(f"    {command}  # seeds {seeds}\n")
    return "\n".join(part for part in parts if part)


def parts_of_page(results: Path) -> list[str]:
    """Return the part of the page of results of each shipped comparison that has a result.

    Raises RunError for a cell that was changed since it was kept, or a damaged file of what is
    vouched for.
    """
    parts, vouched = [], Vouched.read(results)
    for name in comparisons():
        comparison = Comparison.read(name)
        found = outcomes(comparison, results)
        # One cell, which another comparison may have made, is no comparison.
        if sum(each.cell is not None for each in found) > 1:
            compared = compare(comparison, found)
            parts.append(as_markdown(compared, f"fellrec compare {name}", vouched))
    return parts


def _scores(compared: Compared, table: Table) -> str:
    reference = compared.file.reference
    metrics = [f"recall@{compared.file.shown}", f"ndcg@{compared.file.shown}"]
    header = ["strategy", "seeds", *map(metric_name, metrics)]
    if reference:
        header += [f"{metric_name(metric)} over {reference}" for metric in metrics]
    if table.row(compared.file.ceiling):
        header.append(f"share of {compared.file.ceiling}")
    lines = []
    for row in table.rows:
        if not row.cells:
            continue
        line = [_label(row), str(len(row.cells))]
        line += [plain(row.overall.get(metric)) for metric in metrics]
        if reference:
            line += [signed(row.over_reference.get(metric)) for metric in metrics]
        if table.row(compared.file.ceiling):
            line.append(plain(row.of_ceiling, 3))
        lines.append(line)
    return table_text(header, lines)


def _balance(compared: Compared, table: Table) -> str:
    """Write how evenly clients are served; nothing where no row has clients."""
    file, floor = compared.file, table.row(compared.file.floor) is not None
    rows = [row for row in table.rows if row.worst is not None]
    if not rows:
        return ""
    name = metric_name(table.metric)
    header = ["strategy", f"worst client's {name}"]
    header += [f"over {file.reference}'s worst"] if file.reference else []
    if floor:
        header += [f"over {file.floor}'s worst", f"least gain of a client over {file.floor}"]
    header += ["relative gap", "gap by chance"]
    header += [f"gap / {file.reference}'s"] if file.reference else []
    header.append("Jain")
    lines = []
    for row in rows:
        line = [_label(row), plain(row.worst)]
        line += [signed(row.worst_over_reference)] if file.reference else []
        line += [signed(row.worst_over_floor), signed(row.over_floor)] if floor else []
        line.append(plain(row.gap, 3))
        line.append(NOTHING if row.gap_by_chance is None else f"{row.gap_by_chance:.3f}")
        line += [plain(row.gap_of_reference, 2)] if file.reference else []
        line.append(plain(row.jain, 3))
        lines.append(line)
    return table_text(header, lines)


def _courses(compared: Compared, table: Table) -> str:
    """Write how training went; nothing where no row has rounds."""
    rows = [row for row in table.rows if row.course is not None]
    if not rows:
        return ""
    reference = compared.file.reference
    header = [
        "strategy",
        "best validation",
        "flat at the end",
        "w below 0.95",
        "attention's spread",
    ]
    header += [f"rounds to {reference}'s best", "seconds to it"] if reference else []
    header += ["seconds of training", "bytes up and down", "client's share", "client's memory"]
    lines = []
    for row in rows:
        course = row.course
        assert course is not None
        reached = [each for each in course.reached if each is not None]
        all_there = len(reached) == len(course.reached) and bool(reached)
        rounds = ", ".join(str(each[0]) for each in reached) if all_there else NOTHING
        seconds = _mean([each[1] for each in reached]) if all_there else NOTHING
        costs = [cell.summary["cost"] for cell in row.cells]
        lines.append(
            [
                _label(row),
                f"{sum(course.best) / len(course.best):.4f}",
                f"{sum(course.flat)} of {len(course.flat)}",
                _heated(row, course),
                f"{max(max(each) for each in course.spread):.4f}",
                *([rounds, seconds] if reference else []),
                _mean(list(course.seconds)),
                f"{(costs[0]['bytes_up'] + costs[0]['bytes_down']) / 2**20:,.0f} MiB",
                f"{costs[0]['client_parameter_share']:.1%}",
                _memory(row),
            ]
        )
    return table_text(header, lines)


def _heated(row: Row, course: Course) -> str:
    """Return the share of rounds in which heating held clients back, where there is heating."""
    configs = [cell.config for cell in row.cells if cell.config is not None]
    if any(config.balance.strategy != "fellrec" for config in configs):
        return NOTHING
    return f"{sum(course.heated) / len(course.heated):.0%}"


def _memory(row: Row) -> str:
    """Return what a client needs in training, as foreseen; nothing where a cell does not say."""
    memory = row.cells[0].origin.get("memory")
    return NOTHING if memory is None else f"{memory['client']['total'] / 2**20:,.0f} MiB"


def _missing(table: Table, vouched: Vouched) -> list[str]:
    lines = []
    for row in table.rows:
        lines += [
            f"- `{row.label}`, seed {seed}, **failed**: {why}\n" for seed, why in row.failures
        ]
    absent = [f"{_label(row)} ({seeds_text(row.missing)})" for row in table.rows if row.missing]
    if absent:
        lines.append(f"- not run yet: {', '.join(absent)}\n")
    lines += unlike(table, vouched)
    lines += [
        f"- computed on {device}: {', '.join(f'`{label}`' for label in labels) or ALL}\n"
        for device, labels in computed_on(table.rows)
    ]
    return ["".join(lines)] if lines else []


def seeds_text(seeds: Sequence[int]) -> str:
    """Write seeds in a sentence."""
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def _label(row: Row) -> str:
    return f"`{row.label}`"


def plain(value: Estimate | None, digits: int = 4) -> str:
    """Write a figure with its interval."""
    if value is None:
        return NOTHING
    mean, low, high = (f"{number:.{digits}f}" for number in value.interval)
    return f"{mean} [{low}, {high}]"


def signed(value: Estimate | None, digits: int = 4) -> str:
    """Write a difference with its interval, bold where it is clear."""
    if value is None:
        return NOTHING
    mean, low, high = (f"{number:+.{digits}f}" for number in value.interval)
    text = f"{mean} [{low}, {high}]"
    return f"**{text}**" if value.clear else text


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{sum(known) / len(known):,.0f}" if known else NOTHING
