"""Earlier code is vouched for by cells made anew: all of them equal, or nothing is written."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fellrec.comparison.outcomes import outcome
from fellrec.comparison.plan import Comparison
from fellrec.comparison.running import lacking
from fellrec.comparison.worker import work
from fellrec.errors import RunError
from fellrec.federation.origin import code_digest
from fellrec.federation.runs import train
from fellrec.files import read_json, write_json
from fellrec.results.cells import read
from fellrec.results.keeping import keep
from fellrec.results.plan import standing
from fellrec.results.vouched import SAME, Vouched, entry_of, write_down
from fellrec.results.vouching import Claim, claims, first_difference, show, vouch
from tests.comparison.made import description
from tests.toys import Toys

OLD, OLDER, OTHER = (16 * digit for digit in "0ab")


@pytest.fixture
def results(finished_runs: dict[str, Path], tmp_path: Path) -> Path:
    """Return a folder with two cells of one earlier code."""
    for name in ("toys", "sampled"):
        cell = keep(finished_runs[name], tmp_path / "results", name).cell
        made_by(tmp_path / "results" / cell.name, OLD)
    return tmp_path / "results"


@pytest.fixture
def runs(finished_runs: dict[str, Path], results: Path, tmp_path: Path) -> Path:
    """Return a folder in which today's code has made both anew."""
    for claim in claims(["toys", "sampled"], results):
        shutil.copytree(finished_runs[claim.cell.name], claim.run(tmp_path / "runs"))
    return tmp_path / "runs"


def made_by(cell: Path, *codes: str) -> None:
    """Let a cell say that other code has made it."""
    write_json(cell / "origin.json", {**read_json(cell / "origin.json"), "code": list(codes)})


def rewrite(path: Path, change: Callable[[str], str]) -> None:
    """Change a file of a cell, and what its origin says of it."""
    path.write_text(change(path.read_text()))
    origin = read_json(path.parent / "origin.json")
    origin["files"][path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    write_json(path.parent / "origin.json", origin)


def with_value(key: str, value: object) -> Callable[[str], str]:
    """Return what changes a value of JSON; key: dotted, with numbers for places in lists."""

    def change(text: str) -> str:
        whole: Any = json.loads(text)
        *above, last = [int(part) if part.isdigit() else part for part in key.split(".")]
        inner = whole
        for part in above:
            inner = inner[part]
        inner[last] = value
        return json.dumps(whole)

    return change


def refusal(claim: Claim, runs: Path) -> str:
    with pytest.raises(RunError) as error:
        show(claim, runs)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_cell_that_comes_out_the_same_stands_again(
    toys: Toys, results: Path, tmp_path: Path
) -> None:
    """Its run is made here by today's code, from nothing."""
    config, runs = toys.recipe(), tmp_path / "runs"
    assert standing(config, results, tmp_path / "none") == "missing"
    (claim,) = claims(["toys"], results)
    today = code_digest("hllm")
    assert (claim.code, claim.gave) == (today, OLD)
    show(claim, runs)
    made = read_json(claim.run(runs) / "origin.json")["sessions"]
    show(claim, runs)  # it is there, and not made once more
    assert read_json(claim.run(runs) / "origin.json")["sessions"] == made
    assert not (results / SAME).exists()
    vouch([claim], results)
    assert json.loads((results / SAME).read_text()) == [
        {"recommender": "hllm", "code": today, "as": OLD, "shown_by": ["toys"]}
    ]
    assert standing(config, results, tmp_path / "none") == "kept"
    assert standing(toys.recipe({"train.rounds": 3}), results, tmp_path / "none") == "missing"
    vouch(claims([str(results / "sampled")], results), results)
    assert Vouched.read(results).shown_by("hllm", today, [OLD]) == ("sampled", "toys")


def test_an_interrupted_run_of_vouched_code_goes_on(
    toys: Toys, finished_runs: dict[str, Path], results: Path, tmp_path: Path
) -> None:
    config = toys.recipe()
    shutil.rmtree(results / "toys")
    run = Path(shutil.copytree(finished_runs["toys"], tmp_path / "runs" / "toys"))
    noted = read_json(run / "origin.json")
    noted["sessions"][0]["code"] = OLD
    write_json(run / "origin.json", noted)
    with pytest.raises(RunError, match="by other code"):
        standing(config, results, tmp_path / "runs")
    write_down(results, [entry_of("hllm", code_digest("hllm"), OLD, ["sampled"])])
    assert standing(config, results, tmp_path / "runs") == "finished"
    (run / "summary.json").unlink()
    train(config, run, resume=True)
    assert keep(run, results).cell.origin["code"] == [OLD, code_digest("hllm")]
    assert standing(config, results, tmp_path / "none") == "kept"


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        (
            "scores.csv",
            lambda text: re.sub(r"^(26,.*),[\d.]+$", r"\1,0.123", text, flags=re.MULTILINE),
            r"scores\.csv, user 26, ndcg@10: 0\.123 was kept, today's code gives \d\.\d+;",
        ),
        (
            "scores.csv",
            lambda text: "".join(text.splitlines(keepends=True)[:-1]),
            r"scores\.csv, users: 26 was kept, today's code gives 27;",
        ),
        (
            "rounds.jsonl",
            lambda text: "\n".join(
                line if n != 4 else with_value("loss", 0.25)(line)
                for n, line in enumerate(text.splitlines())
            ),
            r"rounds\.jsonl, round 1, client \w+, loss: 0\.25 was kept, today's code gives [1-9]",
        ),
        (
            "rounds.jsonl",
            lambda text: "\n".join(text.splitlines()[:-1]),
            r"rounds\.jsonl, lines: 5 was kept, today's code gives 6;",
        ),
        (
            "rounds.jsonl",
            lambda text: text.replace('"warmth"', '"temperature"', 1),
            r"rounds\.jsonl, round 0, client \w+, temperature: \S+ was kept, \S+ \S+ gives None;",
        ),
        (
            "summary.json",
            with_value("clients.1.valid", 0.125),
            r"summary\.json, clients, \w+, valid: 0\.125 was kept, today's code gives \S+;",
        ),
        (
            "summary.json",
            with_value("cost.bytes_up", 1),
            r"summary\.json, cost, bytes_up: 1 was kept, today's code gives \d+;",
        ),
    ],
    ids=["score", "user", "loss", "lines", "key", "client", "cost"],
)
def test_a_figure_that_is_another_is_named(
    results: Path, runs: Path, file: str, change: Callable[[str], str], said: str
) -> None:
    rewrite(results / "toys" / file, change)
    whole, changed = claims(["sampled", "toys"], results)
    show(whole, runs)
    found = refusal(changed, runs)
    assert re.search(f"^{re.escape(str(results))}/toys: {said}", found), found
    assert found.endswith("nothing is vouched for, so make its cells anew")
    assert not (results / SAME).exists()


