"""The popularity baseline as a peer (`popularity`): the counts are those of evaluation."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fellrec.data.interactions import Ragged
from fellrec.evaluation.popularity import places
from fellrec.peers.peer import Choice, Task


class Popular:
    """The same order of items for everybody: places (items,) from 0 for the most popular."""

    def __init__(self, places: NDArray[np.int64]) -> None:
        self.places = places

    def scores(self, histories: Ragged) -> Tensor:
        """Score items by their place, whatever the history: (histories, items) float64."""
        order = torch.from_numpy(-self.places.astype(np.float64))
        return order.repeat(len(histories), 1)

    def size(self) -> int:
        """One place for each item."""
        return len(self.places)


def popularity(task: Task) -> Choice:
    """Count training interactions; there is nothing to choose."""
    fitted = Popular(places(task.train, task.items))
    valid = task.validate(fitted)
    return Choice(fitted, valid, {}, (({}, valid),))
