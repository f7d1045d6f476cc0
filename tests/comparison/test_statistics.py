"""Figures and intervals: against loops over the draws, in limiting cases, and how often right."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fellrec.comparison.statistics import (
    Draws,
    Estimate,
    Numbers,
    estimate,
    jain,
    judged_together,
    lowest,
    lowest_over,
    quotient,
    relative_gap,
    worst,
)
from fellrec.errors import DataError
from fellrec.evaluation.balance import balance
from fellrec.evaluation.bootstrap import Interval, mean_interval


def drawn(users: int, draws: int = 50, seed: int = 0) -> Draws:
    return Draws(users, np.random.default_rng(seed), draws)


def some(rng: np.random.Generator, users: int, share: float = 0.2) -> Numbers:
    """Return scores as rankings give them: most 0."""
    return np.where(rng.random(users) < share, rng.uniform(0.3, 1, users), 0.0)


def test_draws_are_of_as_many_users_and_the_first_is_everybody() -> None:
    counts = drawn(7).counts
    assert counts.shape == (51, 7) and (counts[0] == 1).all()
    assert (counts.sum(axis=1) == 7).all() and (counts >= 0).all()
    assert np.array_equal(counts, drawn(7).counts) and len({tuple(c) for c in counts}) > 40


def test_means_and_clients_against_a_loop() -> None:
    rng = np.random.default_rng(4)
    scores, whose = some(rng, 20, 0.5), rng.integers(-1, 4, 20)
    scores[[2, 11]] = np.nan
    draws = drawn(20)
    means, clients = draws.mean(scores), draws.clients(scores, whose, 4)
    for number, counts in enumerate(draws.counts.astype(int)):
        users = [u for u in np.repeat(np.arange(20), counts) if not np.isnan(scores[u])]
        assert means[number] == pytest.approx(np.mean(scores[users]))
        for client in range(4):
            own = [scores[u] for u in users if whose[u] == client]
            expected = np.mean(own) if own else np.nan
            assert clients[number, client] == pytest.approx(expected, nan_ok=True)


def test_figures_of_clients_against_the_ones_of_a_run() -> None:
    rng = np.random.default_rng(0)
    means = rng.random((30, 5)) * (rng.random((30, 5)) < 0.7)
    means[rng.random((30, 5)) < 0.2] = np.nan
    means[:, 0] = np.nan_to_num(means[:, 0])  # somebody has a score
    means[3] = 0
    for row, least, gap, even in zip(
        means, worst(means), relative_gap(means), jain(means), strict=True
    ):
        expected = balance(row)
        assert least == expected["min"]
        assert gap == pytest.approx(expected["relative_gap"])
        assert even == pytest.approx(expected["jain"])


def test_an_estimate_is_over_seeds_in_each_draw() -> None:
    rng = np.random.default_rng(2)
    seeds = [rng.normal(size=101) for _ in range(3)]
    found = estimate(seeds)
    means = [np.mean([seed[draw] for seed in seeds]) for draw in range(101)]
    assert found.interval.mean == pytest.approx(means[0])
    low, high = np.percentile(means[1:], [2.5, 97.5])
    assert (found.interval.low, found.interval.high) == pytest.approx((low, high))
    assert found.seeds == tuple(seed[0] for seed in seeds)


def test_draws_without_the_figure_are_left_out() -> None:
    values = np.array([1.0, np.nan, 2.0, 2.0, np.nan])
    assert estimate([values]).interval == (1, 2, 2)
    assert estimate([values, np.ones(5)]).interval == (1, 1.5, 1.5)
    for nothing in ([], [np.array([np.nan, 1.0])]):
        with pytest.raises(DataError, match="nothing to compare"):
            estimate(nothing)


def test_the_interval_is_that_of_the_results_page() -> None:
    """Another way to draw, the same distribution: ends agree within the noise of 4000 draws."""
    scores = some(np.random.default_rng(1), 300)
    ours = estimate([drawn(300, 4000).mean(scores)]).interval
    theirs = mean_interval(scores, np.random.default_rng(9), 4000)
    assert ours.mean == pytest.approx(theirs.mean)
    width = theirs.high - theirs.low
    assert ours.low == pytest.approx(theirs.low, abs=0.05 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.05 * width)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.integers(1, 3))
def test_identical_cells_differ_by_exactly_nothing(values: list[float], clients: int) -> None:
    scores, draws = np.array(values), drawn(len(values))
    whose = np.arange(len(values)) % clients
    difference = estimate([draws.mean(scores) - draws.mean(scores)] * 2)
    assert difference.interval == (0, 0, 0) and not difference.clear
    means = draws.clients(scores, whose, clients)
    least = lowest([means - means])
    assert least.interval == (0, 0, 0) and not least.clear
    over = lowest_over([(means, means)] * 2).interval
    assert over == (0, 0, 0) and not np.signbit(over).any()  # -0 would be shown as a loss


def test_one_user_has_an_interval_of_no_width() -> None:
    draws = drawn(1)
    assert estimate([draws.mean(np.array([0.5]))]).interval == (0.5, 0.5, 0.5)
    means = draws.clients(np.array([0.5]), np.array([0]), 1)
    assert lowest([means]).interval == (0.5, 0.5, 0.5)
    assert lowest_over([(means, means - 0.25)]).interval == (0.25, 0.25, 0.25)
    assert estimate([relative_gap(means)]).interval == (0, 0, 0)
    assert estimate([jain(means)]).interval == (1, 1, 1)


def test_all_zero_scores_are_even_and_have_no_quotient() -> None:
    draws, zeros = drawn(6), np.zeros(6)
    means = draws.clients(zeros, np.arange(6) % 2, 2)
    assert estimate([relative_gap(means)]).interval == (0, 0, 0)
    assert estimate([jain(means)]).interval == (1, 1, 1)
    assert lowest([means]).interval == (0, 0, 0)
    assert np.isnan(quotient(draws.mean(zeros), draws.mean(zeros))).all()


def test_users_without_a_score_count_for_nobody() -> None:
    """A draw in which none of the few scored users is has no mean: it is not 0."""
    scores = np.full(40, np.nan)
    scores[5] = 0.25
    draws = drawn(40)
    assert estimate([draws.mean(scores)]).interval == (0.25, 0.25, 0.25)
    with pytest.raises(DataError, match="no user has a score"):
        draws.mean(np.full(40, np.nan))
    means = draws.clients(scores, np.zeros(40, dtype=int), 3)
    assert means[0, 0] == 0.25 and np.isnan(means[:, 1:]).all()
    assert lowest([means]).interval == (0.25, 0.25, 0.25)


def test_nothing_to_draw_is_refused() -> None:
    for users, draws in ((0, 5), (5, 0)):
        with pytest.raises(DataError, match="give at least one of each"):
            Draws(users, np.random.default_rng(0), draws)
    for seeds in ([], [np.full((3, 2), np.nan)]):
        with pytest.raises(DataError, match="no client has this figure"):
            lowest(seeds)
    half = np.array([[0.5, np.nan]] * 3)
    for pairs in ([], [(half, half), (half, half[:, ::-1])]):
        with pytest.raises(DataError, match="no client has this figure"):
            lowest_over(pairs)


@pytest.mark.parametrize(
    ("low", "high", "seeds", "clear"),
    [
        (0.1, 0.2, (0.1, 0.3), True),
        (-0.2, -0.1, (-0.1, -0.3), True),
        (0.1, 0.2, (0.3, -0.01), False),  # one seed says otherwise
        (0.1, 0.2, (0.3, 0.0), False),
        (-0.1, 0.2, (0.1, 0.3), False),
        (0.0, 0.2, (0.1, 0.3), False),
        (0.0, 0.0, (0.0, 0.0), False),
    ],
)
def test_clear_needs_the_interval_and_every_seed(
    low: float, high: float, seeds: tuple[float, ...], clear: bool
) -> None:
    assert Estimate(Interval((low + high) / 2, low, high), seeds).clear is clear


def test_differences_are_paired_by_user_across_seeds() -> None:
    """Easy users make all seeds better at once; a gain of each user by 0.01 is exact."""
    rng = np.random.default_rng(3)
    easy = some(rng, 60, 0.5)
    draws = drawn(60, 500)
    one, other = (draws.mean(easy + gain) for gain in (0.01, 0.0))
    paired = estimate([one - other] * 2).interval
    assert paired == pytest.approx((0.01, 0.01, 0.01))
    level = estimate([draws.mean(easy)] * 2).interval
    alone = estimate([draws.mean(easy)]).interval
    # The same users in both seeds: a second seed says nothing of other users.
    assert level == pytest.approx(alone)


def test_the_lowest_by_hand() -> None:
    """Two clients, four draws; standard errors √(0.02 / 4) and √(0.08 / 4)."""
    means = np.array([[0.4, 0.6], [0.5, 0.6], [0.3, 0.8], [0.4, 0.6], [0.4, 0.4]])
    first, second = np.sqrt(0.02 / 4), np.sqrt(0.08 / 4)
    # How far off at most over clients, in standard errors: all √2 but in draw 3.
    times = np.percentile([0.1 / first, 0.2 / second, 0, 0.2 / second], 95)
    assert times == pytest.approx(np.sqrt(2))
    low = min(np.percentile([0.5, 0.3, 0.4, 0.4], 2.5), np.percentile([0.6, 0.8, 0.6, 0.4], 2.5))
    # 0.4 + √2 · 0.0707 = 0.5 is below 0.6 + √2 · 0.1414 = 0.8.
    found = lowest([means])
    assert found.interval == pytest.approx((0.4, low, 0.5)) and found.seeds == (0.4,)
    # Seeds with clients of their own: the ends are averaged.
    both = lowest([means, means + 0.2])
    assert both.interval == pytest.approx((0.5, low + 0.1, 0.6))
    assert both.seeds == pytest.approx((0.4, 0.6))


def off_by(reach: float, turn: int) -> Numbers:
    """Return a column of 100 draws, two of them reach above and two below the value: (101,).

    Every percentile up to 1 and from 99 is reach away. So is an end of t standard errors, which are
    reach / 5: the largest deviation is 5 of them. turn: clients of unlike turns are off in unlike
    draws, so that the standard error of a difference is the root of the sum of squares.
    """
    column = np.zeros(101)
    column[1 + 4 * turn : 5 + 4 * turn] = reach, reach, -reach, -reach
    return column


TWO = np.stack([0.4 + off_by(0.1, 0), 0.6 + off_by(0.2, 1)], axis=1)
SURE = np.broadcast_to([0.3, 0.7], TWO.shape)


def test_a_difference_of_lowest_by_hand() -> None:
    """The other row is known for sure, so a client's difference is as sure as its mean."""
    # The second client is ahead of the first by 0.2, 2.576 · √(0.02² + 0.04²) = 0.115 for sure: the
    # first is lowest. Its mean is at least 0.3, 0.0 above what the other row gives it.
    # In the other row it is lowest for sure: 0.1 + 0.1.
    found = lowest_over([(TWO, SURE)])
    assert found.interval == pytest.approx((0.1, 0.0, 0.2))
    assert found.seeds == pytest.approx((0.1,)) and found.draws is None and found.holds
    # Backwards it is the same with the sign turned.
    assert lowest_over([(SURE, TWO)]).interval == pytest.approx((-0.1, -0.2, 0.0))
    # The second at 0.5 may be lowest: at least 0.3, but what it loses to 0.7 is no part of it, as
    # the other row's lowest is 0.3.
    level = TWO - np.array([0, 0.1])
    assert lowest_over([(level, SURE)]).interval == pytest.approx((0.1, 0.0, 0.2))
    # A little less, and the lower end is its own: 0.45 - 0.2 - 0.3.
    behind = TWO - np.array([0, 0.15])
    assert lowest_over([(behind, SURE)]).interval == pytest.approx((0.1, -0.05, 0.2))
    # Each client has the highest of its own: the first -0.5 - 0.1 and, less the other's second,
    # 0.05 - 0.2; the second, which gains 0.1 for sure, 0.1.
    other = np.stack([np.full(101, 0.9), behind[:, 1] - 0.1], axis=1)
    assert lowest_over([(behind, other)]).interval == pytest.approx((0.05, -0.15, 0.1))
    # Over seeds the ends are averaged.
    both = lowest_over([(TWO, SURE), (behind + 0.2, SURE)])
    assert both.interval == pytest.approx((0.2, 0.075, 0.3))
    assert both.seeds == pytest.approx((0.1, 0.3))


