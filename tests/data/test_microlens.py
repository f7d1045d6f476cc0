from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from fellrec.data.atomic import read_atomic, write_atomic
from fellrec.data.microlens import read_microlens
from fellrec.data.streams import Imported
from fellrec.errors import DataError

PAIRS = "7,20,1662000000003\n7,30,1662000000001\n8,20,1662000000002\n"
TITLES = '20,"A cat, a dog"\n30,猫\n'


def load(folder: Path, pairs: str, titles: str, k: int = 0) -> Imported:
    (folder / "MicroLens_pairs.csv").write_text(pairs, encoding="utf-8")
    (folder / "titles.csv").write_text(titles, encoding="utf-8")
    return read_microlens(folder / "MicroLens_pairs.csv", folder / "titles.csv", k)


@pytest.mark.parametrize(
    "pairs_header", ["", "user,item,timestamp\n", "\ufeffuser,item,Timestamp\n"]
)
@pytest.mark.parametrize("titles_header", ["", "item,title\n", "videoID, title\n"])
def test_with_and_without_headers(tmp_path: Path, pairs_header: str, titles_header: str) -> None:
    data = load(tmp_path, pairs_header + PAIRS, titles_header + TITLES).dataset
    assert data.name == "MicroLens_pairs"
    assert data.users == ("7", "8")
    assert data.catalogue.ids == ("20", "30")
    assert data.catalogue.titles == ("A cat, a dog", "猫")
    assert data.catalogue.attributes == {}
    assert data.histories()[0].tolist() == [1, 0]
    assert data.interactions.time.tolist() == [1662000000001, 1662000000003, 1662000000002]


def test_packed_files_and_other_line_ends(tmp_path: Path) -> None:
    for name, text in (("pairs.csv.gz", PAIRS), ("titles.csv.gz", TITLES)):
        (tmp_path / name).write_bytes(gzip.compress(text.replace("\n", "\r\n").encode()))
    found = read_microlens(tmp_path / "pairs.csv.gz", tmp_path / "titles.csv.gz")
    assert found.dataset.catalogue.titles == ("A cat, a dog", "猫")


@pytest.mark.parametrize(
    ("cell", "title"),
    [
        ("one, two, three", "one, two, three"),
        ('"She said ""hi"", then left"', 'She said "hi", then left'),
        ('5" screen #tech', '5" screen #tech'),
        ('"two\nlines\tand a tab"', "two lines and a tab"),
        ("  很 好  ", "很 好"),
    ],
)
def test_titles_become_one_line(tmp_path: Path, cell: str, title: str) -> None:
    data = load(tmp_path, "1,2,3\n", f"2,{cell}\n").dataset
    assert data.catalogue.titles == (title,)
    assert read_atomic(write_atomic(data, tmp_path / "out")).catalogue.titles == (title,)


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    pairs = "1,a,5\n1,a,2\n1,b,3\n1,c,3\n2,c,3\n"
    found = load(tmp_path, pairs, "a,First\na,Second\nb,  \nother,Other\n")
    assert found.dataset.users == ("1",)
    assert found.dataset.catalogue.titles == ("First",)
    assert found.dataset.interactions.time.tolist() == [2]
    assert (found.repeated, found.untitled, found.untitled_items) == (1, 3, 2)
    assert len(found.remarks()) == 2


def test_a_core(tmp_path: Path) -> None:
    pairs = "".join(f"{user},{item},1\n" for user in "AB" for item in "xy") + "C,x,1\n"
    assert load(tmp_path, pairs, "x,X\ny,Y\n", k=2).dataset.users == ("A", "B")


@pytest.mark.parametrize(
    ("pairs", "titles", "match"),
    [
        ("1,2\n", TITLES, r"pairs\.csv, line 1: 2 cells where user,item,timestamp"),
        (PAIRS + "\n1,2,3,4\n", TITLES, "line 5: 4 cells"),
        ("7\t20 30\n", TITLES, "line 1: 1 cells"),
        ("user,item,when\n" + PAIRS, TITLES, "line 1: timestamp 'when' is not a finite number"),
        (PAIRS + "user,item,timestamp\n", TITLES, "line 4: timestamp 'timestamp'"),
        (PAIRS + "7,,3\n", TITLES, "line 4: item '' is not an id"),
        (PAIRS + " ,1,3\n", TITLES, "line 4: user '' is not an id"),
        (PAIRS + "7,1,inf\n", TITLES, "line 4: timestamp 'inf'"),
        (PAIRS + '7,"1\n2",3\n', TITLES, r"line 4: item '1\\n2' is not an id"),
        ("user,item,timestamp\n", TITLES, "has no interactions"),
        ("", TITLES, r"pairs\.csv: is empty"),
        (PAIRS, "", r"titles\.csv: is empty"),
        (PAIRS, "20\n", r"titles\.csv, line 1: 1 cell where item,title"),
        (PAIRS, '20,"a"\n30,"b" c\n', r"titles\.csv, line 2: "),
        (PAIRS, '20,"never closed\n', r"titles\.csv, line 1: unexpected end"),
        (PAIRS, "1,One\n", "has no title for any"),
    ],
)
def test_what_is_refused(tmp_path: Path, pairs: str, titles: str, match: str) -> None:
    with pytest.raises(DataError, match=match) as caught:
        load(tmp_path, pairs, titles)
    assert "\n" not in str(caught.value)
