"""RecBole's atomic files: tab-separated text with a header of `name:type` cells.

A data set is `NAME.inter` and `NAME.item`, and `NAME.user` if users have columns. In place of
`NAME.inter` there may be `NAME.train.inter`, `NAME.valid.inter` and `NAME.test.inter`. A rating is
ignored: having taken an item is all that counts.

https://recbole.io/docs/user_guide/data/atomic_files.html
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

from fellrec.data.assemble import Table, build_catalogue, build_dataset
from fellrec.data.files import decode, read_bytes, replace_file
from fellrec.data.interactions import Catalogue, Dataset
from fellrec.errors import DataError

_log = logging.getLogger(__name__)

USER, ITEM, TIME = "user_id", "item_id", "timestamp"
TITLES = ("title", "movie_title", "name")
TYPES = ("token", "token_seq", "float", "float_seq")
PARTS = ("train", "valid", "test")
ITEMS_END = re.compile(r"\.item$")
INTERACTIONS_END = re.compile(rf"(\.({'|'.join(PARTS)}))?\.inter$")
# A row longer than a block can't be parsed; item descriptions may be long.
BLOCK = 16 << 20


def read_atomic(folder_or_stem: Path | str, catalogue: Catalogue | None = None) -> Dataset:
    """Read a data set in RecBole's form.

    Args:
        folder_or_stem: a folder with one data set, or the files' common path without the endings
            ("data/ml-100k/ml-100k"). If a folder has several, the one named like the folder.
        catalogue: the items, where several parties share them; `NAME.item` is then not read and
            need not exist.

    Returns:
        The data set. Its catalogue is the one given, else what `read_catalogue` reads. Repeats are
        left out (`repeats`), with a warning in the log.

    Raises:
        DataError: a file that is missing, empty, not UTF-8, ragged or has a wrong header; an item
            twice or unknown; a time that is not a number. Names the file and the line.
    """
    stem = _stem(Path(folder_or_stem), ITEMS_END if catalogue is None else INTERACTIONS_END)
    files = _interaction_files(stem)
    items = _catalogue(stem) if catalogue is None else catalogue
    tables = []
    for path in files:
        table, types = _read(path)
        _need(table, types, {USER: "token", ITEM: "token", TIME: "float"})
        tables.append(table)
    people = None
    if _with(stem, ".user").exists():
        people, types = _read(_with(stem, ".user"))
        _need(people, types, {USER: "token"})
    dataset, repeated = build_dataset(
        stem.name,
        items,
        tables,
        user=USER,
        item=ITEM,
        time=TIME,
        parts=len(tables) > 1,
        people=people,
    )
    if repeated:
        _log.warning("%s: left out repeats of what the user took earlier: %d", stem, repeated)
    return dataset


def read_catalogue(folder_or_stem: Path | str) -> Catalogue:
    """Read the items alone: `NAME.item`, found as `read_atomic` finds it.

    The title is the column `title`, `movie_title` or `name`, else the first `token_seq` column;
    every other column becomes an attribute.

    Raises:
        DataError: the file is missing, empty, not UTF-8, ragged or has a wrong header, or an item
            twice. Names the file and the line.
    """
    return _catalogue(_stem(Path(folder_or_stem), ITEMS_END))


def write_atomic(dataset: Dataset, folder: Path | str) -> Path:
    """Write `NAME.item`, the interactions and, if users have columns, `NAME.user`.

    Interactions are written in file order, so that reading them again gives the same data set; with
    parts, users who have no training rows come last. A tab or line break in a text becomes a space.

    Args:
        dataset: what to write; its name becomes the files' name.
        folder: made if it is missing; files of the same name are replaced.

    Returns:
        The stem, to be read again with `read_atomic`.

    Raises:
        DataError: a name or id that a file can't hold, or a folder that can't be written.
    """
    if not re.fullmatch(r"[\w.+ -]*\w[\w.+ -]*", dataset.name):
        raise DataError(f"data set name '{dataset.name}' can't name files; use letters and digits")
    stem = Path(folder) / dataset.name
    catalogue, log = dataset.catalogue, dataset.interactions
    item_header = {ITEM: "token", "title": "token_seq"}
    taken = set(item_header) & set(catalogue.attributes)
    if taken:
        raise DataError(f"attribute '{min(taken)}' has the name of a fixed column; rename it")
    item_header.update({name: "token_seq" for name in catalogue.attributes})
    files = {
        ".item": _text(
            item_header, [_ids(catalogue.ids), catalogue.titles, *catalogue.attributes.values()]
        )
    }
    users, items = _ids(dataset.users), catalogue.ids
    order = np.argsort(log.row, kind="stable")
    endings = [".inter"] if log.part is None else [f".{part}.inter" for part in PARTS]
    for number, ending in enumerate(endings):
        rows = order if log.part is None else order[log.part[order] == number]
        columns: list[Iterable[str]] = [
            [users[u] for u in log.user[rows].tolist()],
            [items[i] for i in log.item[rows].tolist()],
            [repr(t).removesuffix(".0") for t in log.time[rows].tolist()],
        ]
        files[ending] = _text({USER: "token", ITEM: "token", TIME: "float"}, columns)
    if dataset.user_columns:
        header = {USER: "token", **dict.fromkeys(dataset.user_columns, "token")}
        files[".user"] = _text(header, [users, *dataset.user_columns.values()])
    try:
        for ending, text in files.items():
            replace_file(_with(stem, ending), text.encode("utf-8"))
    except OSError as error:
        raise DataError(f"{folder}: can't be written ({error.strerror or error})") from None
    return stem


def _with(stem: Path, ending: str) -> Path:
    """Append an ending; `with_suffix` would cut a name such as "v1.5" short."""
    return stem.with_name(stem.name + ending)


def _catalogue(stem: Path) -> Catalogue:
    items, types = _read(_with(stem, ".item"))
    _need(items, types, {ITEM: "token"})
    title = next((name for name in TITLES if name in types), None) or next(
        (name for name, kind in types.items() if kind == "token_seq"), None
    )
    if title is None:
        raise DataError(
            f"{items.path}: no title; name a column {', '.join(TITLES)} or give one the type "
            f"token_seq"
        )
    attributes = [name for name in types if name not in (ITEM, title)]
    return build_catalogue(items, ITEM, title, attributes)


def _stem(path: Path, ending: re.Pattern[str]) -> Path:
    """Find the data set of a folder by what its files' names end in."""
    if not path.is_dir():
        return path
    found = sorted({ending.sub("", p.name) for p in path.iterdir() if ending.search(p.name)})
    if not found:
        kind = ".item" if ending is ITEMS_END else ".inter"
        raise DataError(f"{path}: no {kind} file; a data set needs NAME.item and NAME.inter")
    if len(found) > 1:
        if path.resolve().name in found:
            return path / path.resolve().name
        raise DataError(
            f"{path}: several data sets ({', '.join(found)}); name one, such as {path / found[0]}"
        )
    return path / found[0]


