"""The one table everything else reads: who took what and when, and what each item is called.

Items and users are integers from 0 inside the program; `Catalogue.ids` and `Dataset.users` give
their outside names. Titles are not ids: two items may share one.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fellrec.errors import DataError

Ints = NDArray[np.int32]
Longs = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Ragged:
    """Rows of different lengths in two arrays (the CSR layout).

    Attributes:
        offsets: (n + 1,) int64; row i is `values[offsets[i]:offsets[i + 1]]`.
        values: (m,) int32, all rows one after the other. Both arrays are read-only.

    Raises:
        ValueError: the offsets do not describe the values.
    """

    offsets: Longs
    values: Ints

    def __post_init__(self) -> None:
        """Fix the types and refuse offsets that would read outside the values."""
        object.__setattr__(self, "offsets", _frozen(self.offsets, np.int64))
        object.__setattr__(self, "values", _frozen(self.values, np.int32))
        if self.offsets.ndim != 1 or self.values.ndim != 1 or len(self.offsets) == 0:
            raise ValueError("Ragged needs one-dimensional offsets (at least one) and values")
        if self.offsets[0] != 0 or self.offsets[-1] != len(self.values):
            raise ValueError("Ragged offsets must start at 0 and end at the number of values")
        if np.any(np.diff(self.offsets) < 0):
            raise ValueError("Ragged offsets must not decrease")

    @classmethod
    def from_rows(cls, rows: Iterable[Sequence[int] | Ints]) -> Ragged:
        """Build from one sequence of integers per row."""
        arrays = [np.asarray(row, dtype=np.int32).reshape(-1) for row in rows]
        lengths = np.asarray([len(a) for a in arrays], dtype=np.int64)
        values = np.concatenate(arrays) if arrays else np.empty(0, dtype=np.int32)
        return cls.from_lengths(lengths, values)

    @classmethod
    def from_lengths(cls, lengths: NDArray[np.integer], values: Ints) -> Ragged:
        """Build from row lengths (n,) and the values of all rows in order (sum of lengths,)."""
        offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
        np.cumsum(lengths, out=offsets[1:])
        return cls(offsets, values)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Ints:
        """Return row `index` as an int32 view; negative indices count from the end."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        index %= len(self)
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    def lengths(self) -> Longs:
        """Return the length of each row, (n,) int64."""
        return np.diff(self.offsets)

    def rows(self) -> Longs:
        """Return the row number of every value, (m,) int64."""
        return np.repeat(np.arange(len(self), dtype=np.int64), self.lengths())

    def take(self, indices: Sequence[int] | NDArray[np.integer]) -> Ragged:
        """Return the rows at `indices`, in that order (repeats allowed)."""
        picked = np.asarray(indices, dtype=np.int64)
        lengths = self.lengths()[picked]
        ends = np.cumsum(lengths)
        # Position of value p in row r: start of the row here + how far p is into the row there.
        shift = self.offsets[:-1][picked] - (ends - lengths)
        source = np.repeat(shift, lengths) + np.arange(int(lengths.sum()), dtype=np.int64)
        return Ragged.from_lengths(lengths, self.values[source])

    def concat(self, other: Ragged) -> Ragged:
        """Return rows that hold this row followed by the same row of `other`."""
        if len(self) != len(other):
            raise ValueError(f"can't join {len(self)} rows with {len(other)} rows")
        values = np.empty(len(self.values) + len(other.values), dtype=np.int32)
        mine, theirs = self.rows(), other.rows()
        values[np.arange(len(self.values)) + other.offsets[:-1][mine]] = self.values
        values[np.arange(len(other.values)) + self.offsets[1:][theirs]] = other.values
        return Ragged(self.offsets + other.offsets, values)


def _frozen(array: NDArray[np.integer], dtype: type[np.integer]) -> NDArray[Any]:
    """Return a read-only view: whoever writes into a history by mistake finds out at once."""
    view = np.ascontiguousarray(array, dtype=dtype).view()
    view.setflags(write=False)
    return view


