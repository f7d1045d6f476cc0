"""ε by the accountant: the library's own values, closed forms, and how it composes."""

from __future__ import annotations

import math

import pytest
from dp_accounting import dp_event
from dp_accounting.pld import PLDAccountant, common, privacy_loss_distribution
from dp_accounting.rdp import RdpAccountant
from scipy.optimize import brentq
from scipy.stats import norm

from fellrec.errors import ConfigError
from fellrec.privacy.accounting import Budget, epsilon, histories_epsilon, subsampled_epsilon


def exact(multiplier: float, delta: float) -> float:
    """Solve for ε what Balle and Wang (2018, arXiv 1805.06530, theorem 8) prove of one Gaussian."""

    def over(value: float) -> float:
        near, far = 1 / (2 * multiplier), value * multiplier
        return float(norm.cdf(near - far) - math.exp(value) * norm.cdf(-near - far)) - delta

    return float(brentq(over, 0, 500))


@pytest.mark.parametrize("multiplier", [0.5, 1.0, 2.0, 8.0])
@pytest.mark.parametrize("times", [1, 8, 40])
def test_agrees_with_the_closed_form(multiplier: float, times: int) -> None:
    """The accountant rounds losses up, so it says no less but for the solver's last digits."""
    found, true = epsilon(multiplier, times, 1e-5), exact(multiplier / math.sqrt(times), 1e-5)
    assert true * (1 - 1e-9) <= found <= true * 1.001 + 1e-3


def test_agrees_with_the_librarys_other_ways() -> None:
    """Composed one by one, and by its own function for a Gaussian; Rényi's bound is looser."""
    one_by_one = PLDAccountant()
    one_by_one.compose(dp_event.GaussianDpEvent(1.5), 12)
    assert epsilon(1.5, 12, 1e-6) == pytest.approx(one_by_one.get_epsilon(1e-6), rel=1e-3)
    own = privacy_loss_distribution.from_gaussian_mechanism(
        1.5, value_discretization_interval=1e-4
    ).self_compose(12)
    assert epsilon(1.5, 12, 1e-6) == pytest.approx(own.get_epsilon_for_delta(1e-6), rel=1e-3)
    renyi = RdpAccountant()
    renyi.compose(dp_event.GaussianDpEvent(1.5), 12)
    assert epsilon(1.5, 12, 1e-6) < renyi.get_epsilon(1e-6)
    assert common.DifferentialPrivacyParameters(1.0, 1e-6).delta == 1e-6


def test_limits() -> None:
    assert epsilon(0, 1, 1e-5) == epsilon(1e-4, 1, 1e-5) == math.inf
    assert epsilon(0, 0, 1e-5) == epsilon(1, 0, 1e-5) == 0
    assert epsilon(1, 2, 1e-5) > epsilon(1, 1, 1e-5) > epsilon(2, 1, 1e-5)
    assert epsilon(1, 1, 1e-9) > epsilon(1, 1, 1e-5)


def test_a_history_counts_as_a_whole() -> None:
    """16 channels, noise as long as the bound: a quarter of it each, against a change of two."""
    assert histories_epsilon(1.0, 16, 1, 1, 1e-5) == epsilon(1 / 8, 1, 1e-5)
    assert histories_epsilon(1.0, 16, 10, 3, 1e-5) == epsilon(1 / 8, 30, 1e-5)


@pytest.mark.parametrize(
    ("noise", "times", "delta"), [(-1, 1, 1e-5), (1, -1, 1e-5), (1, 1, 0), (1, 1, 1)]
)
def test_what_makes_no_sense_is_refused(noise: float, times: int, delta: float) -> None:
    with pytest.raises(ConfigError):
        epsilon(noise, times, delta)


def test_users_drawn_by_chance_are_harder_to_tell() -> None:
    """All drawn is the plain mechanism; a few are, by every accountant, better hidden."""
    plain = subsampled_epsilon(4.0, 1.0, 10, 1e-5)
    assert plain == epsilon(4.0, 10, 1e-5)
    some = [subsampled_epsilon(4.0, share, 10, 1e-5) for share in (0.01, 0.1, 0.5)]
    assert some == sorted(some) and some[-1] < plain
    assert subsampled_epsilon(1.0, 0.1, 0, 1e-5) == 0
    assert subsampled_epsilon(0.0, 0.1, 5, 1e-5) == math.inf
    with pytest.raises(ConfigError, match="share"):
        subsampled_epsilon(1.0, 0.0, 5, 1e-5)


def test_agrees_with_the_librarys_values_of_private_training() -> None:
    """60 epochs of MNIST as in its authors' tutorial: Rényi's bound is 2.92, as they print; the
    distribution of losses, which the library composes by itself here, is below.
    """
    share, times = 256 / 60_000, 60 * 60_000 // 256
    renyi = RdpAccountant()
    event = dp_event.PoissonSampledDpEvent(share, dp_event.GaussianDpEvent(1.1))
    renyi.compose(event, times)
    bound = renyi.get_epsilon(1e-5)
    ours = subsampled_epsilon(1.1, share, times, 1e-5)
    own = privacy_loss_distribution.from_gaussian_mechanism(
        1.1, sampling_prob=share, value_discretization_interval=1e-4
    ).self_compose(times)
    assert ours == pytest.approx(own.get_epsilon_for_delta(1e-5), rel=1e-3)
    assert ours < bound == pytest.approx(2.92, abs=0.4)


def test_a_budget_is_spent_by_rounds() -> None:
    budget = Budget(4.0, 0.1, 12, 1e-5, epsilon=subsampled_epsilon(4.0, 0.1, 36, 1e-5))
    assert budget.after(2) == subsampled_epsilon(4.0, 0.1, 24, 1e-5)
    assert budget.allows(3) and not budget.allows(4)
    assert Budget(4.0, 0.1, 12, 1e-5).allows(1000)