def test_a_difference_of_lowest_is_paired_by_user() -> None:
    """Each client gains 0.05 in every draw: unpaired the ends would be 0.2 and more away."""
    level = TWO - np.array([0, 0.15])
    assert lowest_over([(level + 0.05, level)]).interval == pytest.approx((0.05, 0.05, 0.05))
    # The lowest gains 0.05, the second loses 0.1 and is still above: only the first may be lowest.
    turned = TWO + np.array([0.05, -0.05])
    over = lowest_over([(turned + np.array([0, 0.2]), TWO + np.array([0, 0.4]))]).interval
    assert over == pytest.approx((0.05, 0.05, 0.05))


@pytest.mark.parametrize(("ahead", "counts"), [(2.80, True), (2.82, False)])
def test_clients_that_are_surely_above_another_are_not_the_lowest(
    ahead: float, counts: bool
) -> None:
    """Of three clients two share the chance of a mistake: the normal quantile of 99.75 %, 2.807."""
    second = 0.4 + ahead * np.hypot(0.1 / 5, 0.5 / 5)  # in standard errors above the first
    offs = off_by(0.1, 0), off_by(0.5, 1), off_by(0.1, 2)
    row = np.array([0.4, second, 5.0]) + np.stack(offs, axis=1)
    sure = np.broadcast_to([0.3, 0.0, 0.3], row.shape)  # lowest is the second, at 0
    low = second - 0.5 if counts else 0.4 - 0.1
    assert lowest_over([(row, sure)]).interval.low == pytest.approx(low)
    # An end is of what is lowest in the row that it is of: backwards the second is, for sure.
    assert lowest_over([(sure, row)]).interval == pytest.approx((-0.4, -0.5, -low))


