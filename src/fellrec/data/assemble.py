"""From columns of text to a `Dataset`: what every file format has in common.

A format's reader makes a `Table` per file; here ids become indices, times become numbers, and what
contradicts itself is refused by file and line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fellrec.data.interactions import Catalogue, Dataset, Interactions
from fellrec.data.repeats import first_rows
from fellrec.errors import DataError


@dataclass(frozen=True, eq=False)
class Table:
    """A file's columns as text.

    Attributes:
        path: the file, for messages.
        columns: by name, each a pyarrow array of `large_string` without nulls.
        lines: the line (or row) number of each row.
        unit: "line" or "row", for messages.
    """

    path: Path
    columns: Mapping[str, pa.LargeStringArray]
    lines: Sequence[int]
    unit: str = "line"

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.lines)

    def where(self, row: int) -> str:
        """Return "games.item, line 7" for a row counted from 0."""
        return f"{self.path}, {self.unit} {self.lines[row]}"

    def column(self, name: str) -> pa.LargeStringArray:
        """Return a column.

        Raises:
            DataError: there is none of that name; lists those there are.
        """
        if name not in self.columns:
            raise DataError(f"{self.path}: no column '{name}'; it has {', '.join(self.columns)}")
        return self.columns[name]

    def ids(self, name: str) -> pa.LargeStringArray:
        """Return a column of which no cell may be empty."""
        cells = self.column(name)
        empty = _first(pc.equal(cells, ""))
        if empty is not None:
            raise DataError(f"{self.where(empty)}: {name} is empty")
        return cells

    def unique(self, name: str) -> pa.LargeStringArray:
        """Return a column of ids that must all differ."""
        cells = self.ids(name)
        if pc.count_distinct(cells).as_py() != len(cells):
            seen: dict[str, int] = {}
            for row, cell in enumerate(cells.to_pylist()):
                if cell in seen:
                    raise DataError(
                        f"{self.where(row)}: {name} '{cell}' is already on {self.unit} "
                        f"{self.lines[seen[cell]]}; ids must differ"
                    )
                seen[cell] = row
        return cells


def build_catalogue(table: Table, item: str, title: str, attributes: Sequence[str]) -> Catalogue:
    """Turn an item table into a catalogue.

    Raises:
        DataError: no rows, a missing column, an empty or repeated id.
    """
    if not len(table):
        raise DataError(f"{table.path}: has no items")
    ids = table.unique(item)
    return Catalogue(
        tuple(ids.to_pylist()),
        tuple(table.column(title).to_pylist()),
        {name: tuple(table.column(name).to_pylist()) for name in attributes},
    )


def build_dataset(
    name: str,
    catalogue: Catalogue,
    tables: Sequence[Table],
    *,
    user: str,
    item: str,
    time: str,
    parts: bool = False,
    people: Table | None = None,
) -> tuple[Dataset, int]:
    """Join interaction tables with a catalogue; return how many repeats were left out, too.

    A repeat is a user's later interaction with the same item, see `repeats`. Users are numbered in
    order of first appearance. With `parts`, the tables are training, validation and test. `people`
    is a table of users with a column `user`; users it lacks get empty cells, users without
    interactions are left out.

    Raises:
        DataError: no rows, a missing column, an empty id, a time that is not a finite number, an
            item that the catalogue lacks, a user twice in `people`.
    """
    if not any(len(table) for table in tables):
        raise DataError(f"{tables[0].path}: has no interactions")
    known = pa.array(catalogue.ids, type=pa.large_string())
    names = pa.chunked_array([table.ids(user) for table in tables]).combine_chunks()
    encoded = names.dictionary_encode()
    part = np.repeat(np.arange(len(tables), dtype=np.int8), [len(table) for table in tables])
    who = encoded.indices.to_numpy()
    what = np.concatenate([_items(table, item, known) for table in tables])
    when = np.concatenate([_times(table, time) for table in tables])
    kept = first_rows(who, what, when, part)
    log = Interactions.ordered(who[kept], what[kept], when[kept], part[kept] if parts else None)
    columns = {} if people is None else _user_columns(people, user, encoded.dictionary)
    users = tuple(encoded.dictionary.to_pylist())
    return Dataset(name, catalogue, users, log, columns), len(who) - len(kept)


def _items(table: Table, item: str, known: pa.LargeStringArray) -> NDArray[np.int64]:
    cells = table.ids(item)
    index = pc.index_in(cells, value_set=known)
    lacking = _first(pc.is_null(index))
    if lacking is not None:
        raise DataError(
            f"{table.where(lacking)}: item '{cells[lacking].as_py()}' is not in the catalogue"
        )
    found: NDArray[np.int64] = index.to_numpy(zero_copy_only=False).astype(np.int64)
    return found


def _times(table: Table, time: str) -> NDArray[np.float64]:
    cells = table.column(time)
    try:
        values: NDArray[np.float64] = pc.cast(cells, pa.float64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid:
        values = np.asarray([_number(cell) for cell in cells.to_pylist()], dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        row = int(bad[0])
        raise DataError(f"{table.where(row)}: {time} '{cells[row].as_py()}' is not a finite number")
    return values


def _number(cell: str) -> float:
    """Read a number where Arrow is stricter than the file (spaces around it, a leading plus)."""
    try:
        return float(cell)
    except ValueError:
        return float("nan")


def _user_columns(
    people: Table, user: str, users: pa.LargeStringArray
) -> dict[str, tuple[str, ...]]:
    rows = pc.index_in(users, value_set=people.unique(user))
    return {
        name: tuple(pc.fill_null(cells.take(rows), "").to_pylist())
        for name, cells in people.columns.items()
        if name != user
    }


def _first(mask: pa.BooleanArray) -> int | None:
    """Return the position of the first true value."""
    position = pc.index(mask, True).as_py()
    return None if position < 0 else int(position)
