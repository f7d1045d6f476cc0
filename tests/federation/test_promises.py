"""What a summary states of differential privacy: by other ways, and in words."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from fellrec.federation.promises import promises
from fellrec.federation.runs import train
from fellrec.privacy.accounting import histories_epsilon
from fellrec.report.promised import sentences
from tests.toys import WIDTH, Toys

LINES = [{"round": t, "client": c, "epsilon": 1.5 * (t + 1)} for t in range(3) for c in ("a", "b")]


def test_nothing_is_promised_where_nothing_was_asked_for(toys: Toys) -> None:
    assert promises(toys.recipe(), LINES, WIDTH) == {} and sentences({}) == []
    assert promises(toys.recipe({"privacy.noise": 1.0}), LINES, 0) == {}  # nothing crosses


@pytest.mark.parametrize(("before", "scores"), [(True, 2), (False, 1)])
def test_every_crossing_of_a_history_counts(toys: Toys, before: bool, scores: int) -> None:
    """Three rounds of two epochs of two windows, a score or two each, and the test."""
    config = toys.recipe(
        {
            "privacy.noise": 2.0,
            "train.local_epochs": 2,
            "train.windows": 2,
            "evaluation.before_mixing": before,
        }
    )
    told = promises(config, LINES, WIDTH)["activations"]
    assert told["crossings"] == 3 * (2 * 2 + scores) + 1
    assert told["positions"] == config.model.history
    expected = histories_epsilon(2.0, WIDTH, config.model.history, told["crossings"], 1e-5)
    assert told["epsilon"] == expected


def test_all_few_shot_examples_may_be_of_one_user(toys: Toys) -> None:
    config = toys.recipe({"privacy.noise": 2.0, "train.local_epochs": 2, "train.samples": 7})
    told = promises(config, LINES, WIDTH)["activations"]
    assert told["crossings"] == 3 * (2 * 7 + 2) + 1


def test_no_bound_holds_for_what_is_written(toys: Toys) -> None:
    """Each token of each beam crosses, with what the history made of it."""
    own: dict[str, object] = {"model.recommender": "bigrec", "model.base": str(toys.lm)}
    for decode, bounded in (("retrieve", True), ("trie", False), ("ground", False)):
        config = toys.recipe({**own, "privacy.noise": 200.0, "bigrec.decode": decode})
        told = promises(config, LINES, WIDTH)["activations"]
        assert math.isfinite(told["epsilon"]) == bounded
        assert ("is written" in told["not_covered"]) == (not bounded)


def test_what_a_client_sent_before_it_failed_was_told(toys: Toys) -> None:
    config = toys.recipe({"privacy.user_noise": 1.0})
    failed = {"round": 3, "client": "a", "failed": "refused", "epsilon": 6.0}
    lost = {"round": 3, "client": "b", "failed": "its trunk was lost"}
    told = promises(config, [*LINES, failed, lost], WIDTH)["uploads"]
    assert told["epsilon"] == {"a": 6.0, "b": 4.5}


def test_one_client_without_a_bound_leaves_none(toys: Toys) -> None:
    config = toys.recipe({"privacy.user_noise": 1.0})
    endless = {"round": 3, "client": "a", "epsilon": None}
    told = promises(config, [*LINES, endless], WIDTH)["uploads"]
    assert told["epsilon"] == {"a": math.inf, "b": 4.5}
    (sentence,) = sentences({"uploads": {**told, "epsilon": {"a": None, "b": 4.5}}})
    assert "at most ε = ∞" in sentence


@pytest.mark.parametrize(("noise", "delta", "expected"), [(0.3, 1e-15, None), (100.0, 0.5, 0.0)])
def test_a_run_ends_whatever_epsilon_is(
    toys: Toys, tmp_path: Path, noise: float, delta: float, expected: float | None
) -> None:
    own: dict[str, object] = {"privacy.user_noise": noise, "privacy.delta": delta}
    summary = train(toys.recipe({**own, "train.rounds": 1}), tmp_path / "run").summary
    assert set(summary["privacy"]["uploads"]["epsilon"].values()) == {expected}


def test_a_clients_last_upload_says_what_all_of_them_told(toys: Toys) -> None:
    config = toys.recipe({"privacy.user_noise": 1.0, "privacy.epsilon": 5.0, "privacy.delta": 1e-6})
    told = promises(config, LINES, WIDTH)["uploads"]
    assert told["epsilon"] == {"a": 4.5, "b": 4.5}
    assert (told["noise"], told["clip"], told["delta"], told["budget"]) == (1.0, 1.0, 1e-6, 5.0)
    (sentence,) = sentences({"uploads": told})
    assert "at most ε = 4.50 of 5 at δ = 1e-06" in sentence


def test_an_epsilon_past_all_meaning_is_infinite() -> None:
    own = {"noise": 0.1, "positions": 8, "crossings": 3, "delta": 1e-5, "epsilon": None}
    assert "ε = ∞" in sentences({"activations": own})[0]
    assert "ε = 12,346" in sentences({"activations": {**own, "epsilon": 12345.6}})[0]
