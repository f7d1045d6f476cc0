"""What Gaussian noise promises, in the terms of differential privacy.

Both by `dp-accounting`, Google's accountant, which works with the distribution of the privacy loss
(Sommer, Meiser and Mohammadi 2019; Koskela, Jälkö and Honkela 2020). Nothing is estimated here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

from dp_accounting import dp_event
from dp_accounting.pld import PLDAccountant

from fellrec.errors import ConfigError

_LEAST = 1e-3
_FINEST, _COARSE = 1e-4, 1e-5  # to what losses are rounded up: so much, or such a share of them


def epsilon(noise_multiplier: float, times: int, delta: float) -> float:
    """Return ε of a Gaussian mechanism that is used `times` times, at δ = `delta`.

    noise_multiplier: the noise's standard deviation over the largest change, in the L2 norm, that
    replacing what is protected makes. Infinite without noise, or with so little that ε passes half
    a million; 0 where nothing is released.

    Raises ConfigError for a negative number, or a delta that is not between 0 and 1.
    """
    if noise_multiplier < 0 or times < 0:
        raise ConfigError(f"noise {noise_multiplier} and {times} times: neither may be negative")
    if not 0 < delta < 1:
        raise ConfigError(f"delta = {delta}: take a probability between 0 and 1, such as 1e-5")
    if times == 0:
        return 0.0
    # Composing Gaussian mechanisms is one with the noise shrunk by the square root of their number.
    whole = noise_multiplier / math.sqrt(times)
    if whole < _LEAST:
        return math.inf
    # Losses are about 1 / (2 whole²): of little noise they are large, and rounded more coarsely.
    step = max(_FINEST, _COARSE / (2 * whole**2))
    accountant = PLDAccountant(value_discretization_interval=step)
    accountant.compose(dp_event.GaussianDpEvent(whole))
    return float(accountant.get_epsilon(delta))


def histories_epsilon(noise: float, width: int, positions: int, times: int, delta: float) -> float:
    """Return the local ε of one user's history behind a `Veil`, at δ = `delta`.

    What is protected is the whole history: any other of as many positions might stand in its place.
    Each position's activation, of at most the veil's length, may then turn into any other, which
    changes it by twice that length at most; `positions` of them change at once.

    noise, width: of the veil, see there. positions: of the history. times: how often it crosses,
    once for each epoch of training and for each time it is scored.
    """
    return epsilon(noise / (2 * math.sqrt(width)), positions * times, delta)


@dataclass(frozen=True)
class Budget:
    """What a client may tell of each of its users, in all rounds together.

    noise: see `user_level.UserLevel`. share: probability with which a user is drawn for a step.
    steps: of a round. delta: of differential privacy. epsilon: the most that may be spent.

    What is protected is one user with all of its history: adapters that were learned with this user
    or without are hard to tell apart (neighbours differ by adding or removing one). Rounds compose,
    and so do all that come from them, mixtures too.
    """

    noise: float
    share: float
    steps: int
    delta: float
    epsilon: float = math.inf

    def after(self, rounds: int) -> float:
        """Return ε of so many rounds' uploads."""
        return subsampled_epsilon(self.noise, self.share, self.steps * rounds, self.delta)

    def allows(self, rounds: int) -> bool:
        """Whether so many rounds are within the budget."""
        return self.after(rounds) <= self.epsilon


@cache
def subsampled_epsilon(noise: float, share: float, times: int, delta: float) -> float:
    """Return ε, at δ = `delta`, of so many sums of users who are drawn by chance.

    noise: its standard deviation over the most that one user adds (L2). share: probability with
    which each is drawn (Poisson sampling), 1 for all. Neighbours differ by adding or removing one
    user. Infinite without noise; 0 where nothing is released. Raises ConfigError as `epsilon` does,
    and for a share that is none.
    """
    if not 0 < share <= 1:
        raise ConfigError(f"share = {share}: take a probability above 0")
    if share == 1 or not noise or not times:
        return epsilon(noise, times, delta)
    accountant = PLDAccountant()
    gaussian = dp_event.GaussianDpEvent(noise)
    accountant.compose(dp_event.PoissonSampledDpEvent(share, gaussian), times)
    return float(accountant.get_epsilon(delta))
