from __future__ import annotations

import json
import stat
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from fellrec.data.atomic import read_atomic, read_catalogue, write_atomic
from fellrec.data.client_file import (
    ClientFile,
    make_client_file,
    read_client_file,
    write_client_file,
)
from fellrec.data.interactions import Catalogue, Ragged, Split
from fellrec.data.packed_texts import catalogue_digest
from fellrec.data.splits import SplitKind, split
from fellrec.errors import DataError
from fellrec.federation.shares import share_data
from fellrec.federation.workspace import Workspace
from tests.toys import Toys

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6).filter(
    str.isprintable
)


@st.composite
def contents(draw: st.DrawFn) -> ClientFile:
    """Draw any catalogue and any users of it."""

    def distinct(most: int, least: int) -> st.SearchStrategy[list[str]]:
        return st.lists(NAMES, min_size=least, max_size=most, unique=True)

    def columns(length: int) -> dict[str, tuple[str, ...]]:
        cells = st.lists(TEXTS, min_size=length, max_size=length).map(tuple)
        return draw(st.dictionaries(NAMES, cells, max_size=2))

    ids, users = draw(distinct(5, 1)), draw(distinct(4, 1))

    def rows(least: int) -> Ragged:
        row = st.lists(st.integers(0, len(ids) - 1), min_size=least, max_size=4)
        return Ragged.from_rows(draw(st.lists(row, min_size=len(users), max_size=len(users))))

    titles = draw(st.lists(TEXTS, min_size=len(ids), max_size=len(ids)))
    catalogue = Catalogue(tuple(ids), tuple(titles), columns(len(ids)))
    parts = Split(
        tuple(users), rows(1), rows(0), rows(0), draw(st.integers(0, 9)), columns(len(users))
    )
    kind: SplitKind = draw(st.sampled_from(get_args(SplitKind)))
    return ClientFile(draw(NAMES), catalogue, parts, kind, catalogue_digest(catalogue))


def write(path: Path, content: ClientFile) -> None:
    write_client_file(
        path, content.dataset_name, content.catalogue, content.split, content.split_kind
    )


def same(left: ClientFile, right: ClientFile) -> bool:
    """Whether two are equal in every array and text, in their order and their types."""
    for name in ("train", "valid", "test"):
        one, other = getattr(left.split, name), getattr(right.split, name)
        for a, b in ((one.offsets, other.offsets), (one.values, other.values)):
            if a.dtype != b.dtype or not np.array_equal(a, b):
                return False
    return all(
        [
            left.dataset_name == right.dataset_name,
            left.catalogue == right.catalogue,
            list(left.catalogue.attributes) == list(right.catalogue.attributes),
            left.split.users == right.split.users,
            left.split.dropped == right.split.dropped,
            list(left.split.user_columns.items()) == list(right.split.user_columns.items()),
            left.split_kind == right.split_kind,
            left.catalogue_digest == right.catalogue_digest,
        ]
    )


def small() -> ClientFile:
    catalogue = Catalogue(
        ("i0", "i1", "i2"), ("Höhle", "", "Toy\nStory"), {"year": ("1995", "", "")}
    )
    train, valid, test = (Ragged.from_rows(rows) for rows in ([[0, 2], [1]], [[1], []], [[2], [0]]))
    parts = Split(("u0", "u1"), train, valid, test, 3, {"shop": ("a", "b")})
    return ClientFile("demo", catalogue, parts, "global-time", catalogue_digest(catalogue))


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch") / "client"


@given(content=contents())
def test_what_is_read_is_what_was_written(content: ClientFile, scratch: Path) -> None:
    write(scratch, content)
    assert same(read_client_file(scratch), content)


@given(content=contents(), data=st.data())
def test_a_damaged_file_is_refused_or_says_the_same(
    content: ClientFile, data: st.DataObject, scratch: Path
) -> None:
    write(scratch, content)
    damaged = bytearray(scratch.read_bytes())
    at = data.draw(st.integers(0, len(damaged) - 1))
    if data.draw(st.booleans()):
        del damaged[at:]
    else:
        damaged[at] ^= data.draw(st.integers(1, 255))
    scratch.write_bytes(damaged)
    try:
        found = read_client_file(scratch)
    except DataError as error:
        assert str(scratch) in str(error)
        assert "\n" not in str(error)
    else:
        assert same(found, content)


def test_every_single_bit_that_is_flipped_is_noticed_or_changes_nothing(tmp_path: Path) -> None:
    path, content = tmp_path / "client", small()
    write(path, content)
    whole = path.read_bytes()
    refused = 0
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        try:
            assert same(read_client_file(path), content)
        except DataError:
            refused += 1
    assert refused > len(whole) * 0.95  # the rest are spaces of JSON


@given(st.binary(max_size=300))
def test_any_bytes_are_refused(scratch: Path, junk: bytes) -> None:
    scratch.write_bytes(junk)
    with pytest.raises(DataError, match="make it again"):
        read_client_file(scratch)


