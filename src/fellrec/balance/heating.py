"""M2, curriculum heating: how much of the others a client takes in, by its loss and the round.

`L = softmax(loss / tau)` over the clients that completed the round; `w_c = tanh(alpha / L_c^e)`. A
client that struggles has a large share `L_c` and takes in others more slowly, learning its own data
first; as the exponent grows with the round, `w → 1` for all.

Two readings, because the paper and its code differ:

    kind         exponent e   tau by default   note
    "paper"      t / beta     1
    "reference"  t + 1/beta   0.05             beta = 1 switches heating off: w = 1
    "none"                                     w = 1 from the first round on: no heating
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fellrec.errors import ConfigError

HeatingKind = Literal["paper", "reference", "none"]

_DEFAULT_TAU = {"paper": 1.0, "reference": 0.05}
_HUGE = 1e300  # stands for infinity where infinity times zero would be NaN


def heating(
    losses: Tensor | NDArray[np.floating] | Sequence[float],
    t: int,
    *,
    alpha: float,
    beta: float,
    kind: HeatingKind = "paper",
    tau: float | None = None,
) -> Tensor:
    """Warmth of N clients (M2): (N,) float64 in [0, 1].

    `losses` (N,) are mean training losses, `t` counts completed rounds from 0. `alpha = 0` gives
    exactly 0 (local-only), whatever the kind. Works in logarithms: no overflow at any `t`, nor for
    any finite losses.

    Raises `ConfigError` when a loss is not finite, or an option is out of its range.
    """
    check_heating(alpha=alpha, beta=beta, kind=kind, tau=tau)
    if t < 0:
        raise ConfigError(f"round {t} is negative: rounds count from 0")
    loss = torch.as_tensor(losses, dtype=torch.float64)
    if loss.ndim != 1 or not len(loss):
        raise ConfigError(f"losses have shape {tuple(loss.shape)}: give one for each client")
    for client in (~torch.isfinite(loss)).nonzero().flatten().tolist():
        raise ConfigError(
            f"the loss of client {client} is {loss[client].item()}: leave it out of the round"
        )
    if alpha == 0:
        return torch.zeros_like(loss)
    if kind == "none" or (kind == "reference" and beta == 1):
        return torch.ones_like(loss)
    temperature = _DEFAULT_TAU[kind] if tau is None else tau
    # The largest is taken off before dividing, so that the quotient can't overflow upwards.
    share = torch.log_softmax((loss - loss.max()) / temperature, dim=0).clamp(min=-_HUGE)
    exponent = min(t / beta if kind == "paper" else t + 1 / beta, _HUGE)
    # An exponential that overflows is infinity, whose tanh is 1 as it should be.
    return torch.tanh(torch.exp(math.log(alpha) - exponent * share))


def check_heating(*, alpha: float, beta: float, kind: str, tau: float | None) -> None:
    """Raise `ConfigError` for options that M2 has no value for."""
    if kind not in get_args(HeatingKind):
        known = ", ".join(get_args(HeatingKind))
        raise ConfigError(f"unknown heating {kind!r}: choose one of {known}")
    if not (math.isfinite(alpha) and alpha >= 0):
        raise ConfigError(f"alpha is {alpha}: give a finite number of 0 or more")
    if not (math.isfinite(beta) and beta > 0):
        raise ConfigError(f"beta is {beta}: give a finite number above 0")
    if tau is not None and not (math.isfinite(tau) and tau > 0):
        raise ConfigError(f"tau is {tau}: give a finite number above 0")