@dataclass(frozen=True)
class Catalogue:
    """What each item is. The position in these tuples is the item's index, 0 to n - 1.

    Attributes:
        ids: the data set's own ids, all different.
        titles: one title per item; not necessarily different.
        attributes: further texts by column name, each with one cell per item ("" if absent).

    Raises:
        ValueError: columns of different lengths.
    """

    ids: tuple[str, ...]
    titles: tuple[str, ...]
    attributes: Mapping[str, tuple[str, ...]]

    def __post_init__(self) -> None:
        """Refuse columns of different lengths."""
        for name, column in {"titles": self.titles, **self.attributes}.items():
            if len(column) != len(self.ids):
                raise ValueError(f"catalogue: {len(self.ids)} ids but {len(column)} {name}")

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.ids)

    def texts(self) -> list[str]:
        """Return each item as one text: "Toy Story. release year: 1995. class: Comedy".

        Underscores in attribute names become spaces; empty attributes are left out.
        """
        names = [name.replace("_", " ") for name in self.attributes]
        columns = list(self.attributes.values())
        texts = []
        for index, title in enumerate(self.titles):
            parts = [title] if title else []
            parts += [
                f"{name}: {column[index]}"
                for name, column in zip(names, columns, strict=True)
                if column[index]
            ]
            texts.append(". ".join(parts))
        return texts

    def find(self, title: str) -> list[int]:
        """Return all items of exactly this title; if there are none, ignoring case.

        Raises:
            DataError: no item has that title; names up to three that are near.
        """
        exact = [i for i, known in enumerate(self.titles) if known == title]
        if exact:
            return exact
        folded = [known.casefold() for known in self.titles]
        wanted = title.casefold()
        same = [i for i, known in enumerate(folded) if known == wanted]
        if same:
            return same
        first = {known: i for i, known in reversed(list(enumerate(folded)))}
        near = difflib.get_close_matches(wanted, list(first), n=3)
        hint = "; near: " + ", ".join(f"'{self.titles[first[n]]}'" for n in near) if near else ""
        raise DataError(f"no item has the title '{title}'{hint}")

    def take(self, indices: NDArray[np.integer]) -> Catalogue:
        """Return the catalogue of the items at `indices`, in that order."""
        return Catalogue(
            _pick(self.ids, indices),
            _pick(self.titles, indices),
            _columns(self.attributes, indices),
        )


@dataclass(frozen=True, eq=False)
class Interactions:
    """Every interaction, sorted by (user, time, file order).

    Attributes:
        user: (m,) int32 user index.
        item: (m,) int32 item index.
        time: (m,) float64, in whatever unit the file uses; only its order matters.
        part: (m,) int8, 0 train, 1 validation, 2 test, where the files say so; else None.
        row: (m,) int64 position in the files; orders equal times of different users.

    Raises:
        ValueError: columns of different lengths.
    """

    user: Ints
    item: Ints
    time: NDArray[np.float64]
    part: NDArray[np.int8] | None
    row: Longs

    def __post_init__(self) -> None:
        """Refuse columns of different lengths."""
        lengths = {len(self.user), len(self.item), len(self.time), len(self.row)}
        if self.part is not None:
            lengths.add(len(self.part))
        if len(lengths) > 1:
            raise ValueError("interactions: columns of different lengths")

    @classmethod
    def ordered(
        cls,
        user: NDArray[np.integer],
        item: NDArray[np.integer],
        time: NDArray[np.float64],
        part: NDArray[np.integer] | None = None,
    ) -> Interactions:
        """Sort columns that are in file order; equal times of a user keep that order."""
        order = np.lexsort((time, user))
        return cls(
            user[order].astype(np.int32),
            item[order].astype(np.int32),
            time[order].astype(np.float64),
            None if part is None else part[order].astype(np.int8),
            order.astype(np.int64),
        )

    def __len__(self) -> int:
        """Return the number of interactions."""
        return len(self.user)

    def keep(self, mask: NDArray[np.bool_]) -> Interactions:
        """Return the interactions where `mask` (m,) is true; the order stays."""
        part = None if self.part is None else self.part[mask]
        return Interactions(self.user[mask], self.item[mask], self.time[mask], part, self.row[mask])


@dataclass(frozen=True, eq=False)
class Dataset:
    """A named data set: its items, its users, and what they did.

    Attributes:
        name: a short name for tables and file names.
        catalogue: the items.
        users: outside ids; the position is the user's index.
        interactions: sorted by (user, time, file order).
        user_columns: further columns about users, one cell per user ("" if absent).
    """

    name: str
    catalogue: Catalogue
    users: tuple[str, ...]
    interactions: Interactions
    user_columns: Mapping[str, tuple[str, ...]]

    def histories(self) -> Ragged:
        """Return each user's items, oldest first: one row per user."""
        counts = np.bincount(self.interactions.user, minlength=len(self.users))
        return Ragged.from_lengths(counts, self.interactions.item)


