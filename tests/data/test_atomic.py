from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fellrec.data.atomic import read_atomic, write_atomic
from fellrec.data.interactions import Catalogue, Dataset, Interactions
from fellrec.errors import DataError

ITEMS = "item_id:token\tmovie_title:token_seq\trelease_year:token\n7\tHeat\t1995\n9\tHeat\t\n"
INTER = (
    "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    "b\t9\t1\t20\na\t7\t5\t30\nb\t7\t2\t20\nb\t9\t3\t10.5\n"
)
HEAD = "user_id:token\titem_id:token\ttimestamp:float\n"


def write(folder: Path, **files: str) -> Path:
    """Write files named set.<ending>, underscores in the key for dots."""
    for ending, text in files.items():
        (folder / f"set.{ending.replace('_', '.')}").write_bytes(text.encode())
    return folder


def refuse(folder: Path, match: str) -> None:
    with pytest.raises(DataError, match=match) as caught:
        read_atomic(folder)
    assert "\n" not in str(caught.value)


def test_reads_a_folder_in_order_of_user_time_and_line(tmp_path: Path) -> None:
    inter = INTER.replace("b\t9\t3", "b\t8\t3")
    data = read_atomic(write(tmp_path, inter=inter, item=ITEMS + "8\tRonin\t1998\n"))
    assert data.name == "set"
    assert data.catalogue == Catalogue(
        ("7", "9", "8"), ("Heat", "Heat", "Ronin"), {"release_year": ("1995", "", "1998")}
    )
    assert data.users == ("b", "a")  # by first appearance
    log = data.interactions
    assert log.user.tolist() == [0, 0, 0, 1]
    assert log.item.tolist() == [2, 1, 0, 0]  # 10.5, then the two at 20 as in the file
    assert log.time.tolist() == [10.5, 20, 20, 30]
    assert log.row.tolist() == [3, 0, 2, 1]
    assert log.part is None
    assert data.user_columns == {}


def test_a_stem_and_windows_line_ends_and_a_byte_order_mark(tmp_path: Path) -> None:
    write(tmp_path, inter="\ufeff" + INTER.replace("\n", "\r\n"), item=ITEMS)
    data = read_atomic(tmp_path / "set")
    assert len(data.interactions) == 3
    assert data.users == ("b", "a")


def test_quotes_are_ordinary_letters(tmp_path: Path) -> None:
    items = 'item_id:token\ttitle:token_seq\n1\t"Heat\n2\ta "b" c"\n'
    inter = HEAD + "u\t1\t1\n"
    assert read_atomic(write(tmp_path, inter=inter, item=items)).catalogue.titles == (
        '"Heat',
        'a "b" c"',
    )


def test_parts_say_train_valid_test(tmp_path: Path) -> None:
    write(
        tmp_path,
        train_inter=HEAD + "a\t7\t1\nb\t7\t1\n",
        valid_inter=HEAD + "a\t9\t2\n",
        test_inter=HEAD + "b\t9\t2\n",
        item=ITEMS,
    )
    log = read_atomic(tmp_path).interactions
    assert log.part is not None
    assert log.part.tolist() == [0, 1, 0, 2]
    assert log.user.tolist() == [0, 0, 1, 1]


def test_user_columns_follow_the_users(tmp_path: Path) -> None:
    users = "user_id:token\tage:token\tgender:token\na\t30\tF\nz\t1\tM\n"
    data = read_atomic(write(tmp_path, inter=INTER, item=ITEMS, user=users))
    assert data.user_columns == {"age": ("", "30"), "gender": ("", "F")}


@pytest.mark.parametrize(
    ("header", "title", "attributes"),
    [
        ("item_id:token\tname:token\ttitle:token", 2, ["name"]),
        ("item_id:token\tname:token\tmovie_title:token", 2, ["name"]),
        ("item_id:token\tbrand:token\tname:token", 2, ["brand"]),
        ("item_id:token\tbrand:token\ttext:token_seq", 2, ["brand"]),
    ],
)
def test_which_column_is_the_title(
    tmp_path: Path, header: str, title: int, attributes: list[str]
) -> None:
    row = ["1", "x", "y"]
    write(tmp_path, inter=HEAD + "u\t1\t1\n", item=header + "\n" + "\t".join(row) + "\n")
    catalogue = read_atomic(tmp_path).catalogue
    assert catalogue.titles == (row[title],)
    assert list(catalogue.attributes) == attributes


