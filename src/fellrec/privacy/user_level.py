"""User-level differential privacy of what a client exchanges: clipped, summed, blurred gradients.

DP-SGD (Abadi et al. 2016, arXiv 1607.00133) with a user as its record. For each step every user is
drawn with the same small probability, each by itself; what a drawn user's one window asks for is
scaled down to a length, all are added, and Gaussian noise is added to the sum. What is learned from
that, adapters and dense tensors, private ones too, may be sent to anybody: `accounting.Budget` says
what it tells of one user at most.

Two things are asked of the rest. Draws and noise come from a stream that nobody else has. And
the trunk rests: its adapter would learn on the server, from activations and without noise, and the
client's gradients would carry that. What crosses the cut is not covered: the trunk server computes
on it, whatever is done to adapters; see `veil`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fellrec.privacy.draws import Draws


@dataclass(frozen=True)
class UserLevel:
    """noise: standard deviation of the noise on the sum, over `clip`. clip: longest that a user's
    gradient may be (L2 norm over all that is trained).
    """

    noise: float
    clip: float


def drawn(count: int, share: float, draws: Draws) -> npt.NDArray[np.int64]:
    """Draw each of `count` users with probability `share`: their numbers, sorted; maybe none."""
    return np.flatnonzero((draws.uniform((count,)) < share).numpy())


class PrivateSum:
    """Adds up users' gradients.

    parameters: what is trained. Their `grad` is read, and forgotten, with every user.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], settings: UserLevel) -> None:
        self._parameters = [each for each in parameters if each.requires_grad]
        self._settings = settings
        self._sums = [torch.zeros_like(each) for each in self._parameters]

    def add(self) -> None:
        """Take a user's gradient, scaled down to the longest that is allowed."""
        own = [(s, p.grad) for s, p in zip(self._sums, self._parameters, strict=True)]
        known = [(s, g) for s, g in own if g is not None]
        norms = [g.norm() for _, g in known]
        length = float(torch.stack(norms).norm()) if norms else 0.0
        scale = min(1.0, self._settings.clip / length) if length else 1.0
        for total, gradient in known:
            total.add_(gradient, alpha=scale)
        for parameter in self._parameters:
            parameter.grad = None

    def release(self, expected: float, draws: Draws) -> None:
        """Make the blurred sum, over the expected number of users, everybody's gradient."""
        deviation = self._settings.noise * self._settings.clip
        for parameter, total in zip(self._parameters, self._sums, strict=True):
            parameter.grad = (total + _noise(total, draws) * deviation) / expected


def _noise(like: Tensor, draws: Draws) -> Tensor:
    return draws.normal(like.shape).to(like.device)