def test_a_difference_of_lowest_is_of_clients_that_both_rows_have() -> None:
    """Also where a client that one row lacks would be the lowest of the other."""
    nobody, low = np.full((101, 1), np.nan), np.full((101, 1), 0.01)
    expected = lowest_over([(TWO, SURE)])
    for one, other in ((nobody, nobody), (low, nobody), (nobody, low)):
        pair = np.hstack([one, TWO]), np.hstack([other, SURE])
        assert lowest_over([pair]) == expected
    # A draw in which nobody is of the second client says nothing of it.
    lacks = np.vstack([TWO, [0.4, np.nan]])
    assert not np.isnan(lowest_over([(lacks, lacks[:, ::-1])]).interval).any()


def test_a_difference_of_one_client_has_the_ends_of_its_own() -> None:
    rng = np.random.default_rng(12)
    draws, base = drawn(60, 400), some(rng, 60, 0.5)
    changed = np.where(rng.random(60) < 0.2, some(rng, 60, 0.5), base)
    one, other = (draws.mean(scores)[:, None] for scores in (changed, base))
    gain = (one - other)[:, 0]
    expected = (gain[0], *np.percentile(gain[1:], [1, 99]))
    assert lowest_over([(one, other)]).interval == pytest.approx(expected)


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 3))
def test_a_difference_of_lowest_lies_within_its_ends(seed: int, clients: int, seeds: int) -> None:
    """And turns its sign with the rows."""
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(seeds):
        one, other = rng.normal(rng.normal(size=(2, 1, clients)), 0.5, size=(2, 21, clients))
        one[:, 1:][:, rng.random(clients - 1) < 0.2] = np.nan
        pairs.append((one, other))
    mean, low, high = lowest_over(pairs).interval
    assert low <= mean <= high
    turned = lowest_over([(other, one) for one, other in pairs]).interval
    assert turned == pytest.approx((-mean, -high, -low))


