"""Whole runs of every recommender: the same again, resumed, saved and opened, cut anywhere.

What a recommender keeps within one client is in `tests/models/conformance.py`; this is what it
keeps over rounds, on disk, and under each strategy and codec.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fellrec
from fellrec.config import RunConfig
from fellrec.errors import ModelError
from fellrec.federation.runs import train
from fellrec.files import read_json, read_tensors
from fellrec.serving.rescore import rescore
from fellrec.split.ledger import Ledger
from tests.federation.crashes import differences, kill_and_resume, metrics, outcome
from tests.toys import SHOPS, Toys, titles

RECOMMENDERS: dict[str, dict[str, object]] = {
    "hllm": {"model.recommender": "hllm"},
    "hllm, private": {"model.recommender": "hllm", "model.item_residual": "local"},
    "recformer": {"model.recommender": "recformer"},
    # items are fixed within the run, and histories are too long for the context
    "recformer, fixed": {
        "model.recommender": "recformer",
        "recformer.fixed_after": 1,
        "recformer.max_tokens": 24,
        "train.windows": 2,
        "train.rounds": 3,
    },
    "bigrec": {"model.recommender": "bigrec", "model.history": 4, "bigrec.beams": 3},
    # validation chooses something that stays with the client
    "bigrec, few-shot": {
        "model.recommender": "bigrec",
        "model.history": 4,
        "bigrec.decode": "retrieve",
        "bigrec.popularity": [0.0, 1.0, 4.0],
        "train.samples": 24,
        "evaluation.valid_users": 12,
        "evaluation.test_users": 15,
    },
}
KILLS = {  # HLLM is killed in test_resume.py; the plain forms do no more than these
    "recformer, fixed": [150, 260],  # in the second round, which fixes items, and in the third
    "bigrec, few-shot": [150],
}


def recipe(toys: Toys, recommender: str, overrides: dict[str, object] | None = None) -> RunConfig:
    base = {"model.base": str(toys.lm)} if recommender.startswith("bigrec") else {}
    return toys.recipe({**base, **RECOMMENDERS[recommender], **(overrides or {})})


@pytest.fixture(scope="module")
def trained(toys: Toys, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a finished run of each recommender; copy one before you change it."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FELLREC_CACHE", str(toys.cache))
        return {name: train(recipe(toys, name), folder / name).path for name in RECOMMENDERS}


@pytest.fixture(scope="module")
def answers(toys: Toys, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Return how each ended that was killed; `reference` is the folder of a run that was not."""
    cases = []
    folder = tmp_path_factory.mktemp("crashes")
    for number, (name, points) in enumerate(KILLS.items()):
        own = folder / str(number)
        own.mkdir()
        (own / "recipe.toml").write_text(recipe(toys, name).to_toml())
        case = {"recipe": own / "recipe.toml", "folder": own, "points": points, "moments": []}
        cases.append(case)
    given = kill_and_resume(cases, toys.environment(), folder / "spec.json")
    return {
        name: {**answer, "reference": Path(str(case["folder"])) / "reference"}
        for name, case, answer in zip(KILLS, cases, given, strict=True)
    }


@pytest.mark.parametrize("recommender", KILLS)
def test_killed_and_resumed_is_undisturbed(
    answers: dict[str, dict[str, Any]], recommender: str
) -> None:
    assert answers[recommender]["failures"] == {}
    assert answers[recommender]["died"] == len(KILLS[recommender])


@pytest.mark.parametrize("recommender", RECOMMENDERS)
def test_two_runs_of_a_recipe_are_the_same(
    toys: Toys,
    trained: dict[str, Path],
    runs: Path,
    recommender: str,
    request: pytest.FixtureRequest,
) -> None:
    """The second is of another process where there is one already."""
    if recommender in KILLS:
        again = request.getfixturevalue("answers")[recommender]["reference"]
    else:
        again = train(recipe(toys, recommender), runs / "again").path
    assert differences(outcome(trained[recommender]), outcome(again)) == []


