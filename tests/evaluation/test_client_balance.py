"""Balance, and its sampling floor."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fellrec.errors import DataError
from fellrec.evaluation import balance, sampling_gap


def test_balance_by_hand() -> None:
    # 1, 2, 3, 4: mean 2.5, variance 1.25, Jain 10^2 / (4 * 30) = 0.8333, gap 3/4, worst 1 of 4.
    found = balance([2.0, 4.0, 1.0, 3.0])
    assert found == pytest.approx(
        {
            "mean": 2.5,
            "std": math.sqrt(1.25),
            "cv": math.sqrt(1.25) / 2.5,
            "min": 1.0,
            "max": 4.0,
            "relative_gap": 0.75,
            "jain": 100 / 120,
            "worst_k": 1,
            "worst_mean": 1.0,
        }
    )


def test_worst_fifth() -> None:
    found = balance(np.arange(10.0)[::-1])
    assert (found["worst_k"], found["worst_mean"]) == (2, 0.5)


def test_all_zero_is_equal() -> None:
    found = balance([0.0, 0.0, 0.0])
    assert (found["cv"], found["relative_gap"], found["jain"]) == (0.0, 0.0, 1.0)


def test_clients_without_a_score_are_left_out() -> None:
    assert balance([0.1, math.nan, 0.3]) == balance([0.1, 0.3])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_balance_stays_in_range(scores: list[float]) -> None:
    found = balance(scores)
    assert all(math.isfinite(value) for value in found.values())
    assert 0 <= found["relative_gap"] <= 1
    assert 1 / len(scores) - 1e-9 <= found["jain"] <= 1 + 1e-9
    assert found["min"] <= found["worst_mean"] * (1 + 1e-9)
    assert found["cv"] ** 2 == pytest.approx(1 / found["jain"] - 1, abs=1e-9)  # an identity


@pytest.mark.parametrize("scores", [[], [math.nan], [-0.1, 1.0], [math.inf], [[1.0]]])
def test_balance_refusals(scores: list[float]) -> None:
    with pytest.raises(DataError):
        balance(scores)


def ndcg_like(rng: np.random.Generator, users: int) -> np.ndarray:
    """NDCG@10 of one target each: 16 % of users have a hit, at any of ten positions."""
    hit = rng.random(users) < 0.16
    return np.where(hit, 1 / np.log2(rng.integers(1, 11, users) + 1), 0.0)


def test_sampling_gap_of_five_equal_clients() -> None:
    # One score has mean 0.16 * E[g] = 0.073, E[g] = 0.4544, E[g^2] = 0.2540 (over the positions),
    # sd = sqrt(0.16 * 0.2540 - 0.073^2) = 0.188; of a mean of 189 users: 0.0137. Five normal draws
    # range over 2.326 sd and their largest is 1.163 sd above the mean:
    # 2.326 * 0.0137 / (0.073 + 1.163 * 0.0137) = 0.36.
    rng = np.random.default_rng(0)
    scores = ndcg_like(rng, 5 * 189)
    mean, error = scores.mean(), scores.std() / math.sqrt(189)
    expected = 2.326 * error / (mean + 1.163 * error)
    found = sampling_gap(np.split(scores, 5), rng)
    assert found == pytest.approx(expected, abs=0.02)
    assert found == pytest.approx(0.36, abs=0.04)


def test_sampling_gap_does_not_see_real_differences() -> None:
    # Sorted into bad and good clients or dealt evenly: the same users, the same floor.
    scores = np.sort(ndcg_like(np.random.default_rng(0), 500))
    sorted_gap = sampling_gap(np.split(scores, 5), np.random.default_rng(1), 2000)
    dealt = [scores[c::5] for c in range(5)]
    assert sorted_gap == pytest.approx(
        sampling_gap(dealt, np.random.default_rng(2), 2000), abs=0.02
    )


def test_sampling_gap_limits() -> None:
    rng = np.random.default_rng(0)
    assert sampling_gap([np.full(5, 0.3), np.full(9, 0.3)], rng) == pytest.approx(0)
    assert sampling_gap([np.zeros(5), np.zeros(2)], rng) == 0
    assert sampling_gap([np.ones(5), np.full(3, math.nan), []], rng) == 0
    assert sampling_gap([], rng) == 0
    # One user each, scores 1 and 0: whoever gets which, the gap is 1.
    assert sampling_gap([[1.0], [0.0]], rng) == 1
    # Sizes 1 and 2 of scores 1, 0, 0: the gap is always 1 (one client has a zero mean).
    assert sampling_gap([[1.0], [0.0, 0.0]], rng) == 1
    # Sizes 1 and 2 of scores 1, 1, 0. Alone: 0 (p 1/3, gap 1) or 1 (p 2/3, 1 against 1/2, gap 1/2).
    assert sampling_gap([[1.0], [1.0, 0.0]], rng, 20_000) == pytest.approx(2 / 3, abs=0.01)
    with pytest.raises(DataError, match="draws is 0"):
        sampling_gap([[1.0], [0.0]], rng, 0)


def test_drawing_in_pieces_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = np.split(ndcg_like(np.random.default_rng(0), 100), 4)
    whole = sampling_gap(scores, np.random.default_rng(2), 50)
    monkeypatch.setattr("fellrec.evaluation.bootstrap._WORKING_ELEMENTS", 700)
    assert sampling_gap(scores, np.random.default_rng(2), 50) == pytest.approx(whole)