def five_clients(
    rng: np.random.Generator, tries: int
) -> tuple[Draws, list[Numbers], list[Numbers]]:
    """Return draws, and the clients' means of unlike models that are equally good to everybody."""
    whose = np.repeat(np.arange(5), [120, 90, 80, 60, 50])
    draws = Draws(400, rng, 400)
    one, other = [], []
    for _ in range(tries):
        base = some(rng, 400)
        changed = np.where(rng.random(400) < 0.3, some(rng, 400), base)
        one.append(draws.clients(changed, whose, 5))
        other.append(draws.clients(base, whose, 5))
    return draws, one, other


def test_intervals_hold_about_as_often_as_they_say() -> None:
    """Users are drawn from a population that is known: 19 of 20 intervals should have its mean."""
    rng = np.random.default_rng(11)
    draws, true = Draws(400, rng, 400), 0.2 * 0.65
    held = 0
    for _ in range(200):
        interval = estimate([draws.mean(some(rng, 400))]).interval
        held += interval.low <= true <= interval.high
    assert 180 <= held <= 198  # 190 ± 2.6 standard errors


def test_the_least_gain_is_not_clear_where_nobody_gains() -> None:
    """The percentiles of the lowest client's draws would call two in three of these a loss."""
    _, one, other = five_clients(np.random.default_rng(5), 100)
    gains = [changed - base for changed, base in zip(one, other, strict=True)]
    assert sum(lowest([gain]).clear for gain in gains) <= 10
    assert sum(estimate([worst(gain)]).clear for gain in gains) >= 40
    held = [lowest([means]).interval for means in one]
    assert sum(each.low <= 0.2 * 0.65 <= each.high for each in held) >= 88