def test_several_sets_in_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    write(folder, inter=INTER, item=ITEMS)
    (folder / "other.item").write_text(ITEMS)
    assert read_atomic(folder).name == "set"  # the one named like the folder
    (folder / "set.item").rename(folder / "third.item")
    refuse(folder, "several data sets .other, third.")


BAD = "set.inter, line 3"


@pytest.mark.parametrize(
    ("inter", "match"),
    [
        ("", "set.inter: is empty"),
        (HEAD, "set.inter: has no interactions"),
        ("user_id:token\titem_id:token\n", "line 1: needs a column timestamp:float"),
        ("user_id:token\titem_id:token\ttimestamp:token\n", "needs a column timestamp:float"),
        ("user_id\titem_id\ttimestamp\n", "line 1: header cell 'user_id' is not name:type"),
        ("user_id:word\n", "header cell 'user_id:word'"),
        (HEAD.replace("\n", "\tuser_id:token\n"), "column 'user_id' twice"),
        (HEAD + "a\t7\t1\na\t7\tsoon\n", BAD + ": timestamp 'soon' is not a finite number"),
        (HEAD + "a\t7\t1\na\t7\tnan\n", BAD + ": timestamp 'nan'"),
        (HEAD + "a\t7\t1\na\t7\tinf\n", BAD + ": timestamp 'inf'"),
        (HEAD + "a\t7\t1\na\t7\t\n", BAD + ": timestamp ''"),
        (HEAD + "a\t7\t1\na\t8\t1\n", BAD + ": item '8' is not in the catalogue"),
        (HEAD + "a\t7\t1\na\t7\n", BAD + ": 2 cells where the header has 3"),
        (HEAD + "a\t7\t1\na\t7\t1\t1\n", BAD + ": 4 cells"),
        (HEAD + "a\t7\t1\n\na\t7\t1\n", BAD + ": user_id is empty"),
        (HEAD + "a\t7\t1\n\t7\t1\n", BAD + ": user_id is empty"),
        (HEAD + "a\t7\t1\na\t\t1\n", BAD + ": item_id is empty"),
    ],
)
def test_what_is_wrong_with_interactions(tmp_path: Path, inter: str, match: str) -> None:
    refuse(write(tmp_path, inter=inter, item=ITEMS), match)


@pytest.mark.parametrize(
    ("item", "match"),
    [
        ("", "set.item: is empty"),
        ("item_id:token\ttitle:token_seq\n", "set.item: has no items"),
        ("id:token\ttitle:token_seq\n1\ta\n", "needs a column item_id:token"),
        ("item_id:token\tbrand:token\n1\ta\n", "no title"),
        (ITEMS + "7\tRonin\t1998\n", "line 4: item_id '7' is already on line 2"),
        (ITEMS + "8\n", "line 4: 1 cells where the header has 3"),
    ],
)
def test_what_is_wrong_with_items(tmp_path: Path, item: str, match: str) -> None:
    refuse(write(tmp_path, inter=INTER, item=item), match)


def test_a_user_twice(tmp_path: Path) -> None:
    users = "user_id:token\tage:token\na\t1\na\t2\n"
    refuse(write(tmp_path, inter=INTER, item=ITEMS, user=users), "line 3: user_id 'a' is already")


def test_missing_files_are_named(tmp_path: Path) -> None:
    refuse(tmp_path, r"no \.item file")
    refuse(tmp_path / "set", "set.item: no such file")
    write(tmp_path, item=ITEMS)
    refuse(tmp_path, "set.inter: no such file")
    write(tmp_path, train_inter=HEAD)
    refuse(tmp_path, r"set\.valid\.inter, set\.test\.inter missing beside set\.train\.inter")
    write(tmp_path, inter=INTER)
    refuse(tmp_path, r"both set\.inter and set\.train\.inter")


def test_an_unreadable_file(tmp_path: Path) -> None:
    write(tmp_path, item=ITEMS)
    (tmp_path / "set.inter").mkdir()
    refuse(tmp_path, "set.inter: can't be read")


