"""The protocol that every backbone meets.

A recommender is what a client holds: the head, the tail, and whatever turns histories into
activations and activations into a loss or into scores. The trunk is not part of it: between `enter`
and `loss` (or `scores`) somebody carries the activations across, on this machine or to another.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import torch
from torch import Tensor, nn

from fellrec.data.interactions import Ragged
from fellrec.models.adapters import adapter
from fellrec.models.dropout import StepKey
from fellrec.models.layout import Layout
from fellrec.models.stages import Stage


class Kind(StrEnum):
    """Whose a trained tensor is (METHOD section 0)."""

    LORA = "lora"
    """Exchanged, compared (M1) and mixed (M3)."""
    DENSE = "dense"
    """Exchanged and mixed elementwise, never compared."""
    PRIVATE = "private"
    """Never leaves the client."""


@dataclass(frozen=True)
class Batch:
    """What goes through the stages at once.

    layout: which positions are real. inputs: (batch, width) int64, what the head reads. targets:
    (total,) int64 in packed order, or empty when serving. rows: (batch,) int64, which histories of
    the given ones these are.
    """

    layout: Layout
    inputs: Tensor
    targets: Tensor
    rows: np.ndarray

    def micro(self, count: int) -> list[Batch]:
        """Cut into at most `count` batches of consecutive rows."""
        if count <= 1:
            return [self]
        parts: list[Batch] = []
        ends = np.concatenate([[0], np.cumsum(self.layout.lengths)])
        for rows in np.array_split(np.arange(len(self.rows)), count):
            if len(rows) == 0:
                continue
            layout = Layout(self.layout.lengths[rows], self.layout.side)
            inputs = self.inputs[rows[0] : rows[-1] + 1]
            inputs = (
                inputs[:, : layout.width]
                if layout.side == "right"
                else inputs[:, self.layout.width - layout.width :]
            )
            targets = self.targets[ends[rows[0]] : ends[rows[-1] + 1]]
            parts.append(Batch(layout, inputs, targets, self.rows[rows]))
        return parts


class Trunk(nn.Module, ABC):
    """The blocks between head and tail, wherever they run."""

    key: StepKey

    @abstractmethod
    def forward(self, hidden: Tensor, layout: Layout) -> Tensor:
        """Run the blocks: (batch, width, d) -> (batch, width, d)."""

    @abstractmethod
    def end_step(self, squared_norm: float) -> float:
        """Take the client's squared gradient norm, step, and return the trunk's own."""


class NoTrunk(Trunk):
    """Stands where no block lies between head and tail: all of the model is on the client."""

    def __init__(self) -> None:
        super().__init__()
        self.key = StepKey()

    def forward(self, hidden: Tensor, layout: Layout) -> Tensor:
        """Return the activations as they are."""
        return hidden

    def end_step(self, squared_norm: float) -> float:
        """Nothing steps here: the norm is 0."""
        return 0.0


class Recommender(nn.Module, ABC):
    """A backbone without its trunk.

    head, tail: the client's stages, adapters attached. Trained tensors declare their kind.
    """

    head: Stage
    tail: Stage

    @abstractmethod
    def training_batches(
        self, histories: Ragged, batch_size: int, windows: int, rng: np.random.Generator
    ) -> list[Batch]:
        """Return one epoch of shuffled batches; histories too short to learn from are left out."""

    @abstractmethod
    def serving_batches(self, histories: Ragged, batch_size: int) -> Iterator[Batch]:
        """Yield batches without targets that cover all histories (each of at least one item)."""

    @abstractmethod
    def enter(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Run the head: activations at the first cut, and what `loss` or `scores` want of it.

        Returns (batch, width, d) and a tensor that only this recommender understands.
        """

    @abstractmethod
    def loss(self, hidden: Tensor, batch: Batch, carried: Tensor) -> Tensor:
        """Run the tail: the loss summed over the batch's targets."""

    @abstractmethod
    def scores(self, hidden: Tensor, batch: Batch, carried: Tensor) -> Tensor:
        """Run the tail and score the catalogue: (batch, items) float32, larger is better."""

    @abstractmethod
    def own_tensors(self) -> dict[str, tuple[Kind, nn.Parameter]]:
        """Return the trained tensors besides the adapters, with their kinds."""

    def trained(self) -> dict[str, tuple[Kind, nn.Parameter]]:
        """Return all that is trained here: the stages' factors and the recommender's own."""
        factors = adapter(self.head) | adapter(self.tail)
        return {n: (Kind.LORA, p) for n, p in factors.items()} | self.own_tensors()

    def parameters_of(self, *kinds: Kind) -> dict[str, nn.Parameter]:
        """Return the trained tensors of some kinds, by name."""
        return {name: p for name, (kind, p) in self.trained().items() if kind in kinds}


def training_loss(recommender: Recommender, trunk: Trunk, batch: Batch, targets: int) -> Tensor:
    """Forward pass of one (micro-)batch over all stages, its loss divided by `targets`.

    `targets` counts the whole batch before micro-batches were cut, so that their gradients add up
    to the whole batch's (METHOD section 2).
    """
    hidden, carried = recommender.enter(batch)
    return recommender.loss(trunk(hidden, batch.layout), batch, carried) / targets


def score(recommender: Recommender, trunk: Trunk, batch: Batch) -> Tensor:
    """Scores of the catalogue for each history of a serving batch: (batch, items)."""
    with torch.no_grad():
        hidden, carried = recommender.enter(batch)
        return recommender.scores(trunk(hidden, batch.layout), batch, carried)
