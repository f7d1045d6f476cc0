"""The store of results: what is kept of a run, that it is whole, and what is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fellrec.config import RunConfig
from fellrec.data.digest import data_digest
from fellrec.data.interactions import Ragged
from fellrec.errors import RunError
from fellrec.federation.shares import load_split
from fellrec.results.cells import read, read_all, write
from fellrec.results.keeping import keep
from tests.toys import SHOPS, USERS, Toys

FILES = {"config.toml", "summary.json", "scores.csv", "origin.json"}


@pytest.fixture
def kept(finished_runs: dict[str, Path], tmp_path: Path) -> Path:
    """Return a folder with all four runs and their baseline."""
    for name, path in finished_runs.items():
        keep(path, tmp_path / "results", name)
    return tmp_path / "results"


def test_what_is_kept(kept: Path, finished_runs: dict[str, Path], toys: Toys) -> None:
    names = {path.name for path in kept.iterdir()}
    (baseline,) = names - finished_runs.keys()
    assert names == {*finished_runs, baseline} and baseline.startswith("popularity-toys-")
    for name, run in finished_runs.items():
        cell = read(kept / name)
        logged = {"rounds.jsonl"} if cell.summary["rounds"] else set()
        assert {path.name for path in (kept / name).iterdir()} == FILES | logged
        text = (run / "metrics.jsonl").read_text() if logged else ""
        assert list(cell.rounds) == [json.loads(line) for line in text.splitlines()]
        assert cell.config == RunConfig.from_toml(run / "config.toml")
        assert cell.summary == json.loads((run / "summary.json").read_text())
        for metric, value in cell.summary["overall"].items():
            assert cell.scores[metric].mean() == pytest.approx(value, abs=1e-6)
    assert {path.name for path in (kept / baseline).iterdir()} == FILES - {"config.toml"}


def test_scores_are_in_the_order_of_the_split(kept: Path, toys: Toys, undisturbed: Path) -> None:
    """Each row is the right user's, found here by id; the file has no ids."""
    tables = [pd.read_parquet(undisturbed / "clients" / c / "scores.parquet") for c in SHOPS]
    by_user = pd.concat(tables).set_index("user")
    users = load_split(toys.recipe())[1].users
    cell = read(kept / "toys")
    assert cell.rows.tolist() == list(range(USERS)) == list(range(len(users)))
    shop = {user: n for n, table in enumerate(tables) for user in table["user"]}
    order = [client["id"] for client in cell.summary["clients"]]
    assert cell.clients is not None
    for row in cell.rows.tolist():
        for metric, values in cell.scores.items():
            assert values[row] == pytest.approx(by_user.loc[users[row], metric], abs=5e-7)
        assert order[cell.clients[row]] == SHOPS[shop[users[row]]]
    assert any(cell.scores["ndcg@10"] % 1)  # not all 0 and 1: something is rounded


def test_no_ids_leave(kept: Path, toys: Toys) -> None:
    users = load_split(toys.recipe())[1].users
    for file in kept.rglob("*"):
        if file.is_file():
            words = set(file.read_text().replace(",", " ").replace('"', " ").split())
            assert not words & set(users)


def test_a_sample_keeps_its_rows(kept: Path) -> None:
    trained, base = read(kept / "sampled"), read(kept / "sampled-untrained")
    assert len(trained.rows) == 12 and np.array_equal(trained.rows, base.rows)
    whole = read(kept / "toys")
    aligned = trained.of(whole.rows, "ndcg@10")
    assert np.flatnonzero(~np.isnan(aligned)).tolist() == trained.rows.tolist()
    np.testing.assert_array_equal(aligned[trained.rows], trained.scores["ndcg@10"])
    assert np.isnan(whole.of(np.array([USERS + 1]), "ndcg@10")).all()


def test_origin(kept: Path, undisturbed: Path) -> None:
    origin = read(kept / "sampled").origin
    assert origin["seed"] == 0 and origin["seconds"] > 0
    assert len(origin["code"]) == 1 and len(origin["code"][0]) == 16
    assert origin["data"] | {"digest": ""} == {
        "dataset": "toys", "split": "leave-one-out", "users": USERS, "items": 36, "digest": "",
    }  # fmt: skip
    assert len({read(path).origin["data"]["digest"] for path in kept.iterdir()}) == 1


def test_a_run_of_a_version_without_origin_is_kept(finished_run: Path, tmp_path: Path) -> None:
    (finished_run / "origin.json").unlink()
    origin = keep(finished_run, tmp_path / "results").cell.origin
    assert (origin["code"], origin["date"], origin["seconds"]) == ([], None, None)


