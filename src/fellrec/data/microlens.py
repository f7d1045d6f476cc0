"""MicroLens: who commented on which short video when, and what each video is called.

Two CSV files: `user,item,timestamp` and `item,title`. The larger set's titles come without a
header, the smaller one's with one; both are read.

https://github.com/westlake-repl/MicroLens
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from fellrec.data.streams import Imported, Log, clean, describe, identifier, moment, text_lines
from fellrec.errors import DataError

COLUMNS = ("user", "item", "timestamp")


def read_microlens(pairs: Path, titles: Path, k: int = 0) -> Imported:
    """Build a data set from pairs and titles, each read once from front to end.

    Args:
        pairs: CSV of user, item and time, with or without a header.
        titles: CSV of item and title, with or without a header; of several titles of an item the
            first that is not empty counts.
        k: keep users and items with at least this many interactions; 0 keeps all.

    Returns:
        The data set, named after the pairs.

    Raises:
        DataError: a line of another shape, an empty id, a time that is no number; a file that is
            missing, cut or not UTF-8; nothing that is left.
    """
    log = Log()
    for number, (where, row) in enumerate(_rows(pairs)):
        if len(row) != len(COLUMNS):
            raise DataError(f"{where}: {len(row)} cells where {','.join(COLUMNS)} are needed")
        user, item, time = map(str.strip, row)
        if number == 0 and time.lower() == COLUMNS[-1]:
            continue
        log.add(
            identifier(user, f"{where}: user"),
            identifier(item, f"{where}: item"),
            moment(time, f"{where}: timestamp"),
        )
    dataset, repeated, sparse = log.dataset(pairs, k)
    wanted = set(dataset.catalogue.ids)
    texts: dict[str, tuple[str]] = {}
    for where, (item, *rest) in _rows(titles):  # a header names no item and so is passed over
        if not rest:
            raise DataError(f"{where}: 1 cell where item,title are needed")
        title = clean(",".join(rest))  # a comma in a title is not always quoted
        if title and item.strip() in wanted:
            texts.setdefault(item.strip(), (title,))
    return describe(dataset, texts, (), path=titles, k=k, repeated=repeated, sparse=sparse)


def _rows(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the rows of a CSV file, and where each starts."""
    reader = csv.reader((line for _, line in text_lines(path)), strict=True)
    start = 1  # a quoted cell may hold line breaks: a row starts after the last one's end
    try:
        for row in reader:
            if row:
                yield f"{path}, line {start}", row
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}, line {start}: {error}") from None
