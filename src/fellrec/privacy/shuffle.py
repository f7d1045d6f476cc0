"""Positions in random order, for blocks that attend to all positions alike.

Between such blocks the order is in the activations alone, where the base's embeddings put it: what
the trunk computes at a position does not depend on where it stands. So a client may send a
history's positions in any order and put the answers back. The scores stay the same, and nothing is
sent more. It takes little from an attacker: activations still tell where they belong.
"""

from __future__ import annotations

from torch import Tensor

from fellrec.models.families import BERT
from fellrec.models.layout import Layout
from fellrec.models.recommender import Trunk
from fellrec.models.stages import Stage
from fellrec.privacy.draws import Draws
from fellrec.privacy.wrapped import WrappedTrunk


class ShuffledTrunk(WrappedTrunk):
    """A trunk that gets each history's positions in an order of its own.

    inner: the trunk, whose blocks attend both ways and to all positions alike. draws: the orders.
    """

    def __init__(self, inner: Trunk, draws: Draws) -> None:
        super().__init__(inner)
        self._draws = draws

    def forward(self, hidden: Tensor, layout: Layout) -> Tensor:
        """Run the blocks over shuffled positions, and put these back: (batch, width, d) both."""
        order = shuffled(layout, self._draws).to(hidden.device)
        back = order.argsort(dim=1)
        return _taken(self.inner(_taken(hidden, order), layout), back)


def order_is_free(stage: Stage) -> bool:
    """Whether a stage's blocks compute the same wherever a position stands.

    Not with a causal mask, as in all decoders, and not with a window (Longformer).
    """
    return stage.family is BERT and not stage.causal and not stage.window


def shuffled(layout: Layout, draws: Draws) -> Tensor:
    """Draw an order of each row's valid positions; padding stays: (batch, width) int64."""
    places = draws.uniform(layout.valid.shape)
    # Padding sorts to its own side: all of it after, or before, what is valid.
    outside = 2.0 if layout.side == "right" else -1.0
    return places.masked_fill(~layout.valid, outside).argsort(dim=1, stable=True)


def _taken(hidden: Tensor, order: Tensor) -> Tensor:
    return hidden.gather(1, order[:, :, None].expand_as(hidden))