def test_a_client_trains_on_the_batches_of_the_simulation(
    toys: Toys, own_cache: None, tmp_path: Path
) -> None:
    config = toys.recipe()
    shares = share_data(config)
    path = tmp_path / "north.fellrec"
    for client, name in enumerate(shares.partition.names):
        own = shares.of(client)
        write_client_file(path, shares.dataset.name, shares.dataset.catalogue, own, "leave-one-out")
        found = read_client_file(path)
        here = Workspace(config, shares.dataset).client(name, own)
        there = Workspace(config, found.public()).client(name, found.split)
        for left, right in zip(here.epoch(1, 0), there.epoch(1, 0), strict=True):
            assert equal(left, right)
        assert np.array_equal(here.scored("test"), there.scored("test"))


def equal(left: Any, right: Any) -> bool:
    """Compare batches field by field, down to their arrays."""
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, np.ndarray):
        return np.array_equal(left, right)
    if hasattr(left, "__dataclass_fields__"):
        return all(equal(getattr(left, f.name), getattr(right, f.name)) for f in fields(left))
    return bool(left == right)


def test_only_the_owner_may_read_the_file(tmp_path: Path) -> None:
    write(tmp_path / "client", small())
    assert stat.S_IMODE((tmp_path / "client").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["client"]


def test_the_same_content_is_the_same_file(tmp_path: Path) -> None:
    write(tmp_path / "a", small())
    write(tmp_path / "b", small())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file; name this client's data file"):
        read_client_file(tmp_path / "client")
    with pytest.raises(DataError, match="can't be read"):
        read_client_file(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="can't be written"):
        write(tmp_path / "file" / "client", small())


ONE = Ragged.from_rows([[0]])


@pytest.mark.parametrize(
    ("catalogue", "parts", "reason"),
    [
        ({"ids": ("a", "b\x1b[2J", "c")}, {}, r"item 'b\\x1b\[2J' is empty or can't be printed"),
        ({"ids": ("a", "", "c")}, {}, "item '' is empty"),
        ({"ids": ("a", "b", "a")}, {}, "two items have the same id"),
        ({"attributes": {"": ("", "", "")}}, {}, "name '' is empty"),
        ({"titles": ("a", "\ud800", "c")}, {}, "is not Unicode"),
        ({}, {"users": ("u", "u")}, "two users have the same id"),
        ({}, {"users": ("u", "v\n")}, r"user 'v\\n' is empty or can't be printed"),
        ({}, {"train": Ragged.from_rows([[0], []])}, "a user has no training item"),
        ({}, {"train": ONE}, "train has 1 rows for 2 users"),
        ({}, {"test": Ragged.from_rows([[3], []])}, "test names an item that the catalogue"),
        ({}, {"valid": Ragged.from_rows([[-1], []])}, "valid names an item that the catalogue"),
        ({}, {"dropped": -1}, "a count of users that were dropped"),
        ({}, {"user_columns": {"shop": ("a",)}}, "column 'shop' has 1 cells"),
    ],
)
def test_what_no_file_may_say_is_not_written(
    catalogue: dict[str, Any], parts: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    content = small()
    odd = replace(
        content,
        catalogue=replace(content.catalogue, **catalogue),
        split=replace(content.split, **parts),
    )
    with pytest.raises(DataError, match=reason) as caught:
        write(tmp_path / "client", odd)
    assert str(tmp_path / "client") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "client").exists()


def forge(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    """Change a file's header and arrays, and give it a checksum that fits again."""
    from fellrec.data.client_file import _KEY, _canonical, _digest

    arrays: dict[str, Any] = load_file(path)
    with safe_open(path, framework="numpy") as file:
        about = json.loads(file.metadata()[_KEY])
    change(about, arrays)
    if "digest" in about:
        about["digest"] = _digest(about, arrays)
    save_file(arrays, path, {_KEY: _canonical(about)})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda about, arrays: about.update(format=2), "not of format 1"),
        (lambda about, arrays: about.update(format=True), "format is no int"),
        (lambda about, arrays: about.update(users=1), "counts other users"),
        (lambda about, arrays: about.update(dropped=1.0), "dropped is no int"),
        (lambda about, arrays: about.update(dropped=-1), "count of users that were dropped"),
        (lambda about, arrays: about.update(split="random"), "split 'random' is unknown"),
        (lambda about, arrays: about.update(dataset="a\nb"), "can't be printed"),
        (lambda about, arrays: about.update(catalogue="0" * 64), "not the one that its header"),
        (lambda about, arrays: about.update(fields=["a", "a"]), "fields are not names"),
        (lambda about, arrays: about.update(fields=[1]), "fields are not names"),
        (lambda about, arrays: about.update(more=1), "'more'"),
        (lambda about, arrays: about.pop("digest"), "'digest'"),
        (lambda about, arrays: arrays.pop("valid.items"), "'valid.items' is missing"),
        (lambda about, arrays: arrays.update(more=np.zeros(1)), "'more' is missing or not"),
        (
            lambda about, arrays: arrays.update({"train.items": np.array([0, 2, 7], "i4")}),
            "train names an item",
        ),
        (
            lambda about, arrays: arrays.update({"train.items": np.array([0, 2, 1], "i8")}),
            "'train.items' is not one row of I32",
        ),
        (
            lambda about, arrays: arrays.update({"train.items": np.zeros((3, 1), "i4")}),
            "'train.items' is not one row of I32",
        ),
        (
            lambda about, arrays: arrays.update({"train.offsets": np.array([0, 4, 3], "i8")}),
            "must not decrease",
        ),
        (
            lambda about, arrays: arrays.update({"item.ids.offsets": np.array([0, 9, 2, 6], "i8")}),
            "offsets of texts decrease",
        ),
        (
            lambda about, arrays: arrays.update({"item.ids.offsets": np.array([0, 9], "i8")}),
            "do not fit their bytes",
        ),
        (
            lambda about, arrays: arrays.update({"item.titles.bytes": np.full(15, 255, "u1")}),
            "not UTF-8",
        ),
        (
            lambda about, arrays: arrays.update({"item.titles.offsets": np.array([0, 15], "i8")}),
            "3 ids but 1 titles",
        ),
    ],
)
def test_a_file_with_the_right_checksum_is_not_believed(
    change: Callable[[dict[str, Any], dict[str, Any]], None], reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "client"
    write(path, small())
    forge(path, change)
    with pytest.raises(DataError, match=reason):
        read_client_file(path)


def test_any_other_safetensors_file_is_refused(tmp_path: Path) -> None:
    save_file({"a": np.zeros(3)}, tmp_path / "client")
    with pytest.raises(DataError, match="not written as a client file"):
        read_client_file(tmp_path / "client")


def test_a_shop_makes_its_file_from_its_own_folder(toys: Toys, tmp_path: Path) -> None:
    whole = read_atomic(toys.data)
    shop = replace(whole, name="corner-shop")
    stem = write_atomic(shop, tmp_path / "shop")
    (tmp_path / "shop" / "corner-shop.item").unlink()  # it has interactions alone
    common = read_catalogue(toys.data)
    path = tmp_path / "client"
    made = make_client_file(
        path, stem.parent, "leave-one-out", catalogue=common, dataset_name="toys"
    )
    expected = ClientFile(
        "toys", common, split(whole, "leave-one-out"), "leave-one-out", catalogue_digest(common)
    )
    assert same(read_client_file(path), expected)
    assert same(made, expected)


def test_a_shop_may_bring_the_catalogue_itself(toys: Toys, tmp_path: Path) -> None:
    made = make_client_file(tmp_path / "client", toys.data, "last-5")
    assert made.dataset_name == "toys"
    assert made.catalogue == read_catalogue(toys.data)
    assert same(read_client_file(tmp_path / "client"), made)


def test_an_item_that_the_common_catalogue_lacks_is_named(toys: Toys, tmp_path: Path) -> None:
    common = read_catalogue(toys.data)
    shorter = common.take(np.arange(len(common) - 4))
    lacking = set(common.ids[-4:])
    lines = (toys.data / "toys.inter").read_text().splitlines()
    first = next(n for n, line in enumerate(lines, 1) if n > 1 and line.split("\t")[1] in lacking)
    item = lines[first - 1].split("\t")[1]
    with pytest.raises(DataError, match=rf"toys.inter, line {first}: item '{item}' is not in"):
        make_client_file(tmp_path / "client", toys.data, "leave-one-out", catalogue=shorter)
    assert not (tmp_path / "client").exists()


def test_a_folder_of_parts_needs_no_items_of_its_own(tmp_path: Path) -> None:
    header = "user_id:token\titem_id:token\ttimestamp:float\n"
    for part, row in (("train", "u\ti1\t1"), ("valid", "u\ti0\t2"), ("test", "u\ti2\t3")):
        (tmp_path / f"shop.{part}.inter").write_text(f"{header}{row}\n")
    common = small().catalogue
    made = make_client_file(tmp_path / "client", tmp_path, "files", catalogue=common)
    assert made.dataset_name == "shop"
    assert [made.split.train[0], made.split.valid[0], made.split.test[0]] == [1, 0, 2]
    with pytest.raises(DataError, match=r"no \.item file"):
        make_client_file(tmp_path / "client", tmp_path, "files")


@settings(max_examples=25)
@given(contents())
def test_the_digest_of_a_catalogue_tells_order_ids_and_texts(content: ClientFile) -> None:
    catalogue = content.catalogue
    changed = [
        replace(catalogue, ids=(catalogue.ids[0] + "x", *catalogue.ids[1:])),
        replace(catalogue, titles=(catalogue.titles[0] + "x", *catalogue.titles[1:])),
        replace(catalogue, attributes={**catalogue.attributes, "new field": catalogue.ids}),
        replace(catalogue, ids=catalogue.titles, titles=catalogue.ids),
        catalogue.take(np.arange(len(catalogue))[::-1]),
        catalogue.take(np.arange(len(catalogue) - 1)),
    ]
    digests = {catalogue_digest(c) for c in changed if c != catalogue}
    assert content.catalogue_digest not in digests
    assert catalogue_digest(replace(catalogue)) == content.catalogue_digest
    assert len(digests) == len({repr(c) for c in changed if c != catalogue})