@pytest.mark.parametrize("recommender", RECOMMENDERS)
def test_a_finished_run_recommends_what_is_new(trained: dict[str, Path], recommender: str) -> None:
    run = fellrec.load_run(trained[recommender])
    assert rescore(run).differences == ()
    history = titles()[:6]
    for name in SHOPS:
        client = run.client(name)
        found = client.recommend(history, k=1000)
        assert len({entry.item for entry in found}) == len(found) == len(titles()) - 6
        assert not {entry.title for entry in found} & set(history)
        assert [e.score for e in found] == sorted((e.score for e in found), reverse=True)
        user = client.users[0]
        known = {f"i{item}" for item in client.items_of(user)}
        assert not {entry.item for entry in client.recommend(user=user, k=1000)} & known


def crossed(run: Path) -> int:
    """Return the bytes of activations and gradients of the first round."""
    rows = [row for row in Ledger.read(run / "ledger.csv").rows() if row.round == 0]
    return sum(row.bytes for row in rows if row.kind in ("activation", "gradient"))


@pytest.mark.parametrize("strategy", ["fedavg", "local"])
@pytest.mark.parametrize("recommender", RECOMMENDERS)
def test_every_strategy_and_codec(
    toys: Toys, trained: dict[str, Path], runs: Path, recommender: str, strategy: str
) -> None:
    codec = {"fedavg": "int8", "local": "fp32"}[strategy]
    changed = {"balance.strategy": strategy, "split.codec": codec, "train.rounds": 1}
    done = train(recipe(toys, recommender, changed), runs / "run")
    assert all(0 <= value <= 1 for value in done.summary["overall"].values())
    assert all(line["loss"] > 0 for line in metrics(done.path))
    most = {"int8": 0.3, "fp32": 1.1}[codec]  # what BIGRec writes, and how long, depends on both
    assert 0 < crossed(done.path) < most * crossed(trained[recommender])


def union(run: Path, client: str) -> dict[str, Tensor]:
    """Return all tensors of a client's last model, from both sides."""
    here = read_tensors(run / "clients" / client / "last_adapter.safetensors")
    private = read_tensors(run / "clients" / client / "last_private.safetensors")
    there = read_tensors(run / "server" / client / "last_adapter.safetensors")
    return here | private | there


@pytest.mark.parametrize("recommender", [name for name in RECOMMENDERS if name != "hllm"])
def test_cut_equals_whole(toys: Toys, runs: Path, recommender: str) -> None:
    shared: dict[str, object] = {"train.micro_batches": 2}
    one_piece = recipe(toys, recommender, {**shared, "model.k_in": 3, "model.k_out": 0})
    whole = train(one_piece, runs / "whole")
    for k_in, k_out in ((0, 0), (1, 1)):
        parted = recipe(toys, recommender, {**shared, "model.k_in": k_in, "model.k_out": k_out})
        split = train(parted, runs / f"split {k_in} {k_out}")
        for client in SHOPS:
            first, second = union(whole.path, client), union(split.path, client)
            assert first.keys() == second.keys()
            for name in first:
                # The clipping norm is summed in another order, which may cost a last bit.
                torch.testing.assert_close(first[name], second[name], rtol=1e-4, atol=1e-5)
        for one, other in zip(metrics(whole.path), metrics(split.path), strict=True):
            assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert whole.summary["overall"] == split.summary["overall"]


# --- BIGRec's own ---------------------------------------------------------------------------------


def strength(path: Path) -> float:
    return float(read_tensors(path)["popularity_strength"])


def test_a_chosen_strength_is_served(trained: dict[str, Path]) -> None:
    run = trained["bigrec, few-shot"]
    chosen = {name: strength(run / f"clients/{name}/best_private.safetensors") for name in SHOPS}
    assert set(chosen.values()) <= {0.0, 1.0, 4.0} and any(chosen.values())
    opened = fellrec.load_run(run)
    assert rescore(opened).differences == ()
    for name in SHOPS:
        client = opened.client(name)
        client.recommend(titles()[:3])
        found = client.client.private()["popularity_strength"]
        assert float(found) == chosen[name]


