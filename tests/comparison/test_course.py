"""The course of training, from rounds that are written by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from fellrec.comparison.course import Course, course_of
from fellrec.comparison.plan import Planned
from fellrec.config import RunConfig
from tests.comparison.made import cell, line


def course(
    rounds: Sequence[Mapping[str, Any]],
    aim: float | None = None,
    whose: Sequence[int] = (0, 0, 0, 1),
) -> Course:
    """Return the course of a cell whose client c0 has three validation users, c1 one."""
    made = cell(Planned("x", (), RunConfig()), [0.5] * len(whose), list(whose), rounds=rounds)
    found = course_of([made], [aim])
    assert found is not None
    return found


def test_the_curve_is_a_mean_over_users() -> None:
    """Round 0: (3 · 0.1 + 0.5) / 4 = 0.2; round 1: c1 sat it out; round 2: c0 failed."""
    rounds = [
        line(0, "c0", 0.1, seconds=1.0, warmth=0.5, spread=[0.2, 0.3, 0.6]),
        line(0, "c1", 0.5, seconds=2.0, warmth=0.9, spread=[0.2, 0.3, 0.6]),
        line(1, "c0", 0.3, seconds=4.0, warmth=0.96, spread=[0.4, 0.4, 0.5]),
        {"round": 2, "client": "c0", "failed": "it diverged"},
        line(2, "c1", 0.9, seconds=8.0, warmth=0.99, spread=[1.0, 1.0, 1.0]),
    ]
    found = course(rounds, 0.35)
    assert found.curve[0] == pytest.approx((0.2, 0.35, 0.45))
    assert found.best == pytest.approx((0.45,))
    assert found.seconds == (15.0,)
    assert found.heated == (0.5,)
    assert found.spread[0] == pytest.approx((0.4, 0.1, 0.0))
    assert found.reached == ((2, 7.0),)
    assert course(rounds, 0.2).reached == ((1, 3.0),)
    assert course(rounds, 0.5).reached == (None,) == course(rounds).reached


def test_a_client_that_joins_late_has_no_score_before() -> None:
    found = course([line(0, "c1", 0.4), line(1, "c0", 0.8), line(1, "c1", 0.0)])
    assert found.curve[0] == pytest.approx((0.4, 0.6))


def test_a_client_without_validation_users_has_no_weight() -> None:
    rounds = [line(0, "c0", None), line(1, "c0", None), line(1, "c1", 0.4), line(2, "c1", 0.3)]
    # Client c0 has no user here at all: only c1 counts, from round 1 on.
    found = course(rounds, 0.4, (1, 1))
    assert math.isnan(found.curve[0][0]) and found.curve[0][1:] == (0.4, 0.3)
    assert found.best == (0.4,) and found.flat == (False,) and found.reached == ((2, 6.0),)


def test_a_round_in_which_everybody_failed_is_a_round() -> None:
    rounds = [line(0, "c0", 0.2), {"round": 1, "client": "c0", "failed": "it diverged"}]
    found = course(rounds)
    assert found.curve[0] == pytest.approx((0.2, 0.2)) and found.spread[0] == pytest.approx(
        (0.25, 0.0)
    )


def test_seconds_that_are_not_known() -> None:
    """A deployment does not tell everybody's: then no sum that follows is known."""
    rounds = [line(0, "c0", 0.1), line(1, "c0", 0.2, seconds=None), line(2, "c0", 0.3)]
    assert course(rounds, 0.1).reached == ((1, 2.0),)
    assert course(rounds, 0.3).reached == ((3, None),)
    assert course(rounds).seconds == (None,)


@pytest.mark.parametrize(
    ("curve", "flat"),
    [
        ([0.1, 0.2, 0.2, 0.202], True),  # 1 % above the best before
        ([0.1, 0.2, 0.2, 0.2021], False),
        ([0.1, 0.2, 0.2021, 0.1], False),  # the last round but one counts
        ([0.5, 0.2, 0.3, 0.4], True),  # rising, but not above what was
        ([0.1, 0.2], False),  # too short to tell
        ([0.1], False),
        ([0.0, 0.0, 0.0], True),
    ],
)
def test_flat_is_what_the_last_two_rounds_did_not_raise(curve: list[float], flat: bool) -> None:
    found = course([line(number, "c0", value) for number, value in enumerate(curve)])
    assert found.curve[0] == pytest.approx(tuple(curve)) and found.flat == (flat,)


def test_seeds_stay_apart() -> None:
    made = [
        cell(Planned("x", (), RunConfig()), [0.5], [0], rounds=[line(0, "c0", value)])
        for value in (0.1, 0.3)
    ]
    found = course_of(made, [0.2, 0.2])
    assert found is not None
    assert found.best == (0.1, 0.3) and found.reached == (None, (1, 2.0))


def test_what_has_no_rounds_has_no_course() -> None:
    planned = Planned("x", (), RunConfig())
    some = cell(planned, [0.5], [0], rounds=[line(0, "c0", 0.1)])
    none = cell(planned, [0.5], [0])
    unscored = cell(planned, [0.5], [0], rounds=[line(0, "c0", None)])
    failed = cell(planned, [0.5], [0], rounds=[{"round": 0, "client": "c0", "failed": "why"}])
    for cells in ([], [none], [some, none], [unscored], [failed]):
        assert course_of(cells, [None] * len(cells)) is None