@pytest.mark.parametrize("low", [0, 4])
def test_equal_worst_clients_are_seldom_told_apart(low: int) -> None:
    """One row serves all alike, the other all but one better: the worst are equally good.

    The percentiles of the draws would call the even row's the worse in more than one of ten.
    """
    rng = np.random.default_rng(13)
    whose = np.repeat(np.arange(5), [120, 90, 80, 60, 50])
    draws, better = Draws(400, rng, 200), np.where(whose == low, 0.2, 0.4)
    alarms = by_percentiles = 0
    for _ in range(200):
        luck, value = rng.random(400), rng.uniform(0.3, 1, 400)
        other_luck = np.where(rng.random(400) < 0.5, rng.random(400), luck)  # paired in part
        even = draws.clients(np.where(luck < 0.2, value, 0.0), whose, 5)
        uneven = draws.clients(np.where(other_luck < better, value, 0.0), whose, 5)
        alarms += lowest_over([(even, uneven)]).interval.clear
        by_percentiles += estimate([worst(even) - worst(uneven)]).interval.clear
    assert by_percentiles > 20 and alarms <= 10


def test_worst_clients_are_told_apart_where_they_should_be() -> None:
    """All gain by 0.1, in means of 0.13: that shows in either order, and seldom missed."""
    _, one, other = five_clients(np.random.default_rng(14), 40)
    up = [lowest_over([(a + 0.1, b)]).interval.low > 0 for a, b in zip(one, other, strict=True)]
    down = [lowest_over([(b, a + 0.1)]).interval.high < 0 for a, b in zip(one, other, strict=True)]
    assert up == down and sum(up) >= 20


