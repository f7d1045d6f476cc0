"""What a coordinator makes of answers, and what it knows of a base that it does not have."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fellrec.errors import FellrecError, RunError, TrainingError, WireError
from fellrec.federation.deployment import orders
from fellrec.federation.deployment.dispatch import Dispatch, Terms, trunk_outline
from fellrec.federation.deployment.roll import call_roll
from fellrec.federation.members import Mixed, Trained
from fellrec.federation.store import CLIENT, COORDINATOR_FILES, RunState, RunStore, Standing
from fellrec.federation.workspace import start_of, trunk_server
from fellrec.models.adapters import start
from fellrec.split.service.messages import Message
from tests.federation.deployment.test_roll import CONFIG, START, came, told
from tests.split.running import equal
from tests.toys import Toys

REPORT = orders.Report(loss=1.0, examples=3, scored=True, before=0.5)
METRICS = {f"{name}@{k}": 0.5 for name in ("recall", "ndcg") for k in CONFIG.evaluation.ks}
TESTED = orders.TestScores(scored=5, metrics=METRICS)
OWN = {"a": START["a"] + 1}


@pytest.fixture
def dispatch(tmp_path: Path) -> Dispatch:
    """Return one without trunks, of the clients x and y."""
    roll = call_roll(CONFIG, came(told("x"), told("y")))
    store = RunStore(tmp_path, 2, COORDINATOR_FILES)
    terms = Terms.of("run-1", CONFIG)
    return Dispatch(CONFIG, terms, roll, start_of(CONFIG, START, {}), None, store)


@pytest.mark.parametrize("recommender", ["hllm", "recformer", "bigrec"])
def test_a_trunk_begins_as_its_outline_says(toys: Toys, recommender: str) -> None:
    """The coordinator draws the trunk's adapter itself, from the base's configuration alone."""
    base = toys.lm if recommender == "bigrec" else toys.bert
    config = toys.recipe({"model.base": str(base), "model.recommender": recommender})
    server = trunk_server(config)
    assert server is not None
    torch.manual_seed(5)
    outline = trunk_outline(config)
    found = start(outline, config.seed)
    assert equal(found, server.initial())
    assert all(each.device.type == "cpu" for each in found.values())
    assert start(trunk_outline(toys.recipe({"model.k_out": 2})), 0) == {}
    assert not equal(start(outline, config.seed + 1), found)


def test_an_honest_answer(dispatch: Dispatch) -> None:
    trained = dispatch.trained(0, "x", (REPORT, OWN))
    assert isinstance(trained, Trained)
    assert (trained.report.loss, trained.before) == (1.0, 0.5)
    assert math.isnan(trained.report.seconds)  # what the coordinator can't know
    silent = dispatch.trained(0, "x", (REPORT.model_copy(update={"scored": False}), OWN))
    assert isinstance(silent, Trained)
    assert silent.before is None
    assert dispatch.scored(0, "x", (orders.Score(score=0.25), {})) == 0.25
    none = dispatch.scored(0, "x", (orders.Score(score=math.nan), {}))
    assert isinstance(none, float)
    assert math.isnan(none)
    assert dispatch.tested("x", (TESTED, {})) == TESTED
    nobody = orders.TestScores(scored=0, metrics=dict.fromkeys(METRICS, math.nan))
    assert dispatch.tested("x", (nobody, {})) == nobody


@pytest.mark.parametrize(
    ("message", "tensors", "line"),
    [
        (REPORT.model_copy(update={"loss": math.nan}), OWN, "is no report"),
        (REPORT.model_copy(update={"loss": -math.inf}), OWN, "is no report"),
        (orders.Score(score=1.0), OWN, "is no report"),
        (TESTED, OWN, "is no report"),
        (REPORT, {}, "first difference: a"),
        (REPORT, {**OWN, "b": OWN["a"]}, "first difference: b"),
        (REPORT, {"a": OWN["a"].T}, "of shape"),
        (REPORT, {"a": OWN["a"].to(torch.bfloat16)}, "bfloat16"),
        (REPORT, {"a": OWN["a"] * math.nan}, "NaN or infinite"),
    ],
)
def test_a_report_that_can_not_be(
    dispatch: Dispatch, message: Message, tensors: Mapping[str, Tensor], line: str
) -> None:
    answer = dispatch.trained(0, "x", (message, tensors))
    assert isinstance(answer, FellrecError)
    assert line in str(answer)
    assert "client x" in str(answer)


@pytest.mark.parametrize("score", [math.inf, -math.inf, -0.1, 1.1])
def test_a_score_that_can_not_be(dispatch: Dispatch, score: float) -> None:
    answer = dispatch.scored(0, "x", (orders.Score(score=score), {}))
    assert isinstance(answer, TrainingError)
    assert isinstance(dispatch.scored(0, "x", (REPORT, {})), TrainingError)


@pytest.mark.parametrize(
    "changes",
    [
        {"metrics": {}},
        {"metrics": {**METRICS, "id": 1.0}},
        {"metrics": dict.fromkeys(METRICS, 2.0)},
        {"metrics": dict.fromkeys(METRICS, -1.0)},
        {"metrics": dict.fromkeys(METRICS, math.nan)},
        {"scored": 6},  # it has 5 users
    ],
)
def test_test_scores_that_can_not_be(dispatch: Dispatch, changes: dict[str, Any]) -> None:
    answer = dispatch.tested("x", (TESTED.model_copy(update=changes), {}))
    assert isinstance(answer, TrainingError)
    assert "client x" in str(answer)


def test_a_failure_is_the_clients_own_word(dispatch: Dispatch) -> None:
    for read in (
        lambda answer: dispatch.trained(0, "x", answer),
        lambda answer: dispatch.scored(0, "x", answer),
        lambda answer: dispatch.tested("x", answer),
    ):
        lost = read((orders.Failure.of(WireError("the trunk refused")), {}))
        assert isinstance(lost, WireError)
        other = read((orders.Failure.of(RunError("busy")), {}))
        assert str(other) == "client x: busy"


def rejoin(dispatch: Dispatch, held: list[int]) -> None:
    roll = dispatch._roll
    dispatch.rejoined(roll.told["x"].model_copy(update={"held": held}), roll.exchanged)


def test_a_client_gets_its_copy_once_it_has_lost_its_own(
    dispatch: Dispatch, tmp_path: Path
) -> None:
    store = RunStore(tmp_path, 2, COORDINATOR_FILES)
    store.begin(1)
    store.put(1, CLIENT, "x", "adapter", OWN)
    state = RunState(1, {"x": Standing(label=1)})
    store.commit(state)
    assert dispatch.train(state, "y") == (dispatch.train(state, "y")[0], {})  # the common start
    rejoin(dispatch, [1])
    assert dispatch.train(state, "x")[1] == {}
    dispatch.trained(1, "x", (orders.Failure.of(orders.AbsentError("gone")), {}))
    assert equal(dict(dispatch.train(state, "x")[1]), OWN)
    assert dispatch.train(state, "x")[1] == {}  # it has it now
    rejoin(dispatch, [])
    assert equal(dict(dispatch.train(state, "x")[1]), OWN)
    with pytest.raises(RunError, match="lacks the best_adapter of client x; it is damaged"):
        rejoin(dispatch, [])
        dispatch.test(state, "x")


def test_only_what_is_trained_travels(tmp_path: Path) -> None:
    names = {"layer.lora_A.weight": torch.ones(2, 3), "layer.lora_B.weight": torch.zeros(3, 2)}
    config = CONFIG.model_copy(update={"lora": CONFIG.lora.model_copy(update={"freeze_a": True})})
    roll = call_roll(CONFIG, came(told("x"), start=names))
    begun = start_of(config, names, {})
    terms, store = Terms.of("run-1", config), RunStore(tmp_path)
    dispatch = Dispatch(config, terms, roll, begun, None, store)
    mixed = Mixed(names, {}, ["layer.lora_B.weight", "of the trunk"], Standing(None, 3, 1, True, 2))
    order, tensors = dispatch.receive(4, "x", mixed)
    assert tensors.keys() == {"layer.lora_B.weight"}
    assert isinstance(order, orders.Receive)
    assert (order.round, order.label, order.reset) == (4, 2, ["layer.lora_B.weight"])
    assert (order.scored, order.best_round, order.stale, order.stopped) == (False, 3, 1, True)
    assert (order.trunk, order.token) == ("", "")
    refused = dispatch.trained(0, "x", (REPORT, names))
    assert "first difference: layer.lora_A.weight" in str(refused)
