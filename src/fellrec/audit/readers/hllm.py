"""HLLM: each position is an item, oldest first, and the head is causal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fellrec.audit.inversion import Units, nearest, search
from fellrec.audit.labels import judged
from fellrec.audit.readers.reader import Reader, told_by
from fellrec.audit.recovery import Content
from fellrec.audit.wiretap import Items, Step
from fellrec.models.dropout import StepKey
from fellrec.models.hllm import Hllm
from fellrec.models.recommender import Trunk


class HllmReader(Reader):
    """Knows items by their vectors."""

    def __init__(self, recommender: Hllm) -> None:
        self._recommender = recommender
        self._items = np.arange(len(recommender.text_vectors))

    @property
    def alike(self) -> Items:
        """Every item has a vector of its own, (items,) int64."""
        return self._items

    @property
    def units(self) -> Items:
        """Positions are items, (items,) int64."""
        return self._items

    @property
    def recommender(self) -> Hllm:
        """Whose histories these are."""
        return self._recommender

    def content(self, inputs: Items) -> Content:
        """Each position is an item."""
        return Content(inputs)

    @torch.no_grad()
    def vectors(self) -> Tensor:
        """The table of items, (items, d)."""
        return self._recommender.item_vectors()

    @torch.no_grad()
    def read_back(self, seen: Sequence[Tensor], most: int) -> dict[str, list[Content]]:
        """`nearest` and `search` of inversion.py."""
        table = self.vectors()
        units = Units.of(self._recommender.head, table, table[:0], seen)
        return {
            "nearest": [Content(nearest(each, units)) for each in seen],
            "search": [Content(search(each, units, most)) for each in seen],
        }

    def labels(self, step: Step) -> Items:
        """The target behind each row's last position."""
        found: Items = step.batch.targets.numpy()[np.cumsum(step.batch.counts) - 1]
        return found

    def told(self, steps: Sequence[Step], key: StepKey, trunk: Trunk) -> dict[str, list[int]]:
        """`prediction` and `gradient` of labels.py."""
        recommender = self._recommender
        table, scale = self.vectors(), float(recommender.scale.detach())

        def judge(step: Step) -> tuple[Tensor, Tensor]:
            return judged(step, recommender.tail, key, table, scale, "last")

        return told_by(recommender, steps, self.labels, judge)