@pytest.mark.parametrize("spoilt", [0, 4])
def test_a_single_client_that_a_row_fails_is_seen(spoilt: int) -> None:
    """Though in the other row any client may be the lowest, and nobody else loses."""
    _, one, other = five_clients(np.random.default_rng(15), 40)
    seen = 0
    for changed, base in zip(one, other, strict=True):
        failed = changed + 0.2
        failed[:, spoilt] = changed[:, spoilt] * 0.1
        seen += lowest_over([(failed, base + 0.2)]).interval.high < 0
    assert seen >= 36


def twenty(rng: np.random.Generator, gain: float = 0.0) -> list[Estimate]:
    """Return differences of twenty models from one; all are equally good but the fourth."""
    draws, base = Draws(300, rng, 400), some(rng, 300)
    changed = [np.where(rng.random(300) < 0.3, some(rng, 300), base) for _ in range(20)]
    changed[3] = changed[3] + gain
    return [estimate([draws.mean(scores) - draws.mean(base)]) for scores in changed]


def test_of_twenty_that_are_none_seldom_one_is_called_a_difference() -> None:
    rng = np.random.default_rng(8)
    families = [twenty(rng) for _ in range(100)]
    judged = [judged_together(each) for each in families]
    assert sum(any(value.clear for value in each) for each in families) >= 40
    assert sum(any(value.clear for value in each) for each in judged) <= 11  # 5 ± 2.2


def test_a_true_difference_is_found_among_twenty() -> None:
    rng = np.random.default_rng(9)
    judged = [judged_together(twenty(rng, 0.06)) for _ in range(20)]
    assert sum(each[3].clear for each in judged) >= 17


def test_judging_together_against_its_definition() -> None:
    """Step down by hand: who is surest is held against all, the next against the rest."""
    rng = np.random.default_rng(10)
    for gain in (0.0, 0.03, 0.06):
        family = twenty(rng, gain)
        draws = [value.draws for value in family if value.draws is not None]
        errors = [np.sqrt(np.mean((each[1:] - each[0]) ** 2)) for each in draws]
        sizes = [abs(each[0]) / error for each, error in zip(draws, errors, strict=True)]
        left, holds = set(range(20)), dict.fromkeys(range(20), False)
        while left:
            surest = max(left, key=lambda at: sizes[at])
            beaten = 0
            for draw in range(1, 401):
                off = max(abs(draws[at][draw] - draws[at][0]) / errors[at] for at in left)
                beaten += off >= sizes[surest]
            if beaten / 400 >= 0.05:
                break
            holds[surest] = True
            left.remove(surest)
        assert [value.holds for value in judged_together(family)] == list(holds.values())


def test_limits_of_judging_together() -> None:
    assert judged_together([]) == []
    told = Estimate(Interval(0.1, 0.05, 0.2), (0.1,))  # no draws: left alone
    same = estimate([np.zeros(11)])
    sure = estimate([np.full(11, 0.01)])
    judged = judged_together([told, same, sure])
    assert judged[0] is told
    assert not judged[1].holds and judged[2].clear
    assert [value.interval for value in judged] == [told.interval, same.interval, sure.interval]


def test_the_least_gain_is_clear_where_it_should_be() -> None:
    """One client loses most of what it had, or all gain by 0.25: that shows."""
    _, one, other = five_clients(np.random.default_rng(6), 30)
    for changed, base in zip(one, other, strict=True):
        spoilt = changed.copy()
        spoilt[:, 0] *= 0.1
        assert lowest([spoilt - base]).interval.high < 0
        assert lowest([changed + 0.25 - base]).interval.low > 0
