"""Clipping and noise on what crosses: their size, their limits; gradients get them, too."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fellrec.errors import ConfigError
from fellrec.models.layout import Layout
from fellrec.models.recommender import NoTrunk
from fellrec.privacy import Draws, Veil, VeiledTrunk, typical_length

LAYOUT = Layout(np.array([3, 1, 2], np.int32))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def stream(seed: int = 0) -> Draws:
    return Draws.by(np.random.default_rng(seed))


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=seeded(9))


@given(st.floats(0.1, 10), st.integers(0, 2**31))
def test_clipping_keeps_directions_and_what_is_short(bound: float, seed: int) -> None:
    rows = torch.randn(5, 8, generator=seeded(seed))
    kept = Veil(bound, 0).over(rows, stream())
    assert bool((kept.norm(dim=-1) <= bound * (1 + 1e-6)).all())
    assert torch.allclose(
        torch.nn.functional.cosine_similarity(kept, rows, dim=-1), torch.ones(5), atol=1e-5
    )
    short = rows.norm(dim=-1) <= bound
    assert torch.allclose(kept[short], rows[short], rtol=1e-6)


def test_noise_is_as_long_as_it_says_and_even_over_channels() -> None:
    """Of 4,000 rows in 64 channels the mean squared length is within 1 % of (0.5 x 3)²."""
    noise = Veil(3.0, 0.5).over(torch.zeros(4000, 64), stream())
    assert float(noise.square().sum(dim=1).mean()) == pytest.approx(1.5**2, rel=0.01)
    deviations = noise.std(dim=0)
    assert deviations.tolist() == pytest.approx([1.5 / 8] * 64, rel=0.06)
    assert abs(float(noise.mean())) < 0.001


def test_no_row_of_zeros_becomes_no_number() -> None:
    assert torch.equal(Veil(1.0, 0).over(torch.zeros(2, 4), stream()), torch.zeros(2, 4))


def test_the_same_stream_draws_the_same_noise() -> None:
    rows, veil = drawn(4, 8), Veil(1.0, 1.0)
    assert torch.equal(veil.over(rows, stream(3)), veil.over(rows, stream(3)))
    assert not torch.equal(veil.over(rows, stream(3)), veil.over(rows, stream(4)))


def test_a_wide_veil_without_noise_hides_nothing() -> None:
    trunk = VeiledTrunk(NoTrunk(), Veil(1e6, 0.0), stream())
    hidden = drawn(3, 3, 8)
    assert torch.equal(trunk(hidden, LAYOUT), hidden)
    assert torch.equal(trunk.prefill(hidden, LAYOUT), hidden)
    assert torch.equal(trunk.extend(hidden[:, :1], np.arange(3, dtype=np.int32)), hidden[:, :1])
    assert trunk.end_step(2.0) == 0.0 and not trunk.overlaps


class Watched(NoTrunk):
    """Twice what comes in, and what came."""

    def __init__(self) -> None:
        super().__init__()
        self.came: list[Tensor] = []
        self.gradients: list[Tensor] = []

    def forward(self, hidden: Tensor, layout: Layout) -> Tensor:
        self.came.append(hidden.detach())
        out = hidden * 2
        if out.requires_grad:
            out.register_hook(self.gradients.append)
        return out


def test_what_the_trunk_gets_is_veiled_both_ways() -> None:
    inner, hidden = Watched(), drawn(3, 3, 8).requires_grad_()
    trunk = VeiledTrunk(inner, Veil(0.5, 0.0), stream())
    sent = drawn(3, 3, 8) * LAYOUT.valid[:, :, None]
    trunk(hidden, LAYOUT).backward(sent)
    assert bool((inner.came[0].norm(dim=-1) <= 0.5 + 1e-6).all())
    lengths = LAYOUT.pack(sent).norm(dim=-1)
    crossed = LAYOUT.pack(inner.gradients[0]).norm(dim=-1)
    assert crossed.tolist() == pytest.approx(lengths.clamp(max=float(lengths.median())).tolist())
    # Through the clipping itself, whose derivative shortens and turns.
    assert hidden.grad is not None and bool(hidden.grad.isfinite().all())
    noisy = Watched()
    again = drawn(3, 3, 8).requires_grad_()
    VeiledTrunk(noisy, Veil(0.5, 0.7), stream())(again, LAYOUT).backward(sent)
    assert not torch.equal(noisy.gradients[0], inner.gradients[0])
    assert torch.equal(
        noisy.gradients[0][~LAYOUT.valid], torch.zeros_like(noisy.gradients[0][~LAYOUT.valid])
    )


def test_a_gradient_of_nothing_stays_nothing() -> None:
    inner, hidden = Watched(), drawn(3, 3, 8).requires_grad_()
    VeiledTrunk(inner, Veil(0.5, 1.0), stream())(hidden, LAYOUT).backward(torch.zeros(3, 3, 8))
    assert not inner.gradients[0].any()


def test_the_typical_length_is_the_median() -> None:
    rows = [torch.tensor([[3.0, 4], [0, 1]]), torch.tensor([[0.0, 2]])]
    assert typical_length(rows) == 2


@pytest.mark.parametrize(
    ("bound", "noise"), [(0, 1), (-1, 0), (math.inf, 0), (1, -1), (1, math.nan)]
)
def test_what_makes_no_sense_is_refused(bound: float, noise: float) -> None:
    with pytest.raises(ConfigError):
        Veil(bound, noise)