def test_keeping_twice_needs_to_be_said(kept: Path, finished_runs: dict[str, Path]) -> None:
    run = finished_runs["toys"]
    before = {path: path.read_bytes() for path in (kept / "toys").iterdir()}
    with pytest.raises(RunError, match="exists already"):
        keep(run, kept, "toys")
    keep(run, kept, "toys", replace=True)
    assert {path: path.read_bytes() for path in (kept / "toys").iterdir()} == before
    assert not [path for path in kept.iterdir() if path.name.startswith(".")]


def test_a_killed_write_counts_for_nothing(kept: Path, finished_runs: dict[str, Path]) -> None:
    cells = [cell.name for cell in read_all(kept)]
    shutil.copytree(kept / "toys", kept / ".toys.partial")
    (kept / ".toys.partial" / "origin.json").unlink()
    assert [cell.name for cell in read_all(kept)] == cells
    keep(finished_runs["toys"], kept, "toys", replace=True)
    assert not (kept / ".toys.partial").exists()


def test_the_baseline_is_made_once_and_gets_longer_lists(
    toys: Toys, finished_runs: dict[str, Path], tmp_path: Path
) -> None:
    first = keep(finished_runs["toys"], tmp_path / "results", "one").baseline
    stamp = (tmp_path / "results" / first.name / "scores.csv").stat().st_ino
    again = keep(finished_runs["sampled"], tmp_path / "results", "two").baseline
    assert again.name == first.name
    assert (tmp_path / "results" / first.name / "scores.csv").stat().st_ino == stamp
    assert set(first.scores) == {"recall@3", "ndcg@3", "recall@10", "ndcg@10"}
    other = Path(shutil.copytree(finished_runs["toys"], tmp_path / "other"))
    longer = toys.recipe({"evaluation.ks": [3, 5, 10]})
    (other / "config.toml").write_text(longer.to_toml())
    grown = keep(other, tmp_path / "results").baseline
    assert grown.name == first.name and "recall@5" in grown.scores


