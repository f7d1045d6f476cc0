"""What is written of a comparison: CSV and Markdown, and that a failure never becomes a number."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from fellrec.comparison.plan import Comparison
from fellrec.comparison.rows import Compared
from fellrec.comparison.statistics import Estimate
from fellrec.comparison.terminal import remarks
from fellrec.comparison.writing import as_csv, as_markdown, as_rows, figures, plain, signed, write
from fellrec.errors import RunError
from fellrec.evaluation.bootstrap import Interval
from fellrec.results.cells import Cell
from fellrec.results.vouched import Vouched, entry_of
from tests.comparison.conftest import Results
from tests.comparison.made import cell, compared, description


def lines(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_csv_holds_every_figure(whole: Compared) -> None:
    read = lines(as_csv(whole))
    expected = [
        (row.label, figure, metric, value)
        for row in whole.tables[0].rows
        for figure, metric, value in figures(row, "ndcg@10")
    ]
    assert len(read) == len(expected) > 40
    for line, (label, figure, metric, value) in zip(read, expected, strict=True):
        assert (line["strategy"], line["figure"], line["metric"]) == (label, figure, metric)
        numbers = [float(line[key]) for key in ("value", "low", "high")]
        assert numbers == pytest.approx(list(value.interval), abs=5e-7)
        seeds = [float(each) for each in line["by_seed"].split(";")]
        assert seeds == pytest.approx(list(value.seeds), abs=5e-7)
        assert line["seeds"] == "2"
    assert as_rows(whole) == read


def test_only_differences_are_clear_or_not(whole: Compared) -> None:
    """That a score or a quotient is above 0 is no news."""
    said = {(line["figure"], line["clear"]) for line in lines(as_csv(whole))}
    plain_figures = {figure for figure, clear in said if clear == ""}
    assert plain_figures == {"score", "of_ceiling", "worst", "gap", "gap_of_reference", "jain"}
    assert ("over_reference", "true") in said and ("over_floor", "false") in said


def test_csv_has_a_column_for_each_axis(tmp_path: Path) -> None:
    text = (
        'name = "two"\nrecipe = "demo"\n[strategies.fellrec]\n'
        '[axes.data]\n"a, \\"few\\"" = { "clients.count" = 2 }\n'
    )
    comparison = description(tmp_path, text)
    results = {("fellrec", 0): cell(comparison.cells[0], [0.1, 0.2], [0, 1])}
    read = lines(as_csv(compared(comparison, results)))
    assert read and all(line["data"] == 'a, "few"' for line in read)
    assert '### `data` = a, "few"' in as_markdown(compared(comparison, results), "fellrec")


def test_a_failure_is_never_a_number(partly: Compared) -> None:
    read = lines(as_csv(partly))
    failed = [line for line in read if line["strategy"] == "fellrec"]
    assert [(line["figure"], line["value"]) for line in failed] == [
        ("failed", "seed 0: it | diverged"),
        ("failed", "seed 1: it | diverged"),
    ]
    assert all(not line[key] for line in failed for key in ("low", "high", "clear", "by_seed"))
    assert not [line for line in read if line["strategy"] == "centralised"]
    local = [line for line in read if line["strategy"] == "local"]
    assert {line["seeds"] for line in local} == {"1"}
    assert [line["value"] for line in local if line["figure"] == "failed"] == [
        "seed 1: out of memory"
    ]
    page = as_markdown(partly, "fellrec compare mine")
    rows = [line for line in page.splitlines() if line.startswith("| `fellrec`")]
    assert not rows
    assert "- `fellrec`, seed 0, **failed**: it | diverged\n" in page
    assert "- `local`, seed 1, **failed**: out of memory\n" in page
    assert "- not run yet: `centralised` (seeds 0, 1)\n" in page
    assert "nan" not in page.lower() and "nan" not in as_csv(partly)


def test_markdown_is_bold_where_it_is_clear_and_nowhere_else(whole: Compared) -> None:
    page = as_markdown(whole, "fellrec compare mine")
    assert "**+0.1000 [+0.1000, +0.1000]**" in page
    rows = {line.split(" | ")[0]: line for line in page.splitlines() if line.startswith("| `")}
    assert len(rows) == 5 and "**" not in rows["| `local`"]
    for clear in (True, False):
        value = Estimate(Interval(0.02, 0.01 if clear else -0.01, 0.03), (0.02,))
        ends = "+0.0100, +0.0300" if clear else "-0.0100, +0.0300"
        star = "**" if clear else ""
        assert signed(value) == f"{star}+0.0200 [{ends}]{star}"
        assert "**" not in plain(value)
    assert signed(None) == plain(None) == "–"


def test_tables_of_the_page_are_whole(whole: Compared, partly: Compared) -> None:
    """Every line of a table has as many cells as its header, whatever is missing."""
    for comparison in (whole, partly):
        width = 0
        for text in as_markdown(comparison, "fellrec compare mine").splitlines():
            cells = text.count(" | ") if text.startswith("| ") else 0
            if cells and width:
                assert cells == width, text
            width = cells
    page = as_markdown(whole, "fellrec compare mine")
    assert page.startswith("## All of mine\n\nTo see.\n\n4 users, 9 items, leave-one-out.\n")
    assert page.endswith("    fellrec compare mine  # seeds 0, 1\n")
    assert "share of centralised" in page and "least gain of a client over local" in page


def test_the_page_says_which_rows_other_code_has_made(
    comparison: Comparison, results: Results
) -> None:
    """Today's code plays no part in it: the page is the same whatever that is."""
    now, before, other = (16 * digit for digit in "abc")
    states = {"local": before, "fellrec": other}
    made: Results = {}
    for place, each in results.items():
        assert isinstance(each, Cell)
        made[place] = replace(each, origin={**each.origin, "code": [states.get(place[0], now)]})
    whole = compared(comparison, made)
    begins = "- made by another state of the code than the others"
    assert f"{begins}: `local`, `fellrec`\n" in as_markdown(whole, "fellrec")
    # Whichever of the two is the newer.
    for newer, older in ((now, before), (before, now)):
        vouched = Vouched((entry_of("hllm", newer, older, ["x", "y"]),))
        page = as_markdown(whole, "fellrec", vouched)
        assert f"{begins}, which gives the same, as `x`, `y` showed: `local`\n" in page
        assert f"{begins}: `fellrec`\n" in page


