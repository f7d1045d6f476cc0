"""A client's data as one file: its own users' items, and the catalogue that all parties share.

Where clients are on machines of their own, this file is all that a client is given, and training
from it is training in the simulation: every array is equal, order included. It stays with the
client and is readable by its owner only.

One safetensors file. Texts are one tensor of UTF-8 bytes and one of offsets; a small JSON header
says what the arrays are; a digest over all of it tells a damaged file from a whole one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, get_args

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from fellrec.data.atomic import read_atomic
from fellrec.data.files import replace_file
from fellrec.data.interactions import Catalogue, Dataset, Interactions, Ragged, Split
from fellrec.data.packed_texts import catalogue_digest, pack_texts, unpack_texts
from fellrec.data.splits import SplitKind, split
from fellrec.data.tensor_files import Header, Span, read_blocks, read_header
from fellrec.errors import DataError

FORMAT = 1
_KEY = "fellrec-client"
_DTYPES = {"bytes": ("U8", "u1"), "offsets": ("I64", "<i8"), "items": ("I32", "<i4")}
_ABOUT: Mapping[str, type] = {
    "format": int,
    "dataset": str,
    "split": str,
    "users": int,
    "items": int,
    "dropped": int,
    "fields": list,
    "columns": list,
    "catalogue": str,
    "digest": str,
}
_ROWS = ("train", "valid", "test")
_Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, eq=False)
class ClientFile:
    """What a client's file holds.

    Attributes:
        dataset_name: of the data set that the client takes part with; prompts may depend on it.
        catalogue: all items, also those that none of this client's users took.
        split: this client's users.
        split_kind: how they were split.
        catalogue_digest: as `catalogue_digest` makes it.
    """

    dataset_name: str
    catalogue: Catalogue
    split: Split
    split_kind: SplitKind
    catalogue_digest: str

    def public(self) -> Dataset:
        """Return the name and the items without any user: what a recommender is built from."""
        none = np.empty(0, np.int32)
        nothing = Interactions.ordered(none, none, np.empty(0, np.float64))
        return Dataset(self.dataset_name, self.catalogue, (), nothing, {})


def write_client_file(
    path: Path,
    dataset_name: str,
    catalogue: Catalogue,
    split: Split,
    split_kind: SplitKind,
) -> None:
    """Write one client's users and the whole catalogue to `path`, readable by its owner only.

    Raises:
        DataError: what `read_client_file` would refuse, or a file that can't be written.
    """
    try:
        _check(dataset_name, catalogue, split, split_kind)
        arrays = _arrays(catalogue, split)
    except ValueError as error:
        raise DataError(f"{path}: can't be written: {error}; mend the data set") from None
    about = {
        "format": FORMAT,
        "dataset": dataset_name,
        "split": split_kind,
        "users": len(split),
        "items": len(catalogue),
        "dropped": split.dropped,
        "fields": list(catalogue.attributes),
        "columns": list(split.user_columns),
        "catalogue": catalogue_digest(catalogue),
    }
    about["digest"] = _digest(about, arrays)
    try:
        replace_file(path, save(arrays, {_KEY: _canonical(about)}), mode=0o600)
    except OSError as error:
        raise DataError(f"{path}: can't be written ({error.strerror or error})") from None


def make_client_file(
    path: Path,
    folder: Path,
    split_kind: SplitKind,
    *,
    catalogue: Catalogue | None = None,
    dataset_name: str | None = None,
) -> ClientFile:
    """Write a party's own interactions as its file.

    Args:
        path: the file to write.
        folder: RecBole files, as `read_atomic` takes them.
        split_kind: how the party's users are split, the same for all parties.
        catalogue: the items that all parties share, by ids that `folder` uses too; None takes the
            folder's own as they are.
        dataset_name: None takes the name of the folder's files; the same for all parties.

    Returns:
        What was written.

    Raises:
        DataError: what `read_atomic` refuses, above all an item that the catalogue does not have
            (names the first, with its file and line); no user that can be split; a file that can't
            be written.
        ConfigError: an unknown split.
    """
    own = read_atomic(folder, catalogue)
    parts = split(own, split_kind)
    name = own.name if dataset_name is None else dataset_name
    write_client_file(path, name, own.catalogue, parts, split_kind)
    return ClientFile(name, own.catalogue, parts, split_kind, catalogue_digest(own.catalogue))


def read_client_file(path: Path) -> ClientFile:
    """Read a client's file; nothing in it is believed.

    Raises:
        DataError: it is missing, damaged, of another format, or says what can't be.
    """
    try:
        with path.open("rb") as file:
            return _read(file)
    except FileNotFoundError:
        raise DataError(
            f"{path}: no such file; name this client's data file, or make it first"
        ) from None
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror or error})") from None
    except ValueError as error:
        raise DataError(f"{path}: is no usable client file: {error}; make it again") from None


def _read(file: BinaryIO) -> ClientFile:
    """Read an open file; ValueError says what is wrong with it."""
    header = read_header(file)
    about = _about(header)
    texts = ["item.ids", "item.titles", "user.ids"]
    fields = [f"item.field.{number}" for number in range(len(about["fields"]))]
    columns = [f"user.column.{number}" for number in range(len(about["columns"]))]
    wanted = {
        f"{name}.{part}" for name in texts + fields + columns for part in ("bytes", "offsets")
    }
    wanted |= {f"{name}.{part}" for name in _ROWS for part in ("items", "offsets")}
    if header.tensors.keys() != wanted:
        odd = min(header.tensors.keys() ^ wanted)
        raise ValueError(f"tensor {odd!r} is missing or not of this format")
    arrays = {name: _array(file, name, span) for name, span in header.tensors.items()}
    if _digest(about, arrays) != about["digest"]:
        raise ValueError("its checksum is wrong")

    def unpack(name: str) -> tuple[str, ...]:
        return unpack_texts(arrays[f"{name}.bytes"], arrays[f"{name}.offsets"])

    def ragged(name: str) -> Ragged:
        return Ragged(arrays[f"{name}.offsets"], arrays[f"{name}.items"])

    catalogue = Catalogue(
        unpack("item.ids"),
        unpack("item.titles"),
        dict(zip(about["fields"], map(unpack, fields), strict=True)),
    )
    users = Split(
        unpack("user.ids"),
        ragged("train"),
        ragged("valid"),
        ragged("test"),
        about["dropped"],
        dict(zip(about["columns"], map(unpack, columns), strict=True)),
    )
    _check(about["dataset"], catalogue, users, about["split"])
    if (len(users), len(catalogue)) != (about["users"], about["items"]):
        raise ValueError("its header counts other users or items than it has")
    digest = catalogue_digest(catalogue)
    if digest != about["catalogue"]:
        raise ValueError("its catalogue is not the one that its header names")
    return ClientFile(about["dataset"], catalogue, users, about["split"], digest)


def _about(header: Header) -> dict[str, Any]:
    """Read the JSON header; it has exactly the keys of this format, each of its type."""
    if _KEY not in header.metadata:
        raise ValueError("it was not written as a client file")
    try:
        about = json.loads(header.metadata[_KEY])
    except (ValueError, RecursionError):
        raise ValueError("its header is not JSON") from None
    if not isinstance(about, dict):
        raise ValueError("its header is not a JSON object")
    if about.get("format") != FORMAT:
        raise ValueError(f"it is not of format {FORMAT}, which this version of fellrec reads")
    odd = min(about.keys() ^ _ABOUT.keys(), default=None)
    if odd is not None:
        raise ValueError(f"its header lacks or should not have {odd!r}")
    for key, kind in _ABOUT.items():
        if type(about[key]) is not kind:  # True is an int to isinstance
            raise ValueError(f"its header's {key} is no {kind.__name__}")
    for key in ("fields", "columns"):
        names = about[key]
        if not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
            raise ValueError(f"its header's {key} are not names that differ")
    return about


def _check(name: str, catalogue: Catalogue, split: Split, kind: str) -> None:
    """Raise ValueError for what no client file may say, whoever wrote it."""
    if kind not in get_args(SplitKind):
        raise ValueError(f"the split {kind!r} is unknown")
    names = [name, *catalogue.attributes, *split.user_columns]
    for label, texts in (("name", names), ("item", catalogue.ids), ("user", split.users)):
        for text in texts:
            if not text or not text.isprintable():
                raise ValueError(f"{label} {text!r} is empty or can't be printed")
    for label, ids in (("item", catalogue.ids), ("user", split.users)):
        if len(set(ids)) < len(ids):
            raise ValueError(f"two {label}s have the same id")
    if not len(split) or not len(catalogue) or split.dropped < 0:
        raise ValueError("it needs an item, a user, and a count of users that were dropped")
    for column, cells in split.user_columns.items():
        if len(cells) != len(split):
            raise ValueError(f"the users' column {column!r} has {len(cells)} cells")
    for label, rows in (("train", split.train), ("valid", split.valid), ("test", split.test)):
        if len(rows) != len(split):
            raise ValueError(f"{label} has {len(rows)} rows for {len(split)} users")
        if len(rows.values) and not 0 <= rows.values.min() <= rows.values.max() < len(catalogue):
            raise ValueError(f"{label} names an item that the catalogue does not have")
    if not split.train.lengths().all():
        raise ValueError("a user has no training item")


def _arrays(catalogue: Catalogue, split: Split) -> _Arrays:
    texts = {"item.ids": catalogue.ids, "item.titles": catalogue.titles, "user.ids": split.users}
    for number, column in enumerate(catalogue.attributes.values()):
        texts[f"item.field.{number}"] = column
    for number, column in enumerate(split.user_columns.values()):
        texts[f"user.column.{number}"] = column
    arrays: _Arrays = {}
    for name, column in texts.items():
        arrays[f"{name}.bytes"], arrays[f"{name}.offsets"] = pack_texts(column)
    for name, rows in (("train", split.train), ("valid", split.valid), ("test", split.test)):
        arrays[f"{name}.items"], arrays[f"{name}.offsets"] = rows.values, rows.offsets
    return {name: _stored(name, array) for name, array in arrays.items()}


def _stored(name: str, array: NDArray[Any]) -> NDArray[Any]:
    """Give an array the type in which the file keeps it."""
    return np.ascontiguousarray(array, dtype=_DTYPES[name.rpartition(".")[2]][1])


def _array(file: BinaryIO, name: str, span: Span) -> NDArray[Any]:
    kind, dtype = _DTYPES[name.rpartition(".")[2]]
    if span.dtype != kind or len(span.shape) != 1:
        raise ValueError(f"tensor {name!r} is not one row of {kind}")
    return np.frombuffer(b"".join(map(bytes, read_blocks(file, span))), dtype)


def _digest(about: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> str:
    """Return a SHA-256 over the header, its own digest left out, and every array."""
    rest = {key: value for key, value in about.items() if key != "digest"}
    digest = hashlib.sha256(_canonical(rest).encode())
    for name in sorted(arrays):
        digest.update(f"{name} {len(arrays[name])} ".encode())
        digest.update(arrays[name].tobytes())
    return digest.hexdigest()


def _canonical(values: Mapping[str, Any]) -> str:
    return json.dumps(values, sort_keys=True, separators=(",", ":"))
