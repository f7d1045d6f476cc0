"""Intervals over users: by hand, at their limits, against the normal approximation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fellrec.errors import DataError
from fellrec.evaluation import Interval, mean_interval, paired_bootstrap


def test_interval_by_hand() -> None:
    # Ten users, five with a hit: the mean of ten draws is Binomial(10, 1/2) / 10. Of 1024 outcomes
    # 11 have at most one hit (1.07 %) and 56 at most two (5.47 %), so the 2.5 percentile is 0.2 and
    # by symmetry the 97.5 percentile 0.8.
    scores = [1.0, 0.0] * 5
    assert mean_interval(scores, np.random.default_rng(0), 20_000) == (0.5, 0.2, 0.8)
    # A gain of 1 for five users and of 0 for the others is the same.
    found = paired_bootstrap(np.add(scores, 0.25), [0.25] * 10, np.random.default_rng(0), 20_000)
    assert found == pytest.approx((0.5, 0.2, 0.8))


def test_one_user_has_no_spread() -> None:
    assert mean_interval([0.3], np.random.default_rng(0)) == (0.3, 0.3, 0.3)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
@settings(max_examples=30)
def test_equal_methods_differ_by_nothing(scores: list[float]) -> None:
    found = paired_bootstrap(scores, scores, np.random.default_rng(0), 50)
    assert found == (0, 0, 0) and not found.clear


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.floats(-1, 1))
@settings(max_examples=30)
def test_a_constant_shift_leaves_no_doubt(scores: list[float], shift: float) -> None:
    """However users vary: the comparison is paired."""
    found = paired_bootstrap(np.add(scores, shift), scores, np.random.default_rng(0), 50)
    assert found == pytest.approx((shift, shift, shift), abs=1e-12)


@given(st.integers(0, 2**32 - 1), st.integers(400, 2000), st.floats(-1, 1), st.floats(0.1, 3))
@settings(max_examples=15)
def test_it_is_near_the_normal_interval(seed: int, users: int, mean: float, spread: float) -> None:
    """Mean ± 1.96 standard errors, for many users and no heavy tails.

    A percentile of 2000 draws has itself an error of about 0.06 standard errors; 0.3 is five.
    """
    rng = np.random.default_rng(seed)
    gains = rng.normal(mean, spread, users)
    other = rng.random(users)
    found = paired_bootstrap(gains + other, other, rng)
    error = gains.std() / math.sqrt(users)
    assert found.mean == pytest.approx(gains.mean())
    assert found.low == pytest.approx(found.mean - 1.96 * error, abs=0.3 * error)
    assert found.high == pytest.approx(found.mean + 1.96 * error, abs=0.3 * error)


def test_it_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(300):
        gains = rng.normal(0.2, 1, 80)
        _, low, high = paired_bootstrap(gains, np.zeros(80), rng, 400)
        inside += low <= 0.2 <= high
    assert inside / 300 == pytest.approx(0.95, abs=0.04)  # 3 standard errors


def test_users_scored_by_one_alone_are_left_out() -> None:
    found = paired_bootstrap(
        [1.0, math.nan, 0.0, 1.0], [0.0, 1.0, math.nan, 0.0], np.random.default_rng(0)
    )
    assert found == (1.0, 1.0, 1.0)
    assert mean_interval([math.nan, 0.5], np.random.default_rng(0)) == (0.5, 0.5, 0.5)


def test_drawing_in_pieces_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, other = np.random.default_rng(0).random((2, 100))
    whole = paired_bootstrap(scores, other, np.random.default_rng(2), 50)
    monkeypatch.setattr("fellrec.evaluation.bootstrap._WORKING_ELEMENTS", 700)
    assert paired_bootstrap(scores, other, np.random.default_rng(2), 50) == pytest.approx(whole)


@pytest.mark.parametrize(
    ("interval", "clear"),
    [((0.2, 0.1, 0.3), True), ((-0.2, -0.3, -0.1), True), ((0.1, 0.0, 0.2), False)],
)
def test_clear_of_zero(interval: tuple[float, float, float], clear: bool) -> None:
    assert Interval(*interval).clear is clear


def test_refusals() -> None:
    rng = np.random.default_rng(0)
    cases: list[tuple[object, object, str]] = [
        ([1.0], [1.0, 2.0], "do not pair"),
        ([[1.0, 2.0]], [[1.0, 2.0]], "do not pair"),
        (1.0, 1.0, "do not pair"),
        ([math.nan, 1.0], [1.0, math.nan], "no user"),
        ([], [], "no user"),
        ([math.inf], [math.inf], "infinite"),
    ]
    for a, b, said in cases:
        with pytest.raises(DataError, match=said) as error:
            paired_bootstrap(a, b, rng)  # type: ignore[arg-type]  # what a type does not say
        assert "\n" not in str(error.value)
    for scores, said in (([[0.5]], "shape"), ([math.inf], "infinite"), ([math.nan], "no user")):
        with pytest.raises(DataError, match=said):
            mean_interval(scores, rng)
    with pytest.raises(DataError, match="draws is 0"):
        paired_bootstrap([1.0], [1.0], rng, 0)
