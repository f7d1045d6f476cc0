"""`fellrec report` as a person calls it."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from fellrec.cli import app
from tests.report.made_comparison import write_file


def call(*words: object) -> Result:
    return CliRunner().invoke(app, ["report", *(str(word) for word in words)])


@pytest.mark.usefixtures("own_cache")
def test_it_writes_the_page_and_says_where(finished_run: Path) -> None:
    result = call(finished_run, "--examples", 1)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"wrote {finished_run / 'report.html'}\n" and not result.stderr
    page = (finished_run / "report.html").read_text()
    assert page.count("<article>") == 3 and "<h1>Run toys</h1>" in page


def test_it_needs_neither_data_nor_model_without_examples(
    made: dict[str, Path], tmp_path: Path
) -> None:
    target = tmp_path / "page.html"
    result = call(made["several"], "--out", target, "--examples", 0)
    assert result.exit_code == 0 and result.stdout == f"wrote {target}\n"
    assert "<article>" not in target.read_text()


def test_a_folder_that_is_no_finished_run_is_refused_in_a_line(tmp_path: Path) -> None:
    result = call(tmp_path)
    assert result.exit_code == 2 and result.stdout == ""
    assert result.stderr == (
        f"error: {tmp_path}: not a run directory; give the folder that a training run left\n"
    )


def test_a_comparison_is_named_by_its_file_or_its_folder(tmp_path: Path) -> None:
    file, runs, none = write_file(tmp_path / "mine.toml"), tmp_path / "runs", tmp_path / "none"
    by_file = call(file, "--results", none, "--runs", runs, "--examples", 0)
    page = runs / "made" / "comparison.html"
    assert by_file.stdout == f"wrote {page}\n" and "<h1>Made up</h1>" in page.read_text()
    page.unlink()
    file.rename(runs / "made" / "comparison.toml")
    by_folder = call(runs / "made", "--results", none, "--out", tmp_path / "page.html")
    assert by_folder.stdout == f"wrote {tmp_path / 'page.html'}\n"
    assert "No run of a row is left in runs" in (tmp_path / "page.html").read_text()


def test_a_name_of_nothing_is_refused_in_a_line() -> None:
    result = call("no-such-thing")
    assert result.exit_code == 2 and result.stdout == ""
    assert result.stderr.startswith(
        "error: no-such-thing: neither a folder of a run nor a comparison; comparisons that come "
    )
    assert result.stderr.count("\n") == 1 and "compare-ml100k" in result.stderr