def _interaction_files(stem: Path) -> list[Path]:
    whole = _with(stem, ".inter")
    parts = [_with(stem, f".{part}.inter") for part in PARTS]
    there = [path for path in parts if path.exists()]
    if whole.exists() and there:
        raise DataError(f"{stem}: both {whole.name} and {there[0].name}; move one of them away")
    if not there:
        return [whole]
    missing = [path.name for path in parts if path not in there]
    if missing:
        raise DataError(f"{stem}: {', '.join(missing)} missing beside {there[0].name}")
    return parts


def _read(path: Path) -> tuple[Table, dict[str, str]]:
    """Read a file's columns and the type that its header gives each."""
    data = read_bytes(path)
    first, _, body = data.partition(b"\n")
    types = _header(path, decode(path, first))
    body = body.rstrip(b"\r\n")
    names = list(types)
    if not body:
        empty = pa.array([], type=pa.large_string())
        return Table(path, dict.fromkeys(names, empty), range(0)), types
    try:
        table = pyarrow.csv.read_csv(
            pa.BufferReader(body),
            read_options=pyarrow.csv.ReadOptions(column_names=names, block_size=BLOCK),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter="\t", quote_char=False, escape_char=False, ignore_empty_lines=False
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.large_string())
            ),
        ).combine_chunks()
    except pa.ArrowInvalid as error:
        _explain(path, data, len(names))
        raise DataError(f"{path}: {str(error).splitlines()[0]}") from None
    columns = {name: _whole(table.column(name)) for name in names}
    return Table(path, columns, range(2, 2 + table.num_rows)), types


def _whole(column: pa.ChunkedArray) -> pa.LargeStringArray:
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)


def _header(path: Path, line: str) -> dict[str, str]:
    types: dict[str, str] = {}
    for cell in line.rstrip("\r").split("\t"):
        name, _, kind = cell.rpartition(":")
        if not name or kind not in TYPES:
            raise DataError(
                f"{path}, line 1: header cell '{cell}' is not name:type with a type of "
                f"{', '.join(TYPES)}"
            )
        if name in types:
            raise DataError(f"{path}, line 1: column '{name}' twice")
        types[name] = kind
    return types


def _need(table: Table, types: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    for name, kind in wanted.items():
        if types.get(name) != kind:
            has = ", ".join(f"{known}:{of}" for known, of in types.items())
            raise DataError(f"{table.path}, line 1: needs a column {name}:{kind}; it has {has}")


def _explain(path: Path, data: bytes, width: int) -> None:
    """Find the line that the fast parser refused."""
    decode(path, data)
    for number, line in enumerate(data.splitlines(), start=1):
        cells = line.count(b"\t") + 1
        if cells != width:
            raise DataError(f"{path}, line {number}: {cells} cells where the header has {width}")


def _ids(ids: Iterable[str]) -> tuple[str, ...]:
    checked = tuple(ids)
    for cell in checked:
        if re.search(r"[\t\r\n]", cell):
            raise DataError(f"id {cell!r} has a tab or a line break, which the file can't hold")
    return checked


def _text(header: Mapping[str, str], columns: Iterable[Iterable[str]]) -> str:
    head = "\t".join(f"{_clean(name)}:{kind}" for name, kind in header.items())
    cells = [[_clean(cell) for cell in column] for column in columns]
    return "\n".join([head, *map("\t".join, zip(*cells, strict=True))]) + "\n"


def _clean(cell: str) -> str:
    return re.sub(r"[\t\r\n]+", " ", cell)
