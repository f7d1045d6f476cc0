"""What an attacker has to know of a recommender: how histories become what the head reads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from fellrec.audit.recovery import Content
from fellrec.audit.wiretap import Items, Step
from fellrec.data.interactions import Ragged
from fellrec.models.dropout import StepKey
from fellrec.models.recommender import Recommender, Trunk
from fellrec.privacy import activations


class Reader(ABC):
    """Reads one recommender's histories back, with the model that is installed."""

    @property
    @abstractmethod
    def alike(self) -> Items:
        """The first item whose text is the same, (items,) int64: what texts can't tell apart."""

    @property
    @abstractmethod
    def units(self) -> Items:
        """What a position may be, (n,) int64 sorted: items, or tokens of the catalogue's texts."""

    @property
    def begins(self) -> int:
        """How many positions every history begins with alike."""
        return 0

    @property
    def ends(self) -> int:
        """How many positions every history ends with alike."""
        return 0

    @property
    def scores_all(self) -> bool:
        """Whether a score says something of every item, or only of the few that are written."""
        return True

    @property
    @abstractmethod
    def recommender(self) -> Recommender:
        """Whose histories these are."""

    @abstractmethod
    def content(self, inputs: Items) -> Content:
        """Say what a history holds whose head reads `inputs`, one unit a position."""

    @abstractmethod
    def vectors(self) -> Tensor:
        """What the head reads for each unit, (units, d)."""

    @abstractmethod
    def read_back(self, seen: Sequence[Tensor], most: int) -> dict[str, list[Content]]:
        """Guess each history by each attack.

        seen: (length, d) each, what crossed the first cut. most: candidates that a search tries at
        a place, 0 for all. The head is in serving mode.
        """

    @abstractmethod
    def labels(self, step: Step) -> Items:
        """Say what each row's last target was, as the client knows it: (rows,) int64."""

    @abstractmethod
    def told(self, steps: Sequence[Step], key: StepKey, trunk: Trunk) -> dict[str, list[int]]:
        """Guess the last target of each row by each attack: at which place it has it, from 0.

        key: whose seed, client and round the masks of dropout are drawn from. trunk: the server's.
        """

    def inputs(self, histories: Ragged) -> list[Items]:
        """Return what the head reads for histories, one unit a position, in their order."""
        found: dict[int, Items] = {}
        for batch in self.recommender.serving_batches(histories, _BATCH):
            packed = batch.inputs.flatten(0, 1)[batch.layout.index]
            for row, part in zip(
                batch.rows.tolist(), packed.split(batch.layout.lengths.tolist()), strict=True
            ):
                found[row] = one_unit(part)
        return [found[row] for row in range(len(histories))]

    def activations(self, histories: Ragged) -> list[Tensor]:
        """Return what the head that is installed gives for histories: (length, d) each."""
        return activations(self.recommender, histories)


def one_unit(inputs: Tensor) -> Items:
    """Leave of a position's inputs, (length,) or (length, n), the one that says what is there."""
    first = inputs if inputs.ndim == 1 else inputs[:, 0]
    found: Items = first.numpy().astype(np.int64)
    return found


def told_by(
    recommender: Recommender,
    steps: Sequence[Step],
    labels: Callable[[Step], Items],
    judge: Callable[[Step], tuple[Tensor, Tensor]],
) -> dict[str, list[int]]:
    """Rank each step's labels by gradient and by prediction, with the masks of training.

    judge: scores by either, (rows, items) each, see `labels.judged`.
    """
    found: dict[str, list[int]] = {"prediction": [], "gradient": []}
    recommender.train()
    for step in steps:
        by_gradient, predicted = judge(step)
        found["gradient"] += ranks(by_gradient, labels(step))
        found["prediction"] += ranks(predicted, labels(step))
    recommender.eval()
    return found


def ranks(scores: Tensor, labels: Items) -> list[int]:
    """Return each label's place, from 0. scores: (rows, items), larger first. labels: (rows,)."""
    own = scores.gather(1, torch.from_numpy(labels)[:, None].to(scores.device))
    return [int(rank) for rank in (scores > own).sum(dim=1)]


_BATCH = 128  # histories that the head reads at a time
