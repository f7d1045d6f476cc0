"""Positions in random order: the same answers, and what a server gets is another order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fellrec.audit.order import order_of, usual_by_place
from fellrec.models.layout import Layout, Side
from fellrec.models.recommender import NoTrunk
from fellrec.privacy import Draws, ShuffledTrunk, order_is_free
from fellrec.privacy.shuffle import shuffled
from tests.builders import stage_of, tiny

LENGTHS = np.array([5, 1, 3, 7], np.int32)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def stream(seed: int = 0) -> Draws:
    return Draws.by(np.random.default_rng(seed))


@pytest.mark.parametrize("side", ["left", "right"])
def test_only_valid_positions_change_places(side: Side) -> None:
    layout = Layout(LENGTHS, side)
    order = shuffled(layout, stream())
    columns = torch.arange(layout.width)
    assert torch.equal(order.sort(dim=1).values, columns.expand_as(order))
    assert torch.equal(order[~layout.valid], columns.expand_as(order)[~layout.valid])
    assert bool((order != columns).any())


class Listening(NoTrunk):
    """Hands back what comes, and keeps it."""

    def forward(self, hidden: Tensor, layout: Layout) -> Tensor:
        self.came = hidden.detach()
        return hidden


def test_what_comes_back_stands_where_it_stood() -> None:
    inner, layout = Listening(), Layout(LENGTHS)
    hidden = torch.randn(4, 7, 8, generator=seeded(1), requires_grad=True)
    outputs = ShuffledTrunk(inner, stream())(hidden, layout)
    assert torch.equal(outputs, hidden) and not torch.equal(inner.came, hidden)
    weights = torch.randn(4, 7, 8, generator=seeded(2))
    (outputs * weights).sum().backward()
    assert hidden.grad is not None and torch.equal(hidden.grad, weights)


def test_blocks_that_attend_both_ways_compute_the_same_in_any_order() -> None:
    """Exactly but for the order in which sums are taken; a causal model does not."""
    for causal in (False, True):
        stage = stage_of(tiny("bert"), "trunk", 1, 1, causal=causal)
        assert order_is_free(stage) == (not causal)
        stage.eval()
        hidden, layout = torch.randn(4, 7, stage.width, generator=seeded(3)), Layout(LENGTHS)

        class Local(NoTrunk):
            def forward(self, hidden: Tensor, layout: Layout) -> Tensor:
                found: Tensor = stage(hidden, layout)  # noqa: B023  # called in this turn
                return found

        with torch.no_grad():
            usual = layout.pack(stage(hidden, layout))
            other = layout.pack(ShuffledTrunk(Local(), stream())(hidden, layout))
        assert torch.allclose(usual, other, atol=1e-5) == (not causal)


@pytest.mark.parametrize(("kind", "causal"), [("llama", True), ("longformer", False)])
def test_blocks_that_look_where_positions_stand_are_told_apart(kind: str, causal: bool) -> None:
    assert not order_is_free(stage_of(tiny(kind), "trunk", 1, 1, causal=causal))


def test_an_attacker_puts_positions_back_in_order() -> None:
    """Each place adds a vector of its own, twice as long as what differs between histories."""
    rng = seeded(4)
    places = 2 * torch.randn(9, 16, generator=rng)
    made = [places[:n] + torch.randn(n, 16, generator=rng) for n in (9, 9, 4, 7, 9, 2)]
    usual = usual_by_place(made)
    assert usual.shape == (9, 16)
    assert torch.allclose(usual[8], (made[0][8] + made[1][8] + made[4][8]) / 3, atol=1e-6)
    true = places[:6] + torch.randn(6, 16, generator=rng)
    mixed = torch.randperm(6, generator=rng)
    assert torch.equal(true[mixed][order_of(true[mixed], usual)], true)
    longer = torch.cat([true, true[:1], true[:1]] * 2)
    assert sorted(order_of(longer, usual).tolist()) == list(range(len(longer)))