def test_what_no_seed_decides_is_not_compared(results: Path, runs: Path) -> None:
    path = results / "toys"
    rewrite(path / "summary.json", with_value("cost.train_seconds", 9.0))
    rewrite(path / "summary.json", with_value("cost.peak_rss_bytes", 9))
    rewrite(path / "rounds.jsonl", lambda text: text.replace('seconds": ', 'seconds": 9'))
    (claim,) = claims(["toys"], results)
    show(claim, runs)
    # What today's code logs besides was no figure of the kept cell.
    rewrite(path / "rounds.jsonl", lambda text: text.replace('"energy_dropped": 0.0, ', ""))
    (claim,) = claims(["toys"], results)
    assert first_difference(claim.cell, read(path)) is None
    show(claim, runs)


def test_other_data_show_nothing(results: Path, runs: Path) -> None:
    origin = read_json(results / "toys" / "origin.json")
    origin["data"]["digest"] = OTHER
    write_json(results / "toys" / "origin.json", origin)
    (claim,) = claims(["toys"], results)
    assert f"origin.json, data, digest: '{OTHER}' was kept" in refusal(claim, runs)


def test_cells_that_can_show_nothing_are_refused(results: Path) -> None:
    def said(*names: str) -> str:
        with pytest.raises(RunError) as error:
            claims(names, results)
        assert "\n" not in str(error.value)
        return str(error.value)

    popularity = next(path.name for path in results.glob("popularity-*"))
    assert "only runs can be vouched for" in said("toys", popularity)
    assert "no such cell" in said("nobody") and "no such cell" in said(str(results.parent))
    made_by(results / "toys", code_digest("hllm"))
    assert "was made by today's code" in said("toys")
    made_by(results / "toys", OLD, OLDER)
    assert "names 2 states" in said("toys")
    made_by(results / "toys", "../x")
    with pytest.raises(RunError, match=r"can't vouch for '\.\./x'"):
        vouch(claims(["toys"], results), results)
    (results / "toys" / "scores.csv").write_text("")
    assert "was changed since it was kept" in said("toys")
    assert not (results / SAME).exists()


def test_a_run_of_other_code_shows_nothing(results: Path, runs: Path) -> None:
    (claim,) = claims(["toys"], results)
    noted = read_json(claim.run(runs) / "origin.json")
    noted["sessions"][0]["code"] = OTHER
    write_json(claim.run(runs) / "origin.json", noted)
    assert "was made by other code; remove it" in refusal(claim, runs)


def test_a_comparison_takes_it_and_says_so(
    toys: Toys, finished_runs: dict[str, Path], tmp_path: Path
) -> None:
    recipe, results = tmp_path / "toys.toml", tmp_path / "results"
    recipe.write_text(toys.recipe().to_toml())
    comparison: Comparison = description(
        tmp_path, f'name = "mine"\nrecipe = "{recipe}"\n[strategies.plain]\n'
    )
    (planned,) = comparison.cells
    keep(finished_runs["toys"], results / "cells", planned.name)
    made_by(results / "cells" / planned.name, OLD)
    assert labels_of(lacking([outcome(planned, results)])) == ["plain"]
    (claim,) = claims([planned.name], results)
    shutil.copytree(finished_runs["toys"], claim.run(tmp_path / "runs"))
    show(claim, tmp_path / "runs")
    vouch([claim], results)
    found = outcome(planned, results)
    assert found.current and found.shown_by == (planned.name,) and lacking([found]) == []
    # A run that earlier code has begun is not set aside any more.
    shutil.rmtree(found.path)
    run = Path(shutil.copytree(finished_runs["toys"], tmp_path / "runs" / planned.name))
    noted = read_json(run / "origin.json")
    noted["sessions"][0]["code"] = OLD
    write_json(run / "origin.json", noted)
    work(planned, tmp_path / "runs", results)
    again = outcome(planned, results)
    assert again.cell is not None and again.cell.origin["code"] == [OLD] and again.current
    write_json(found.path / "origin.json", {**again.cell.origin, "code": [OTHER]})
    assert not outcome(planned, results).current


def labels_of(found: list[Any]) -> list[str]:
    return [each.planned.label for each in found]
