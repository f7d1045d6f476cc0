"""No rounds at all: the base is scored as it comes, and all that a run leaves is there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fellrec.federation.runs import train
from fellrec.files import read_tensors
from fellrec.serving.rescore import rescore
from fellrec.serving.run import load_run
from tests.toys import SHOPS, Toys


@pytest.mark.parametrize("recommender", ["hllm", "recformer", "bigrec"])
def test_no_rounds_score_the_base(toys: Toys, runs: Path, recommender: str) -> None:
    shared: dict[str, object] = {
        "model.recommender": recommender,
        "model.base": str(toys.lm if recommender == "bigrec" else toys.bert),
        "evaluation.test_users": 12,
    }
    base = train(toys.recipe({**shared, "train.rounds": 0}), runs / "base")
    summary = json.loads((base.path / "summary.json").read_text())
    assert summary["rounds"] == 0 and summary["valid"] == {"ndcg@10": None}
    assert 0 < summary["overall"]["recall@10"] <= 1  # ten of 36 items
    assert (summary["cost"]["steps"], summary["cost"]["train_seconds"]) == (0, 0)
    assert {client["id"] for client in summary["clients"]} == set(SHOPS)
    for client in summary["clients"]:
        assert (client["tokens"], client["best_round"], client["valid"]) == (0, 0, None)
    assert sum(client["scored"] for client in summary["clients"]) == 12

    run = load_run(base.path)
    assert rescore(run).differences == ()
    assert len(run.client("north").recommend(["space story 0"], k=5)) == 5
    again = train(toys.recipe({**shared, "train.rounds": 0}), base.path, resume=True)
    assert again.summary["overall"] == base.summary["overall"]

    trained = train(toys.recipe({**shared, "train.rounds": 1}), runs / "trained")
    for before, after in zip(summary["clients"], trained.summary["clients"], strict=True):
        assert before["scored"] == after["scored"] and after["tokens"] > 0


def test_a_base_is_weighed_as_validation_says(toys: Toys, runs: Path) -> None:
    shared: dict[str, object] = {
        "model.recommender": "bigrec",
        "model.base": str(toys.lm),
        "bigrec.decode": "retrieve",
        "train.rounds": 0,
    }
    grid = (0.0, 4.0, 64.0)
    run = train(toys.recipe({**shared, "bigrec.popularity": list(grid)}), runs / "run")
    alone = [
        train(toys.recipe({**shared, "bigrec.popularity": [each]}), runs / str(each))
        for each in grid
    ]
    chosen = {}
    for number, client in enumerate(run.summary["clients"]):
        stored = read_tensors(run.path / f"clients/{client['id']}/best_private.safetensors")
        chosen[client["id"]] = float(stored["popularity_strength"])
        same = alone[grid.index(chosen[client["id"]])].summary["clients"][number]
        assert {k: v for k, v in client.items() if "@" in k} == {
            k: v for k, v in same.items() if "@" in k
        }
    assert any(chosen.values())
    assert rescore(load_run(run.path)).differences == ()
