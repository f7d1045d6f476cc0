"""What a summary states of differential privacy: by other ways, and in words."""

from __future__ import annotations

import pytest

from fellrec.federation.promises import promises
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