@dataclass(frozen=True, eq=False)
class Split:
    """Each user's items cut into training, validation and test; row u is the same user in all.

    Attributes:
        users: outside ids of the users that could be split.
        train: items before validation, oldest first; never empty.
        valid: validation targets; may be empty with "global-time" and "files".
        test: test targets; may be empty with "global-time" and "files".
        dropped: how many users of the data set had too few interactions.
        user_columns: further columns about the users.
    """

    users: tuple[str, ...]
    train: Ragged
    valid: Ragged
    test: Ragged
    dropped: int
    user_columns: Mapping[str, tuple[str, ...]]

    def __len__(self) -> int:
        """Return the number of users."""
        return len(self.users)

    def history(self, target: Literal["valid", "test"]) -> Ragged:
        """Return what is known of each user before the targets: train, or train then valid."""
        if target == "valid":
            return self.train
        if target == "test":
            return self.train.concat(self.valid)
        raise ValueError(f"history of '{target}': choose 'valid' or 'test'")

    def take(self, indices: Sequence[int] | NDArray[np.integer]) -> Split:
        """Return the split of the users at `indices`; `dropped` still counts the whole set's."""
        picked = np.asarray(indices, dtype=np.int64)
        return Split(
            _pick(self.users, picked),
            self.train.take(picked),
            self.valid.take(picked),
            self.test.take(picked),
            self.dropped,
            _columns(self.user_columns, picked),
        )


def k_core(dataset: Dataset, k: int) -> Dataset:
    """Drop users and items with fewer than `k` interactions until none is left to drop.

    Dropping one makes others fall below `k`, hence the repetition. Survivors keep their order; the
    catalogue shrinks to surviving items. `k` = 1 drops items nobody took and users without any.

    Raises:
        DataError: `k` below 1, or nothing survives.
    """
    if k < 1:
        raise DataError(f"k-core needs k of 1 or more, not {k}")
    log = dataset.interactions
    kept = np.ones(len(log), dtype=np.bool_)
    while True:
        users = np.bincount(log.user[kept], minlength=len(dataset.users)) >= k
        items = np.bincount(log.item[kept], minlength=len(dataset.catalogue)) >= k
        smaller = kept & users[log.user] & items[log.item]
        if np.array_equal(smaller, kept):
            break
        kept = smaller
    if not kept.any():
        raise DataError(f"{dataset.name}: no user and item have {k} interactions; choose a lower k")
    log = log.keep(kept)
    item_index = np.cumsum(items) - 1
    log = replace(log, item=item_index[log.item].astype(np.int32))
    catalogue = dataset.catalogue.take(np.flatnonzero(items))
    return _with_users(dataset, catalogue, log, np.flatnonzero(users))


def sample_users(dataset: Dataset, count: int, rng: np.random.Generator) -> Dataset:
    """Keep `count` users drawn without replacement, in their old order; the catalogue stays.

    Raises:
        DataError: `count` below 1 or above the number of users.
    """
    total = len(dataset.users)
    if not 1 <= count <= total:
        raise DataError(
            f"{dataset.name}: can't sample {count} of {total} users; choose 1 to {total}"
        )
    chosen = np.sort(rng.choice(total, size=count, replace=False))
    mask = np.zeros(total, dtype=np.bool_)
    mask[chosen] = True
    log = dataset.interactions
    return _with_users(dataset, dataset.catalogue, log.keep(mask[log.user]), chosen)


def _with_users(
    dataset: Dataset, catalogue: Catalogue, log: Interactions, users: NDArray[np.integer]
) -> Dataset:
    """Renumber the users of `log`, of which only those in `users` (ascending) may occur."""
    renumbered = np.searchsorted(users, log.user).astype(np.int32)
    return Dataset(
        dataset.name,
        catalogue,
        _pick(dataset.users, users),
        replace(log, user=renumbered),
        _columns(dataset.user_columns, users),
    )


def _pick(cells: tuple[str, ...], indices: NDArray[np.integer]) -> tuple[str, ...]:
    return tuple(cells[i] for i in indices.tolist())


def _columns(
    columns: Mapping[str, tuple[str, ...]], indices: NDArray[np.integer]
) -> dict[str, tuple[str, ...]]:
    return {name: _pick(cells, indices) for name, cells in columns.items()}
