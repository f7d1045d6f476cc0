"""Files too large to hold: read line by line, kept as compact columns.

What stays in memory is 16 bytes an interaction and every id once; texts are kept only of items that
somebody took. Readers of one form (`amazon.py`, `microlens.py`) share this.
"""

from __future__ import annotations

import gzip
import math
import zlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fellrec.data.interactions import Catalogue, Dataset, Interactions, k_core
from fellrec.data.repeats import first_rows
from fellrec.errors import DataError

# A line is held whole, so a file without line breaks must not fill the memory.
LONGEST = 16 << 20


@dataclass(frozen=True, eq=False)
class Imported:
    """A data set, and what of the files is not in it.

    Attributes:
        dataset: what was read.
        repeated: interactions left out because their user took the item earlier.
        untitled: interactions left out because their item has no title.
        untitled_items: how many items that concerns.
        sparse: interactions left out with users and items that have fewer than the k-core asks for.
    """

    dataset: Dataset
    repeated: int = 0
    untitled: int = 0
    untitled_items: int = 0
    sparse: int = 0

    def remarks(self) -> list[str]:
        """Return a line for each reason for which interactions were left out."""
        found = []
        if self.repeated:
            found.append(f"left out repeats of what the user took earlier: {self.repeated:,}")
        if self.untitled:
            found.append(
                f"left out interactions with items that have no title: {self.untitled:,} "
                f"(items: {self.untitled_items:,})"
            )
        if self.sparse:
            found.append(f"left out interactions outside of the k-core: {self.sparse:,}")
        return found


class Log:
    """Interactions in the order of the file, numbered as they are added."""

    def __init__(self) -> None:
        self._users: dict[str, int] = {}
        self._items: dict[str, int] = {}
        self._user, self._item, self._time = array("i"), array("i"), array("d")

    def add(self, user: str, item: str, time: float) -> None:
        """Note that a user took an item."""
        self._user.append(self._users.setdefault(user, len(self._users)))
        self._item.append(self._items.setdefault(item, len(self._items)))
        self._time.append(time)

    def dataset(self, path: Path, k: int) -> tuple[Dataset, int, int]:
        """Return a data set of items without texts, and how many interactions it does without.

        These are repeats (see `repeats`), and what is outside of the k-core.

        Args:
            path: the file, which gives the data set its name.
            k: keep users and items with at least this many interactions; 0 keeps all.

        Raises:
            DataError: nothing was added, or nothing is left.
        """
        if not self._user:
            raise DataError(f"{path}: has no interactions")
        user, item = np.array(self._user, np.int64), np.array(self._item, np.int64)
        time = np.array(self._time)
        kept = first_rows(user, item, time)
        ids = tuple(self._items)
        dataset = Dataset(
            path.name.split(".")[0] or "imported",
            Catalogue(ids, ("",) * len(ids), {}),
            tuple(self._users),
            Interactions.ordered(user[kept], item[kept], time[kept]),
            {},
        )
        core = k_core(dataset, k) if k else dataset
        return core, len(user) - len(kept), len(kept) - len(core.interactions)


def describe(
    dataset: Dataset,
    texts: Mapping[str, Sequence[str]],
    attributes: Sequence[str],
    *,
    path: Path,
    k: int,
    repeated: int,
    sparse: int,
) -> Imported:
    """Give items their texts, and leave out those without a title.

    Args:
        dataset: of items without texts. It may be a k-core already, which spares the texts of items
            that would go anyway: the core of the titled part lies within the core of all.
        texts: by item id, a title that is not empty and a text per attribute.
        attributes: their names.
        path: the file that `texts` is from, for the message.
        k: keep users and items with at least this many interactions; 0 keeps all.
        repeated, sparse: how many interactions were left out before, see `Imported`.

    Raises:
        DataError: no item has a title, or nothing is left.
    """
    ids = dataset.catalogue.ids
    titled = np.fromiter((item in texts for item in ids), np.bool_, len(ids))
    stays = titled[dataset.interactions.item]
    if not stays.any():
        raise DataError(f"{path}: has no title for any of the items that were taken")
    rows = [texts.get(item, ("",) * (1 + len(attributes))) for item in ids]
    titles, *columns = zip(*rows, strict=True)
    catalogue = Catalogue(ids, titles, dict(zip(attributes, columns, strict=True)))
    rest = replace(dataset, catalogue=catalogue, interactions=dataset.interactions.keep(stays))
    # A core of 1 drops the items without a title, which nobody has any more.
    core = k_core(rest, max(k, 1))
    sparse += len(rest.interactions) - len(core.interactions)
    return Imported(core, repeated, int((~stays).sum()), int((~titled).sum()), sparse)


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield a UTF-8 file's lines and their numbers from 1, holding one; `.gz` is unpacked.

    Raises:
        DataError: the file is missing, unreadable, empty, cut, not UTF-8, or has a line of more
            than `LONGEST` bytes.
    """
    number = 0
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
            while line := file.readline(LONGEST + 1):
                number += 1
                if len(line) > LONGEST:
                    raise DataError(f"{path}, line {number}: is longer than {LONGEST} bytes")
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}, line {number}: is not UTF-8; convert the file to UTF-8") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: is not a whole gzip file, line {number + 1}: {error}") from None
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror or error})") from None
    if not number:
        raise DataError(f"{path}: is empty")


def identifier(value: Any, where: str) -> str:
    """Return an id.

    Args:
        value: what stands in the file; None where nothing does.
        where: the file, the line and the column, for the message.

    Raises:
        DataError: it is missing, not text, empty, or has a tab, a line break or a broken character.
    """
    if isinstance(value, str) and value.strip() and value.isprintable():
        return value
    raise DataError(f"{where} {_fault(value, 'an id')}")


def moment(value: Any, where: str) -> float:
    """Return a time.

    Args:
        value: what stands in the file, a number or one as text; None where nothing does.
        where: the file, the line and the column, for the message.

    Raises:
        DataError: it is missing or not a finite number.
    """
    try:
        time = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        time = math.nan
    if math.isfinite(time):
        return time
    raise DataError(f"{where} {_fault(value, 'a finite number')}")


def _fault(value: Any, wanted: str) -> str:
    return "is missing" if value is None else f"{ascii(value)[:60]} is not {wanted}"


def clean(text: str) -> str:
    """Return a text on one line: white space becomes single spaces, broken characters "?"."""
    return " ".join(text.split()).encode("utf-8", "replace").decode("utf-8")
