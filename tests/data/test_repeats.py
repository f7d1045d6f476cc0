"""What a user took more than once counts once, wherever data come from, and somebody says so."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from fellrec.cli import app
from fellrec.data.atomic import read_atomic
from fellrec.data.forms import import_files
from fellrec.data.repeats import first_rows
from fellrec.data.splits import split

ROWS = st.lists(
    st.tuples(
        st.integers(0, 3), st.integers(0, 3), st.sampled_from([0.0, 1.5, 2.0]), st.integers(0, 2)
    ),
    max_size=30,
)
LOG = """who,what,when
ann,tea,3
ann,tea,1
ann,jam,2
bob,tea,5
ann,tea,9
bob,jam,6
ann,pie,4
bob,pie,7
cid,pie,1
"""
THINGS = "what,label\ntea,Tea\njam,Jam\npie,Pie\n"


@given(ROWS)
def test_of_a_pair_the_first_stays(rows: list[tuple[int, int, float, int]]) -> None:
    user, item, time, part = (np.array([row[i] for row in rows]) for i in range(4))
    kept = first_rows(user, item, time, part)
    assert kept.tolist() == sorted(kept.tolist())
    best: dict[tuple[int, int], int] = {}
    for number, (who, what, when, where) in enumerate(rows):
        other = best.setdefault((who, what), number)
        if (where, when) < (rows[other][3], rows[other][2]):
            best[who, what] = number
    assert set(kept.tolist()) == set(best.values())
    assert len(first_rows(user, item, time)) == len(best)


def write(folder: Path) -> tuple[Path, Path]:
    log, things = folder / "log.csv", folder / "things.csv"
    log.write_text(LOG)
    things.write_text(THINGS)
    return log, things


def test_a_table(tmp_path: Path) -> None:
    files = write(tmp_path)
    read = partial(import_files, *files, user="who", item="what", time="when", title="label")
    found = read(k=2)
    assert found.remarks() == [
        "left out repeats of what the user took earlier: 2",
        "left out interactions outside of the k-core: 1",
    ]
    assert found.dataset.users == ("ann", "bob") and found.dataset.catalogue.titles == (
        "Tea",
        "Jam",
        "Pie",
    )
    assert found.dataset.interactions.time.tolist() == [1, 2, 4, 5, 6, 7]
    # Nothing that is to be found is among what a user has.
    parts = split(read().dataset, "leave-one-out")
    for user in range(len(parts)):
        assert not set(parts.test[user].tolist()) & set(parts.train[user].tolist())


def test_by_command(tmp_path: Path) -> None:
    log, things = write(tmp_path)
    words = ["--user", "who", "--item", "what", "--time", "when", "--title", "label"]
    files = ["--interactions", str(log), "--items", str(things), "--out", str(tmp_path / "shop")]
    said = CliRunner().invoke(app, ["data", "import", *files, *words]).output
    assert "left out repeats of what the user took earlier: 2" in said
    assert "3 users, 3 items, 7 interactions" in said


def test_recbole_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A part goes before time: what is in training is no target, whenever it was taken again."""
    folder = tmp_path / "shop"
    folder.mkdir()
    (folder / "shop.item").write_text("item_id:token\ttitle:token_seq\ni\tTea\nj\tJam\n")
    head = "user_id:token\titem_id:token\ttimestamp:float\n"
    (folder / "shop.train.inter").write_text(f"{head}a\ti\t7\na\tj\t8\na\ti\t9\n")
    (folder / "shop.valid.inter").write_text(f"{head}a\ti\t1\n")
    (folder / "shop.test.inter").write_text(f"{head}b\tj\t1\n")
    with caplog.at_level(logging.WARNING):
        data = read_atomic(folder)
    assert data.interactions.time.tolist() == [7, 8, 1]
    assert caplog.messages == [
        f"{folder / 'shop'}: left out repeats of what the user took earlier: 2"
    ]