def test_the_usual_code_may_be_two(comparison: Comparison, results: Results) -> None:
    """One seed by either; a row that one of the two has made alone."""
    now, before = (16 * digit for digit in "ab")
    made: Results = {}
    for place, each in results.items():
        assert isinstance(each, Cell)
        code = before if place[1] and place[0] != "local" else now
        made[place] = replace(each, origin={**each.origin, "code": [code]})
    whole = compared(comparison, made)
    begins = "- made by another state of the code than the others"
    assert f"{begins}: `local`\n" in as_markdown(whole, "fellrec")
    vouched = Vouched((entry_of("hllm", now, before, ["x"]),))
    page = as_markdown(whole, "fellrec", vouched)
    assert f"{begins}, which gives the same, as `x` showed: `local`\n" in page


def test_accelerators_are_named_wherever_the_table_is_read(
    comparison: Comparison, results: Results
) -> None:
    def on(devices: Mapping[tuple[str, int], str]) -> Compared:
        made: Results = {}
        for place, each in results.items():
            assert isinstance(each, Cell)
            # A cell of an earlier version does not say, and was made on a CPU.
            also = {"device": devices[place]} if place in devices else {}
            made[place] = replace(each, origin={**each.origin, **also})
        return compared(comparison, made)

    runs = [(c.label, c.seed) for c in comparison.cells if c.peer is None]
    plain = on({place: "cpu" for place in runs[:2]})
    assert "computed on" not in as_markdown(plain, "x") and list(remarks(plain)) == []
    every = on(dict.fromkeys(runs, "Fast 1"))
    assert "- computed on Fast 1: all but peers\n" in as_markdown(every, "x")
    assert list(remarks(every)) == ["computed on Fast 1: all but peers"]
    some = on({("local", 0): "Fast 1", ("local", 1): "Fast 1", ("fellrec", 1): "Fast 2"})
    page = as_markdown(some, "x")
    assert "- computed on Fast 1: `local`\n" in page
    assert "- computed on Fast 2 and, in part, a CPU: `fellrec`\n" in page
    assert "computed on Fast 2 and, in part, a CPU: fellrec" in list(remarks(some))


def test_without_reference_and_floor_no_column_names_them(tmp_path: Path) -> None:
    comparison = description(
        tmp_path, 'name = "plain"\nrecipe = "demo"\n[strategies.fellrec]\n[strategies.other]\n'
    )
    results = {
        (c.label, 0): cell(c, [0.1, 0.2], [0, 1], rounds=[{**LINE, "client": "c0"}])
        for c in comparison.cells
    }
    page = as_markdown(compared(comparison, results), "fellrec compare plain")
    assert " over " not in page and "'s best" not in page and "share of" not in page
    assert "worst client's NDCG@10" in page and "| seconds of training |" in page


LINE = {"round": 0, "valid": 0.1, "warmth": 1.0, "spread": [0.5, 0.5, 0.5], "seconds": 1.0}


def test_files_are_written_and_read_again(
    whole: Compared, comparison: Comparison, tmp_path: Path
) -> None:
    write(whole, comparison, tmp_path / "out" / "mine")
    assert Comparison.read(tmp_path / "out" / "mine").cells == comparison.cells
    assert lines((tmp_path / "out" / "mine" / "comparison.csv").read_text()) == as_rows(whole)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="can't be written"):
        write(whole, comparison, tmp_path / "file")