@pytest.mark.parametrize(("prefix", "line"), [(HEAD + "a\t7\t1\n", 3), ("", 1)])
def test_not_utf8_names_the_line(tmp_path: Path, prefix: str, line: int) -> None:
    write(tmp_path, item=ITEMS)
    (tmp_path / "set.inter").write_bytes(prefix.encode() + b"caf\xe9\t7\t1\n")
    refuse(tmp_path, f"line {line}: is not UTF-8")


def test_numbers_that_only_look_odd_are_read(tmp_path: Path) -> None:
    write(tmp_path, inter=HEAD + "a\t7\t 5\na\t9\t+4\nb\t7\t1e3\n", item=ITEMS)
    assert read_atomic(tmp_path).interactions.time.tolist() == [4, 5, 1000]


WORD = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=5)
TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=5)


@st.composite
def datasets(draw: st.DrawFn) -> Dataset:
    ids = draw(st.lists(WORD, min_size=1, max_size=4, unique=True))
    rows = draw(
        st.lists(
            st.tuples(
                WORD,
                st.integers(0, len(ids) - 1),
                st.floats(allow_nan=False, allow_infinity=False),
                st.integers(0, 2),
            ),
            min_size=1,
            max_size=8,
            unique_by=lambda row: row[:2],
        )
    )
    with_parts = draw(st.booleans())
    if with_parts:
        rows.sort(key=lambda row: row[3])
    users = list(dict.fromkeys(row[0] for row in rows))
    log = Interactions.ordered(
        np.asarray([users.index(row[0]) for row in rows]),
        np.asarray([row[1] for row in rows]),
        np.asarray([row[2] for row in rows]),
        np.asarray([row[3] for row in rows]) if with_parts else None,
    )
    texts = st.lists(TEXT, min_size=len(ids), max_size=len(ids)).map(tuple)
    catalogue = Catalogue(tuple(ids), draw(texts), {"a:b": draw(texts)})
    columns = {"age": tuple(draw(TEXT) for _ in users)} if draw(st.booleans()) else {}
    return Dataset("any", catalogue, tuple(users), log, columns)


@settings(deadline=None)
@given(datasets())
def test_what_is_written_reads_the_same(
    tmp_path_factory: pytest.TempPathFactory, data: Dataset
) -> None:
    folder = tmp_path_factory.mktemp("atomic")
    again = read_atomic(write_atomic(data, folder))
    assert again.catalogue == data.catalogue
    assert again.users == data.users
    assert again.user_columns == data.user_columns
    for name in ("user", "item", "time", "row", "part"):
        left, right = getattr(again.interactions, name), getattr(data.interactions, name)
        assert np.array_equal(left, right) if right is not None else left is None
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def one(**changes: object) -> Dataset:
    """Build the smallest data set, with something changed."""
    log = Interactions.ordered(np.asarray([0]), np.asarray([0]), np.asarray([1.0]))
    fields = {
        "name": "one",
        "catalogue": Catalogue(("1",), ("a\tb\nc",), {}),
        "users": ("u",),
        "interactions": log,
        "user_columns": {},
    }
    return Dataset(**{**fields, **changes})  # type: ignore[arg-type]  # fields vary by test


def test_breaks_in_texts_become_spaces_and_whole_times_stay_short(tmp_path: Path) -> None:
    stem = write_atomic(one(), tmp_path / "new")
    assert read_atomic(stem).catalogue.titles == ("a b c",)
    assert (tmp_path / "new" / "one.inter").read_text() == HEAD + "u\t1\t1\n"


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"name": "../up"}, "can't name files"),
        ({"name": ".."}, "can't name files"),
        ({"users": ("a\tb",)}, "has a tab"),
        ({"catalogue": Catalogue(("1\n",), ("a",), {})}, "line break"),
        ({"catalogue": Catalogue(("1",), ("a",), {"title": ("b",)})}, "'title'.*rename"),
    ],
)
def test_what_a_file_cannot_hold(tmp_path: Path, changes: dict[str, object], match: str) -> None:
    with pytest.raises(DataError, match=match):
        write_atomic(one(**changes), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match=re.escape(f"{tmp_path / 'file'}: can't be written")):
        write_atomic(one(), tmp_path / "file")
