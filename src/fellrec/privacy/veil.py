"""Noise on what crosses the cut: activations and their gradients, clipped and blurred.

An activation that is longer than a bound is scaled down to it, and Gaussian noise is added whose
expected length is `noise` times the bound, the same in every channel. The bound is public (a
typical length of activations of histories that nobody had, `public.py`), so that the noise is a
Gaussian mechanism in the sense of local differential privacy (`accounting.histories_epsilon`).

The gradient at the second cut is treated alike, but its bound is the median length of what is sent
at once: gradients shrink as a model learns, and no public bound would fit. So nothing is promised
of gradients; an attack says what the noise is worth.

Noise only helps if the server can't draw it again. What draws it is passed in, and its key must be
nothing that the server knows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fellrec.errors import ConfigError
from fellrec.models.layout import Layout
from fellrec.models.recommender import Trunk
from fellrec.privacy.draws import Draws
from fellrec.privacy.wrapped import WrappedTrunk


@dataclass(frozen=True)
class Veil:
    """How much is blurred.

    bound: longest that an activation may be, in the unit of activations. noise: the noise's
    expected length over the bound; 0 clips alone.

    Raises ConfigError for a bound that is not above 0, or negative noise.
    """

    bound: float
    noise: float

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        if not (self.bound > 0 and math.isfinite(self.bound)):
            raise ConfigError(f"a veil of bound {self.bound}: give a length above 0")
        if not (self.noise >= 0 and math.isfinite(self.noise)):
            raise ConfigError(f"noise = {self.noise}: give 0 or more")

    def over(self, rows: Tensor, draws: Draws) -> Tensor:
        """Clip and blur activations: (…, d) both. Gradients pass as through what was clipped."""
        return blurred(clipped(rows, self.bound), self.noise * self.bound, draws)


def clipped(rows: Tensor, bound: float | Tensor) -> Tensor:
    """Scale rows, (…, d), down to a length of at most `bound`."""
    lengths = rows.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny)
    shorter: Tensor = rows * (bound / lengths).clamp(max=1.0)
    return shorter


def blurred(rows: Tensor, length: float, draws: Draws) -> Tensor:
    """Add noise whose expected squared length is `length`² to each row, (…, d)."""
    if not length:
        return rows
    drawn = draws.normal(rows.shape).to(rows.device)
    return rows + drawn * (length / math.sqrt(rows.shape[-1]))


class VeiledTrunk(WrappedTrunk):
    """A trunk to which everything goes through a veil, in training and in serving.

    inner: the trunk. draws: the noise, in the order of what is sent.
    """

    def __init__(self, inner: Trunk, veil: Veil, draws: Draws) -> None:
        super().__init__(inner)
        self._veil = veil
        self._draws = draws

    def forward(self, hidden: Tensor, layout: Layout) -> Tensor:
        """Run the blocks over what the veil leaves: (batch, width, d) both."""
        outputs = self.inner(self._veil.over(hidden, self._draws), layout)
        if not outputs.requires_grad:
            return outputs  # type: ignore[no-any-return]  # nn.Module
        veiled: Tensor = _VeiledGradient.apply(outputs, layout, self._veil.noise, self._draws)  # type: ignore[no-untyped-call]  # torch
        return veiled

    def prefill(self, hidden: Tensor, layout: Layout) -> Tensor:
        """Run prompts, and remember them: (batch, width, d) both."""
        return self.inner.prefill(self._veil.over(hidden, self._draws), layout)

    def extend(self, hidden: Tensor, beams: npt.NDArray[np.int32]) -> Tensor:
        """Run one more position of each row, (rows, 1, d) both."""
        return self.inner.extend(self._veil.over(hidden, self._draws), beams)


class _VeiledGradient(torch.autograd.Function):
    """Outputs as they are; the gradient is clipped and blurred before it crosses."""

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, layout: Layout, noise: float, draws: Draws) -> Tensor:
        ctx.layout, ctx.noise, ctx.draws = layout, noise, draws
        return outputs.view_as(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        rows = ctx.layout.pack(gradients[0])
        lengths = rows.norm(dim=-1)
        sent = lengths[lengths > 0]
        bound = float(sent.median()) if len(sent) else 0.0
        veiled = blurred(clipped(rows, bound), ctx.noise * bound, ctx.draws) if bound else rows
        return ctx.layout.unpack(veiled), None, None, None
