from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from fellrec.data.interactions import Dataset
from fellrec.data.tables import import_table
from fellrec.errors import DataError

LOG: dict[str, list[Any]] = {
    "who": [5, 3, 5],
    "what": [10, 11, 11],
    "when": [2.0, 1.0, 1.0],
    "note": ["x", "y", "z"],
}
THINGS: dict[str, list[Any]] = {
    "what": [10, 11],
    "label": ["Heat, the film", 'A "quoted"\nname'],
    "year": [1995, None],
    "kinds": [["Crime", "Drama"], []],
}


def load(log: Path, things: Path, attributes: tuple[str, ...] = ()) -> Dataset:
    return import_table(
        log, things, user="who", item="what", time="when", title="label", attributes=attributes
    )


def write_csv(path: Path, columns: dict[str, list[Any]]) -> None:
    pd.DataFrame(columns).convert_dtypes().to_csv(path, index=False)


def write_tsv(path: Path, columns: dict[str, list[Any]]) -> None:
    pd.DataFrame(columns).convert_dtypes().to_csv(path, index=False, sep="\t")


def write_jsonl(path: Path, columns: dict[str, list[Any]]) -> None:
    rows = zip(*columns.values(), strict=True)
    text = "\n".join(json.dumps(dict(zip(columns, row, strict=True))) for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def write_parquet(path: Path, columns: dict[str, list[Any]]) -> None:
    pd.DataFrame(columns).to_parquet(path)


@pytest.mark.parametrize(
    ("ending", "write", "lists"),
    [
        ("csv", write_csv, False),
        ("csv.gz", write_csv, False),
        ("tsv", write_tsv, False),
        ("jsonl", write_jsonl, True),
        ("ndjson.gz", write_jsonl, True),
        ("parquet", write_parquet, True),
    ],
)
def test_every_format_gives_the_same_data_set(
    tmp_path: Path, ending: str, write: Callable[[Path, dict[str, list[Any]]], None], lists: bool
) -> None:
    log, things = tmp_path / f"shop.2.{ending}", tmp_path / f"things.{ending}"
    write(log, LOG)
    write(things, THINGS if lists else {k: v for k, v in THINGS.items() if k != "kinds"})
    data = load(log, things, ("year", "kinds") if lists else ("year",))
    assert data.name == "shop"
    assert data.users == ("5", "3")
    assert data.catalogue.ids == ("10", "11")
    assert data.catalogue.titles == ("Heat, the film", 'A "quoted"\nname')
    assert data.catalogue.attributes["year"] == ("1995", "")
    if lists:
        assert data.catalogue.attributes["kinds"] == ("Crime Drama", "")
    assert data.interactions.user.tolist() == [0, 0, 1]
    assert data.interactions.item.tolist() == [1, 0, 1]
    assert data.interactions.time.tolist() == [1, 2, 1]


def test_parquet_timestamps_become_microseconds(tmp_path: Path) -> None:
    when = [datetime(2020, 1, 1, 0, 0, 0, n, tzinfo=UTC) for n in (3, 1, 2)]
    write_parquet(tmp_path / "a.parquet", {**LOG, "who": [5, 5, 3], "when": when})
    write_parquet(tmp_path / "b.parquet", THINGS)
    log = load(tmp_path / "a.parquet", tmp_path / "b.parquet").interactions
    start = datetime(2020, 1, 1, tzinfo=UTC).timestamp() * 1e6
    assert (log.time - start).tolist() == [1, 3, 2]


CSV = "who,what,when\n5,10,1\n"


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "log.csv: is empty"),
        ("\n\n", "log.csv: is empty"),
        ("who,what,when\n", "has no interactions"),
        ("who,what\n5,10\n", "line 1: column 'when' missing; it has who, what"),
        ("who,what,when,who\n5,10,1,2\n", "line 1: column 'who' twice"),
        (CSV + "5,10,tomorrow\n", "line 3: when 'tomorrow' is not a finite number"),
        (CSV + "5,10,NaN\n", "line 3: when 'NaN'"),
        (CSV + "5,12,1\n", "line 3: item '12' is not in the catalogue"),
        (CSV + "5,12\n", "line 3: 2 cells where the header has 3"),
        (CSV + ",10,1\n", "line 3: who is empty"),
        (CSV + '"5\n\n\n,10,1\n', "line 3: unexpected end of data"),
        # The second row takes lines 3 and 4, so the bad one is line 5.
        (CSV + '"5\n6",10,1\n5,12,1\n', "line 5: item '12'"),
    ],
)
def test_what_is_wrong_with_a_csv(tmp_path: Path, text: str, match: str) -> None:
    (tmp_path / "log.csv").write_text(text)
    (tmp_path / "things.csv").write_text("what,label\n10,Heat\n")
    with pytest.raises(DataError, match=match) as caught:
        load(tmp_path / "log.csv", tmp_path / "things.csv")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('{"what": 10, "label": "a"}\n{"what": 10, "label": "b"}', "line 2: what '10' is already"),
        ('{"what": 10, "label": "a"}\n\n{"what": ', "line 3: is not JSON"),
        ("[" * 100_000, "line 1: is not JSON"),
        ("[1]", "line 1: is not a JSON object"),
        ('{"what": 10}', "no line has 'label'"),
        ('{"what": {"a": 1}, "label": "a"}', "line 1: what is a dict"),
        ('{"what": 10, "label": "\\ud800"}', "line 1: a broken character"),
        ('{"what": null, "label": "a"}\n{"what": 1, "label": "a"}', "line 1: what is empty"),
    ],
)
def test_what_is_wrong_with_json_lines(tmp_path: Path, text: str, match: str) -> None:
    (tmp_path / "log.csv").write_text(CSV)
    (tmp_path / "things.jsonl").write_text(text)
    with pytest.raises(DataError, match=match):
        load(tmp_path / "log.csv", tmp_path / "things.jsonl")


def test_what_is_wrong_with_a_file(tmp_path: Path) -> None:
    things = tmp_path / "things.csv"
    things.write_text("what,label\n10,Heat\n")
    for name, data, match in [
        ("a.xlsx", b"x", "unknown ending"),
        ("a.parquet", b"not parquet", "is not Parquet"),
        ("a.csv.gz", b"not gzip", "is not a whole gzip file"),
        ("b.csv.gz", gzip.compress(CSV.encode())[:-9], "is not a whole gzip file"),
        ("a.csv", CSV.encode() + b"\xff,10,1\n", "line 3: is not UTF-8"),
    ]:
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=match):
            load(tmp_path / name, things)
    for name in ("none.csv", "none.parquet", "none.jsonl.gz"):
        with pytest.raises(DataError, match=f"{name}: no such file"):
            load(tmp_path / name, things)


def test_parquet_names_the_row(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", {**LOG, "when": ["1", "2", "x"]})
    write_parquet(tmp_path / "b.parquet", THINGS)
    with pytest.raises(DataError, match=r"a\.parquet, row 3: when 'x'"):
        load(tmp_path / "a.parquet", tmp_path / "b.parquet")
    with pytest.raises(DataError, match="column 'who' missing; it has what, label"):
        load(tmp_path / "b.parquet", tmp_path / "b.parquet")


def test_the_title_is_not_also_an_attribute(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'label' is the item or the title"):
        load(tmp_path / "a.csv", tmp_path / "b.csv", ("label",))
