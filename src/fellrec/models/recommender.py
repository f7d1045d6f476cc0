"""The protocol that every backbone meets.

A recommender is what a client holds: the head, the tail, and whatever turns histories into
activations and activations into a loss or into scores. The trunk is not part of it: it is lent for
each call, and may be on this machine or on another.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt
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

    layout: which positions are real. inputs: (batch, width) or (batch, width, n) int64, what the
    head reads. targets: int64, those of each row after those of the row before; empty when serving.
    rows: (batch,) int64, which histories of the given ones these are. counts: (batch,) int64,
    targets of each row. seen: what each row's user has taken already, where a recommender asks.
    """

    layout: Layout
    inputs: Tensor
    targets: Tensor
    rows: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    seen: Ragged | None = None

    def micro(self, count: int) -> list[Batch]:
        """Cut into at most `count` batches of consecutive rows."""
        if count <= 1:
            return [self]
        parts: list[Batch] = []
        ends = np.concatenate([[0], np.cumsum(self.counts)])
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
            parts.append(Batch(layout, inputs, targets, self.rows[rows], self.counts[rows]))
        return parts


class Crossing(ABC):
    """One micro-batch on its way through a trunk that others may follow before it is back.

    Call in this order: `outputs`, `send_gradient`, `input_gradient`.
    """

    @abstractmethod
    def outputs(self) -> Tensor:
        """Wait for the trunk's outputs, (batch, width, d): a leaf that gathers its gradient."""

    @abstractmethod
    def send_gradient(self) -> None:
        """Send the gradient that the outputs gathered."""

    @abstractmethod
    def input_gradient(self) -> Tensor:
        """Wait for the gradient of what went in, (batch, width, d)."""


class Trunk(nn.Module, ABC):
    """The blocks between head and tail, wherever they run.

    overlaps: whether `begin` is there, so that several micro-batches may be on their way.
    """

    key: StepKey
    overlaps = False

    def begin(self, hidden: Tensor, layout: Layout) -> Crossing:
        """Send a micro-batch's activations, (batch, width, d), and don't wait."""
        raise NotImplementedError

    @abstractmethod
    def forward(self, hidden: Tensor, layout: Layout) -> Tensor:
        """Run the blocks: (batch, width, d) -> (batch, width, d)."""

    @abstractmethod
    def prefill(self, hidden: Tensor, layout: Layout) -> Tensor:
        """Run prompts padded on the left, and remember them: (batch, width, d) both."""

    @abstractmethod
    def extend(self, hidden: Tensor, beams: npt.NDArray[np.int32]) -> Tensor:
        """Run one more position of each row, (rows, 1, d) both; row i continues row `beams[i]`."""

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

    def prefill(self, hidden: Tensor, layout: Layout) -> Tensor:
        """Return the activations as they are."""
        return hidden

    def extend(self, hidden: Tensor, beams: npt.NDArray[np.int32]) -> Tensor:
        """Return the activations as they are."""
        return hidden

    def end_step(self, squared_norm: float) -> float:
        """Nothing steps here: the norm is 0."""
        return 0.0


@dataclass(frozen=True)
class Entered:
    """A training batch behind the head.

    hidden: (batch, width, d), for the trunk. shared: what the head used and the tail uses again,
    part of both gradients; None where they share nothing.
    """

    hidden: Tensor
    shared: Tensor | None = None


class Recommender(nn.Module, ABC):
    """A backbone without its trunk.

    head, tail: the client's stages, adapters attached. Trained tensors declare their kind.
    """

    head: Stage
    tail: Stage
    head_stays = False
    """Whether all that is trained before the first cut is private."""
    entrance: frozenset[str] = frozenset()
    """Names of the own tensors that turn histories into what the head reads."""
    exported_under = ""
    """Where the base stands in the model that an adapter is exported for."""

    @abstractmethod
    def training_batches(
        self, histories: Ragged, batch_size: int, windows: int, rng: np.random.Generator
    ) -> list[Batch]:
        """Return one epoch of shuffled batches; histories too short to learn from are left out."""

    @abstractmethod
    def serving_batches(self, histories: Ragged, batch_size: int) -> Iterator[Batch]:
        """Yield batches without targets that cover all histories (each of at least one item)."""

    def begin_epoch(self, trunk: Trunk) -> None:
        """Make anew what an epoch of training takes as given; called in serving mode."""

    @property
    def epoch_positions(self) -> int:
        """Positions that `begin_epoch` sends through all stages, forward only."""
        return 0

    def begin_serving(self, trunk: Trunk, train: Ragged) -> None:
        """Make anew what scores rest on, since tensors may have changed.

        train: the client's own training histories. Called in serving mode, before any `score`.
        """

    @abstractmethod
    def enter(self, batch: Batch) -> Entered:
        """Run the head over a training batch."""

    @abstractmethod
    def leave(self, outputs: Tensor, entered: Entered, batch: Batch) -> Tensor:
        """Run the tail over the trunk's outputs: the loss summed over the batch's targets."""

    def loss(self, trunk: Trunk, batch: Batch) -> Tensor:
        """Run all stages over a training batch: the loss summed over its targets."""
        entered = self.enter(batch)
        return self.leave(trunk(entered.hidden, batch.layout), entered, batch)

    @abstractmethod
    def score(self, trunk: Trunk, batch: Batch, k: int) -> Tensor:
        """Score the catalogue for a serving batch: (batch, items) float32 on the CPU, larger is
        better.

        k: places that will be read, apart from what the user has taken already; a recommender may
        spare itself the order of what comes behind them.
        """

    @property
    def choices(self) -> int:
        """How many ways of weighing scores there are, among which validation chooses."""
        return 1

    def choose(self, choice: int) -> None:
        """Weigh scores in one of the ways from now on."""

    def reweighted(self, scores: Tensor, choice: int | None = None) -> Tensor:
        """Weigh scores, (batch, items) both; None: in the chosen way."""
        return scores

    @abstractmethod
    def own_tensors(self) -> dict[str, tuple[Kind, nn.Parameter]]:
        """Return the trained tensors besides the adapters, with their kinds in a head that is
        exchanged.
        """

    def factors(self) -> dict[str, nn.Parameter]:
        """Return the LoRA factors of both stages."""
        return adapter(self.head) | adapter(self.tail)

    def trained(self) -> dict[str, tuple[Kind, nn.Parameter]]:
        """Return all that is trained here: the stages' factors and the recommender's own."""
        found = {n: (Kind.LORA, p) for n, p in self.factors().items()} | self.own_tensors()
        if self.head_stays:
            found |= {n: (Kind.PRIVATE, found[n][1]) for n in self.before_the_cut() & found.keys()}
        return found

    def before_the_cut(self) -> frozenset[str]:
        """Return the names of all that is trained before the first cut."""
        return self.entrance | adapter(self.head).keys()

    def parameters_of(self, *kinds: Kind) -> dict[str, nn.Parameter]:
        """Return the trained tensors of some kinds, by name."""
        return {name: p for name, (kind, p) in self.trained().items() if kind in kinds}
