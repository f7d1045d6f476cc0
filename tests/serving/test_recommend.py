"""Recommendations from a finished run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import fellrec
from fellrec.errors import ConfigError, DataError, RunError
from fellrec.evaluation.ranking import mean_metrics
from fellrec.federation.runs import train
from fellrec.serving.rescore import rescore
from fellrec.serving.run import Run, load_run
from fellrec.serving.samples import samples
from tests.toys import ITEMS, SHOPS, Toys, titles


@pytest.fixture
def run(undisturbed: Path) -> Run:
    return load_run(undisturbed)


def test_history_never_comes_back(run: Run) -> None:
    history = titles()[:6]
    found = run.client("north").recommend(history, k=8)
    assert len(found) == 8
    assert not {entry.title for entry in found} & set(history)
    assert [e.score for e in found] == sorted((e.score for e in found), reverse=True)
    assert len({entry.item for entry in found}) == 8
    by_id = dict(zip((f"i{i}" for i in range(ITEMS)), titles(), strict=True))
    assert all(by_id[entry.item] == entry.title for entry in found)


def test_more_than_the_catalogue_has(run: Run) -> None:
    found = run.client("north").recommend(titles()[:6], k=1000)
    assert {entry.item for entry in found} == {f"i{i}" for i in range(6, ITEMS)}
    nothing = run.client("north").recommend_items(list(range(ITEMS)), k=5)
    assert nothing == []


def test_the_order_of_the_history_matters(run: Run) -> None:
    history = titles()[:6]
    client = run.client("south")
    assert client.recommend(history) != client.recommend(history[::-1])
    assert client.recommend(history) == client.recommend(history)  # nothing is kept in between


def test_a_title_that_two_items_share(run: Run) -> None:
    twice = titles()[-1]
    assert titles()[-2] == twice
    found = run.client("north").recommend([twice], k=1000)
    assert len(found) == ITEMS - 2 and twice not in {entry.title for entry in found}
    one = run.client("north").recommend_items([ITEMS - 2], k=1000)
    assert twice in {entry.title for entry in one}  # by number they are two things


def test_users_by_id(run: Run) -> None:
    client = run.client("north")
    user = client.users[0]
    items = client.items_of(user)
    log = run.shares.dataset.interactions
    own = log.item[log.user == run.shares.dataset.users.index(user)]
    assert items == own.tolist()
    found = client.recommend(user=user, k=1000)
    assert {entry.item for entry in found} == {f"i{i}" for i in set(range(ITEMS)) - set(items)}


def test_clients_have_their_own_models(run: Run) -> None:
    history = titles()[:4]
    scores = {
        client.name: [entry.score for entry in client.recommend(history)]
        for client in run.clients()
    }
    assert set(scores) == set(SHOPS)
    assert scores["north"] != scores["south"]


def test_what_is_not_known_is_named(run: Run, tmp_path: Path) -> None:
    client = run.client("north")
    with pytest.raises(DataError, match="near: 'space story 0'"):
        client.recommend(["Space stroy 0"])
    with pytest.raises(DataError, match="no user 'u9999'"):
        client.recommend(user="u9999")
    with pytest.raises(DataError, match="empty"):
        client.recommend([])
    for arguments in ({}, {"history": ["x"], "user": "u0"}):
        with pytest.raises(ConfigError, match="not both"):
            client.recommend(**arguments)  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(ConfigError, match="k = 0"):
        client.recommend(titles()[:2], k=0)
    with pytest.raises(RunError, match="there are: "):
        run.client("west")
    with pytest.raises(RunError, match="not a run directory"):
        load_run(tmp_path)


def test_an_unfinished_run(finished_run: Path) -> None:
    (finished_run / "summary.json").unlink()
    with pytest.raises(RunError, match="not finished"):
        load_run(finished_run)


@pytest.mark.parametrize("side", ["clients", "server"])
def test_a_lost_adapter_is_named(finished_run: Path, side: str) -> None:
    (finished_run / side / "north" / "best_adapter.safetensors").unlink()
    with pytest.raises(RunError, match="best_adapter"):
        load_run(finished_run).client("north").recommend(titles()[:2])


def test_scores_again(run: Run) -> None:
    again = rescore(run)
    assert again.differences == ()
    assert again.overall == run.summary["overall"]


def test_another_model_scores_otherwise(finished_run: Path) -> None:
    for side in ("clients", "server"):
        other = finished_run / side / "south" / "best_adapter.safetensors"
        (finished_run / side / "north" / "best_adapter.safetensors").unlink()
        other.rename(finished_run / side / "north" / "best_adapter.safetensors")
        other.write_bytes((finished_run / side / "north" / other.name).read_bytes())
    summary = json.loads((finished_run / "summary.json").read_text())
    north = load_run(finished_run).client("north")
    (before,) = [client for client in summary["clients"] if client["id"] == "north"]
    after = mean_metrics(north.evaluate())
    assert any(after[name] != before[name] for name in after)


def test_recommending_agrees_with_the_test_scores(run: Run) -> None:
    """Rank the test target by `recommend_items`, and compute recall@10 from that alone."""
    hits = []
    for client in run.clients():
        data = client.client.data
        for user in range(len(data)):
            history = data.history("test")[user].tolist()
            found = client.recommend_items(history, k=10)
            hits.append(f"i{data.test[user][0]}" in {entry.item for entry in found})
    assert np.mean(hits) == pytest.approx(run.summary["overall"]["recall@10"])


def test_a_client_that_was_never_drawn_is_served(toys: Toys, runs: Path) -> None:
    path = train(toys.recipe({"clients.per_round": 1, "train.rounds": 1}), runs / "run").path
    opened = fellrec.load_run(path)
    assert rescore(opened).differences == ()
    scores = [[e.score for e in c.recommend(titles()[:4])] for c in opened.clients()]
    assert scores[0] != scores[1] or scores[1] != scores[2]  # one was trained


def test_samples(run: Run) -> None:
    drawn = samples(run, 3, k=4)
    assert {sample.client for sample in drawn} == set(SHOPS)
    for sample in drawn:
        assert sample.user in run.client(sample.client).users
        assert not {e.title for e in sample.recommended} & set(sample.history[:-4])
        for held in sample.held_out:
            hits = [sample.hit(entry) for entry in sample.recommended]
            assert any(hits) == (held.rank is not None and held.rank <= 4)
    assert samples(run, 3, k=4) == drawn


def test_a_client_that_a_deployment_lost_is_left_out(finished_run: Path) -> None:
    summary = json.loads((finished_run / "summary.json").read_text())
    summary["clients"] = [line for line in summary["clients"] if line["id"] != "north"]
    (finished_run / "summary.json").write_text(json.dumps(summary))
    shutil.rmtree(finished_run / "clients" / "north")
    run = load_run(finished_run)
    others = set(SHOPS) - {"north"}
    assert [client.name for client in run.clients()] == [line["id"] for line in summary["clients"]]
    assert {row["id"] for row in rescore(run).clients} == others
    assert {sample.client for sample in samples(run, 9)} == others
    with pytest.raises(RunError, match="no client 'north'; there are: "):
        run.client("north")


@pytest.mark.parametrize("name", ["../out", "a/b", "..", "x" * 80])
def test_names_that_lead_elsewhere_are_refused(toys: Toys, runs: Path, name: str) -> None:
    copy = runs / "data"
    copy.mkdir()
    for file in toys.data.iterdir():
        text = file.read_text()
        (copy / file.name.replace("toys", "data")).write_text(text.replace("\tnorth", f"\t{name}"))
    with pytest.raises(DataError, match="can't name a client"):
        train(toys.recipe({"data.source": str(copy)}), runs / "run")


@pytest.mark.parametrize("recommender", ["recformer", "bigrec"])
def test_what_a_client_was_made_ready_with_serves_again(
    toys: Toys, runs: Path, recommender: str
) -> None:
    base = toys.lm if recommender == "bigrec" else toys.bert
    overrides = {"model.recommender": recommender, "model.base": str(base), "train.rounds": 1}
    opened = load_run(train(toys.recipe(overrides), runs / "run").path)
    history = [3, 1, 4]

    def recommend(name: str) -> tuple[list[float], int]:
        ledger = opened.workspace.ledger
        before = ledger.totals()["bytes_up"]
        found = opened.client(name).recommend_items(history, k=ITEMS)
        return [entry.score for entry in found], ledger.totals()["bytes_up"] - before

    first, much = recommend("north")
    again, little = recommend("north")
    assert again == first and little < much / 2
    other, other_much = recommend("south")
    assert other != first and other_much > 2 * little
    assert recommend("north") == (first, much)  # another client's turn came in between