def test_refused_runs(finished_run: Path, undisturbed: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"

    def said(run: Path, name: str | None = None) -> str:
        with pytest.raises(RunError) as error:
            keep(run, results, name)
        assert "\n" not in str(error.value)
        assert not results.exists()
        return str(error.value)

    assert "not a run directory" in said(tmp_path)
    for name in ("a/b", "..", ".hidden", ""):
        assert "can't name a cell" in said(undisturbed, name)
    summary = json.loads((finished_run / "summary.json").read_text())
    other = {**summary, "overall": {**summary["overall"], "ndcg@10": 0.99}}
    (finished_run / "summary.json").write_text(json.dumps(other))
    assert "summary.json says 0.99" in said(finished_run)
    (finished_run / "summary.json").write_text(json.dumps(summary))
    for text in ("{}", "[]"):
        (finished_run / "summary.json").write_text(text)
        assert "summary.json: not a run's summary" in said(finished_run)
    (finished_run / "summary.json").write_text(json.dumps(summary))
    log = finished_run / "metrics.jsonl"
    before = log.read_text()
    log.write_text(before[:-9])
    assert "metrics.jsonl:6: not a line of a run's log" in said(finished_run)
    log.write_text(before)
    table = finished_run / "clients" / "north" / "scores.parquet"
    pd.read_parquet(table).assign(user="stranger").to_parquet(table)
    assert "users that the data lack" in said(finished_run)
    table.write_bytes(b"short")
    assert "can't be read" in said(finished_run)
    table.unlink()
    assert "can't be read" in said(finished_run)


def test_a_cell_that_was_changed_or_damaged_is_refused(kept: Path, tmp_path: Path) -> None:
    def said(file: str, text: str | None) -> str:
        damaged = Path(shutil.copytree(kept / "toys", tmp_path / "damaged"))
        if text is None:
            (damaged / file).unlink()
        else:
            (damaged / file).write_text(text)
        with pytest.raises(RunError) as error:
            read(damaged)
        shutil.rmtree(damaged)
        assert "\n" not in str(error.value)
        return str(error.value)

    for file in sorted(FILES - {"origin.json"}):
        text = (kept / "toys" / file).read_text()
        assert f"{file} was changed" in said(file, text.replace("1", "2", 1))
        assert "is no cell" in said(file, None)
    for origin in ("", "[]", "{}", '{"files": 3}', '{"files": {}}', 100_000 * "[", None):
        assert "is no cell" in said("origin.json", origin)
    whole = json.loads((kept / "toys" / "origin.json").read_text())
    for key in ("code", "data", "command", "seed", "date", "seconds"):
        text = json.dumps({name: value for name, value in whole.items() if name != key})
        assert key in said("origin.json", text)
    assert "data.users" in said("origin.json", json.dumps({**whole, "data": {"digest": "a"}}))
    assert "code" in said("origin.json", json.dumps({**whole, "code": 3}))
    with pytest.raises(RunError, match="no results yet"):
        read_all(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "scores",
    ["", "row\n0\n", "who,ndcg@10\n0,1\n", "row,ndcg@10\n", "row,ndcg@10\n1,0\n0,0\n",
     "row,ndcg@10\n0,0\n0,0\n", "row,ndcg@10\n-1,0\n", "row,ndcg@10\n0,2\n",
     "row,ndcg@10\n0,nan\n", "row,ndcg@10\n0,1,1\n", "row,ndcg@10\n0,x\n"],
)  # fmt: skip
def test_hostile_scores(kept: Path, scores: str) -> None:
    path = kept / "toys"
    (path / "scores.csv").write_text(scores)
    origin = json.loads((path / "origin.json").read_text())
    # So that nothing but the form can be wrong.
    origin["files"]["scores.csv"] = hashlib.sha256(scores.encode()).hexdigest()
    (path / "origin.json").write_text(json.dumps(origin))
    with pytest.raises(RunError, match="is no cell"):
        read(path)


@pytest.mark.parametrize("summary", ["{}", "[]", "3", '"seed"', "without clients", "without cost"])
def test_a_summary_that_is_none_is_refused(kept: Path, summary: str) -> None:
    path = kept / "toys"
    _, _, lacking = summary.partition("without ")
    if lacking:
        whole = json.loads((path / "summary.json").read_text())
        summary = json.dumps({key: value for key, value in whole.items() if key != lacking})
    (path / "summary.json").write_text(summary)
    origin = json.loads((path / "origin.json").read_text())
    origin["files"]["summary.json"] = hashlib.sha256(summary.encode()).hexdigest()
    (path / "origin.json").write_text(json.dumps(origin))
    with pytest.raises(RunError, match=r"is no cell of results \(.*summary\.json is incomplete"):
        read(path)


@pytest.mark.parametrize("lacking", ["cost", "overall", "code", "seed"])
def test_a_peer_says_less_than_a_run_but_all_of_that(tmp_path: Path, lacking: str) -> None:
    data = {"dataset": "toys", "split": "last-5", "users": 3, "items": 9, "digest": "abc"}
    figures = {"dataset": "toys", "users": 3, "items": 9, "overall": {}, "cost": {}}
    summary: dict[str, Any] = {"recommender": "als", "seed": 0, **figures}
    origin = {"code": ["now"], "seed": 0, "data": data}
    scores = {"ndcg@10": np.zeros(3)}
    assert write(tmp_path / "whole", None, summary, scores, origin).config is None
    if lacking in origin:
        origin = {key: value for key, value in origin.items() if key != lacking}
    else:
        summary.pop(lacking)
    with pytest.raises(RunError, match="is no cell of results"):
        write(tmp_path / "part", None, summary, scores, origin)


def test_nobody_scored_is_no_result(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no user was scored"):
        write(tmp_path / "cell", None, {}, {"ndcg@10": np.full(3, np.nan)}, {})
    assert not (tmp_path / "cell").exists()


def test_the_data_digest_sees_every_part(toys: Toys) -> None:
    dataset, split = load_split(toys.recipe())
    digest = data_digest(dataset, split)
    assert digest == data_digest(*load_split(toys.recipe()))
    last = load_split(toys.recipe({"data.split": "global-time"}))
    some = load_split(toys.recipe({"data.max_users": 26}))
    renamed = dict(vars(dataset.catalogue), titles=("other", *dataset.catalogue.titles[1:]))
    texts = type(dataset)(
        dataset.name, type(dataset.catalogue)(**renamed), dataset.users, dataset.interactions, {}
    )
    moved = type(split)(
        split.users,
        split.train,
        split.valid,
        Ragged(split.test.offsets, split.test.values[::-1]),
        split.dropped,
        {},
    )
    others = [data_digest(*last), data_digest(*some), data_digest(texts, split)]
    assert len({digest, *others, data_digest(dataset, moved)}) == 5