def test_a_sample_of_users_is_scored_and_all_tokens_count(trained: dict[str, Path]) -> None:
    run = trained["bigrec, few-shot"]
    clients = read_json(run / "summary.json")["clients"]
    assert sum(client["scored"] for client in clients) == 15
    assert sum(client["examples"] for client in clients) == 24
    lines = metrics(run)
    for client in clients:
        own = [line["tokens"] for line in lines if line["client"] == client["id"]]
        assert client["tokens"] == sum(own) and own[0] == own[1] > client["examples"]
    for line in lines:
        assert line["steps"] == -(
            -sum(c["examples"] for c in clients if c["id"] == line["client"]) // 4
        )


def test_a_base_without_an_output_layer(toys: Toys, runs: Path) -> None:
    for base, said in ((toys.llama, "has no output layer"), (toys.bert, "causal language model")):
        with pytest.raises(ModelError, match=said) as error:
            train(recipe(toys, "bigrec", {"model.base": str(base)}), runs / "run")
        assert "\n" not in str(error.value)


# --- RecFormer's own ------------------------------------------------------------------------------


def item_table(run: Path, round: int, client: str, file: str = "private") -> Tensor:
    path = run / "rounds" / str(round) / "clients" / client / f"{file}.safetensors"
    return read_tensors(path)["item_table"]


def test_fixed_items_stay_with_their_client(toys: Toys, runs: Path) -> None:
    overrides: dict[str, object] = {"evaluation.keep_rounds": 4}
    run = train(recipe(toys, "recformer, fixed", overrides), runs / "run").path
    for client in SHOPS:
        first, second, third = (item_table(run, round, client) for round in (1, 2, 3))
        assert not first.any()
        torch.testing.assert_close(second.norm(dim=1), torch.ones(len(second)))
        assert torch.equal(second, third)
        best = item_table(run, 3, client, "best_private")
        assert torch.equal(best, second) or not best.any()
    tables = [item_table(run, 3, client) for client in SHOPS]
    assert not torch.allclose(tables[0], tables[1], atol=1e-4)  # each by its own mixed model


def test_items_are_fixed_by_the_first_round_that_a_client_trains(toys: Toys, runs: Path) -> None:
    overrides: dict[str, object] = {
        "clients.per_round": 1,
        "train.rounds": 4,
        "evaluation.keep_rounds": 5,
    }
    run = train(recipe(toys, "recformer, fixed", overrides), runs / "run").path
    drawn = [line["client"] for line in metrics(run)]
    for client in set(drawn):
        for round in range(1, 5):
            path = run / f"rounds/{round}/clients/{client}/private.safetensors"
            trained_since = client in drawn[1:round]
            assert (path.exists() and bool(item_table(run, round, client).any())) is trained_since


def test_a_second_stage_sends_items_no_more(toys: Toys, runs: Path) -> None:
    def up(fixed_after: int) -> int:
        overrides: dict[str, object] = {"recformer.fixed_after": fixed_after, "train.rounds": 3}
        done = train(recipe(toys, "recformer", overrides), runs / str(fixed_after))
        return int(done.summary["cost"]["bytes_up"])

    assert up(1) < up(2) < up(0)


def test_few_shot_samples(toys: Toys, runs: Path) -> None:
    overrides: dict[str, object] = {"train.samples": 12, "train.windows": 3}
    done = train(recipe(toys, "recformer", overrides), runs / "run")
    for round in range(2):  # one target each, the same every time, whatever the windows
        lines = [line for line in metrics(done.path) if line["round"] == round]
        assert sum(line["examples"] for line in lines) == 12


def test_bases_that_do_not_fit(toys: Toys, runs: Path) -> None:
    bare = Path(shutil.copytree(toys.bert, runs / "bare"))
    (bare / "tokenizer.json").write_text("{}")
    for base, said in ((toys.llama, "use an encoder"), (bare, "tokenizer can't be loaded")):
        with pytest.raises(ModelError, match=said) as error:
            train(recipe(toys, "recformer", {"model.base": str(base)}), runs / "run")
        assert "\n" not in str(error.value)
        assert not (runs / "run").exists()
