"""What a terminal shows of a comparison: at any width, with what failed in words."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from fellrec.comparison.plan import Comparison
from fellrec.comparison.rows import Compared
from fellrec.comparison.terminal import remarks, tables, watching
from fellrec.comparison.writing import as_markdown
from fellrec.results.cells import Cell
from tests.comparison.conftest import Results
from tests.comparison.made import compared


def shown(compared: Compared, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, markup=False, highlight=False, emoji=False)
    for table in tables(compared, width):
        console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [60, 80, 100, 140, 200])
def test_tables_fit_and_no_number_is_cut(whole: Compared, width: int) -> None:
    text = shown(whole, width)
    assert max(map(len, text.splitlines())) <= width and "…  " not in text
    rows = [line.split() for line in text.splitlines() if re.match(r"\w", line) and "." in line]
    assert [row[0] for row in rows] == [r.label for r in whole.tables[0].rows] * 2
    fellrec = [row for row in rows if row[0] == "fellrec"]
    assert "0.6000" in fellrec[0] and "+0.1000*" in fellrec[0]
    assert "0.4000" in fellrec[1] and "+0.1000" in " ".join(fellrec[1])
    assert "toys, leave-one-out, 4 users" in text


@pytest.mark.parametrize("width", [40, 80])
def test_the_title_says_of_whom_the_scores_are(
    comparison: Comparison, results: Results, width: int
) -> None:
    """Of 90 users four have held-out items, by a split that the data brings along."""
    about = {"dataset": "toys", "split": "files", "users": 90, "digest": "d"}
    for each in results.values():
        assert isinstance(each, Cell)
        each.origin["data"].update(about)
    whole = compared(comparison, results)
    text = shown(whole, width)
    said = "toys, the data's own split, 90 users, 4 of them scored"
    assert said in " ".join(text.split()) and max(map(len, text.splitlines())) <= width
    page = as_markdown(whole, "fellrec compare mine")
    assert "\n90 users, 4 of them scored, 9 items, the data's own split.\n" in page


def test_a_wide_terminal_shows_more(whole: Compared) -> None:
    narrow, wide = shown(whole, 80), shown(whole, 140)
    assert "centralised" in wide.splitlines()[2] and "centralised" not in narrow.splitlines()[2]
    assert wide.count("…") > narrow.count("…") > 0
    assert all(word in wide for word in ("Recall", "seeds", "least gain", "chance", "gap"))


def test_what_failed_is_said_in_words(partly: Compared) -> None:
    text = shown(partly, 100)
    row = next(line for line in text.splitlines() if line.startswith("fellrec"))
    assert row.split()[:4] == ["fellrec", "0", "of", "2"] and not re.search(r"\d\.\d", row)
    assert not re.search(r"^fellrec", text.partition("worst")[2], re.MULTILINE)
    local = next(line for line in text.splitlines() if line.startswith("local"))
    assert local.split()[1:4] == ["1", "of", "2"]
    assert "nan" not in text
    assert list(remarks(partly)) == [
        "local, seed 1, failed: out of memory",
        "fellrec, seeds 0, 1, failed: it | diverged",
        "not run yet: centralised (seeds 0, 1)",
    ]


def test_a_whole_comparison_has_no_remarks(whole: Compared) -> None:
    assert list(remarks(whole)) == []


def test_watching_prints_a_line_for_each_cell_that_ends(comparison: Comparison) -> None:
    console = Console(file=io.StringIO(), width=200, markup=False)
    one, other = comparison.cells[1:3]
    with watching(console, 2) as told:
        told(one, "begins", "")
        told(other, "begins", "")
        told(one, "goes on", "round 1 of 2")
        told(other, "failed", "no\x1b[31mlearning")
        told(one, "is done", "")
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().splitlines() == [
        f"1 of 2  {other.label} seed 0 failed: no [31mlearning",
        f"2 of 2  {one.label} seed 0 is done",
    ]
