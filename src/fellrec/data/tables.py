"""Import of ordinary tables: CSV, TSV, JSON lines (each also .gz) and Parquet.

The caller names the columns; nothing is guessed. Errors name the file and the line (or the row,
in Parquet, counted from 1).
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from fellrec.data.assemble import Table, build_catalogue, build_dataset
from fellrec.data.files import decode, read_bytes
from fellrec.data.interactions import Dataset, k_core
from fellrec.data.streams import Imported
from fellrec.errors import DataError

FORMATS = ".csv, .tsv, .jsonl, .ndjson (each also .gz) or .parquet"


def import_table(
    interactions: Path | str,
    items: Path | str,
    *,
    user: str,
    item: str,
    time: str,
    title: str,
    attributes: Sequence[str] = (),
) -> Dataset:
    """Build a data set from a table of interactions and a table of items.

    Args:
        interactions: file with the columns `user`, `item` and `time`, one interaction a row.
        items: file with the columns `item`, `title` and `attributes`, one item a row.
        user: name of the column of user ids.
        item: name of the column of item ids, the same in both files.
        time: name of the column of times: numbers, or Parquet's own timestamps.
        title: name of the column of titles.
        attributes: names of further text columns of an item.

    Returns:
        The data set, named after the interactions file, without repeats. Ids become text whatever
        they were; a list in a cell is joined with spaces; a missing attribute is "".

    Raises:
        DataError: an unknown ending, a missing column, an item that the item table lacks or has
            twice, a time that is not a finite number, an empty id, a ragged or unreadable line.
    """
    columns = (user, item, time, title)
    return read_table(Path(interactions), Path(items), columns, attributes).dataset


def read_table(
    interactions: Path,
    items: Path,
    columns: tuple[str, str, str, str],
    attributes: Sequence[str] = (),
    k: int = 0,
) -> Imported:
    """Do what `import_table` does, and say what was left out.

    columns: of user, item, time and title. k: keep users and items with at least this many
    interactions; 0 keeps all. Raises as `import_table`, and DataError where nothing is left.
    """
    user, item, time, title = columns
    clash = {item, title} & set(attributes)
    if clash:
        raise DataError(f"column '{min(clash)}' is the item or the title, not also an attribute")
    people = _read(interactions, [user, item, time])
    things = _read(items, list(dict.fromkeys([item, title, *attributes])))
    catalogue = build_catalogue(things, item, title, list(dict.fromkeys(attributes)))
    name = interactions.name.split(".")[0] or "imported"
    dataset, repeated = build_dataset(name, catalogue, [people], user=user, item=item, time=time)
    core = k_core(dataset, k) if k else dataset
    sparse = len(dataset.interactions) - len(core.interactions)
    return Imported(core, repeated, sparse=sparse)


def _read(path: Path, names: Sequence[str]) -> Table:
    endings = [ending.lower() for ending in path.suffixes]
    packed = endings[-1:] == [".gz"]
    kind = (endings[:-1] if packed else endings)[-1:]
    if kind in ([".csv"], [".tsv"]):
        return _delimited(path, _text(path, packed), "," if kind == [".csv"] else "\t", names)
    if kind in ([".jsonl"], [".ndjson"]):
        return _json_lines(path, _text(path, packed), names)
    if kind == [".parquet"] and not packed:
        return _parquet(path, names)
    raise DataError(f"{path}: unknown ending; use {FORMATS}")


def _text(path: Path, packed: bool) -> str:
    data = read_bytes(path)
    if packed:
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path}: is not a whole gzip file ({error})") from None
    text = decode(path, data)
    if not text.strip():
        raise DataError(f"{path}: is empty")
    return text


def _delimited(path: Path, text: str, delimiter: str, names: Sequence[str]) -> Table:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[list[str]] = []
    lines: list[int] = []
    start = 1  # a quoted cell may hold line breaks: a row starts after the last one's end
    header: list[str] = []
    try:
        for row in reader:
            if not header:
                header = row
                _header(path, header, names)
            elif row:
                if len(row) != len(header):
                    raise DataError(
                        f"{path}, line {start}: {len(row)} cells where the header has {len(header)}"
                    )
                rows.append(row)
                lines.append(start)
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}, line {start}: {error}") from None
    places = {name: header.index(name) for name in names}
    columns = {
        name: _column(path, [row[place] for row in rows], lines) for name, place in places.items()
    }
    return Table(path, columns, lines)


def _header(path: Path, header: Sequence[str], names: Sequence[str]) -> None:
    for name in names:
        if header.count(name) != 1:
            fault = "twice" if name in header else f"missing; it has {', '.join(header)}"
            raise DataError(f"{path}, line 1: column '{name}' {fault}")


def _json_lines(path: Path, text: str, names: Sequence[str]) -> Table:
    cells: dict[str, list[str]] = {name: [] for name in names}
    lines: list[int] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {number}: is not JSON ({error})") from None
        if not isinstance(record, dict):
            raise DataError(f"{path}, line {number}: is not a JSON object")
        for name in names:
            cells[name].append(_cell(record.get(name), f"{path}, line {number}: {name}"))
        lines.append(number)
    for name in names:
        if not any(cells[name]):
            raise DataError(f"{path}: no line has '{name}'")
    columns = {name: _column(path, column, lines) for name, column in cells.items()}
    return Table(path, columns, lines)


def _parquet(path: Path, names: Sequence[str]) -> Table:
    try:
        file = pyarrow.parquet.ParquetFile(path)
        known = file.schema_arrow.names
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: is not Parquet ({str(error).splitlines()[0]})") from None
    for name in names:
        if known.count(name) != 1:
            fault = "twice" if name in known else f"missing; it has {', '.join(known)}"
            raise DataError(f"{path}: column '{name}' {fault}")
    try:
        table = file.read(columns=list(names))
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: is damaged ({str(error).splitlines()[0]})") from None
    rows = range(1, table.num_rows + 1)
    columns = {}
    for name in names:
        values = table.column(name)
        if pa.types.is_timestamp(values.type):
            # Microseconds fit a float64 exactly until the year 2255; nanoseconds would not.
            values = values.cast(pa.timestamp("us", tz=values.type.tz), safe=False).cast(pa.int64())
        cells = [
            _cell(value, f"{path}, row {row}: {name}")
            for row, value in zip(rows, values.to_pylist(), strict=True)
        ]
        columns[name] = _column(path, cells, rows, "row")
    return Table(path, columns, rows, "row")


def _cell(value: Any, where: str) -> str:
    """Turn a value into text: lists joined with spaces, nothing into ""."""
    if value is None or value != value:  # only NaN differs from itself
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return " ".join(filter(None, (_cell(part, where) for part in value)))
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # pandas turns whole numbers into floats where a cell is missing
    if isinstance(value, int | float):
        return str(value).lower()
    if isinstance(value, datetime):
        return value.isoformat()
    raise DataError(f"{where} is a {type(value).__name__}; use text, a number or a list")


def _column(
    path: Path, cells: Sequence[str], lines: Sequence[int], unit: str = "line"
) -> pa.LargeStringArray:
    try:
        return pa.array(cells, type=pa.large_string())
    except UnicodeEncodeError:
        # JSON may escape half a surrogate pair, which is no character and can't be stored.
        for line, cell in zip(lines, cells, strict=True):
            if any("\ud800" <= letter <= "\udfff" for letter in cell):
                raise DataError(f"{path}, {unit} {line}: a broken character") from None
        raise
