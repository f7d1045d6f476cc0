"""Item-kNN: items that the same users took, by the neighbours of each item (`item-knn`).

An item is the column of users who took it, weighed in one of three ways. Its neighbours are the K
items of largest inner product with it, as the library `implicit` finds them, which counts an item
among its own neighbours. A history scores an item by the sum of its similarities to those items of
the history that have it as a neighbour.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from itertools import product
from typing import Literal, get_args

import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from fellrec.data.interactions import Ragged
from fellrec.peers.library import one_thread, taken
from fellrec.peers.peer import Choice, Task, choose

Weighting = Literal["cosine", "tf-idf", "bm25"]


@dataclass(frozen=True)
class NeighbourSettings:
    """How columns are weighed and how many neighbours an item has.

    weighting: "cosine": 0/1 columns of unit length. "tf-idf": likewise, but users count for less
    the more items they took. "bm25": so too, and items for less the more users took them (K1 = 1.2,
    B = 0.75), without unit length. neighbours: K, the item itself among them.
    """

    weighting: Weighting
    neighbours: int


GRID = tuple(
    NeighbourSettings(weighting, neighbours)
    for weighting, neighbours in product(get_args(Weighting), (20, 50, 100, 200, 400))
)


class Neighbours:
    """Item similarities as fitted: (items, items), sparse; row i holds the neighbours of item i."""

    def __init__(self, similarity: csr_matrix) -> None:
        self.similarity = similarity

    @classmethod
    def fit(cls, train: Ragged, items: int, settings: NeighbourSettings) -> Neighbours:
        """Find every item's neighbours by the training histories.

        Raises `DataError` for an item outside the catalogue, `ConfigError` when `implicit` is
        missing.
        """
        with one_thread(), warnings.catch_warnings():
            from implicit import nearest_neighbours as library
            from implicit.utils import ParameterWarning

            # The library's own weighing hands its search another sparse form than that asks for.
            warnings.simplefilter("ignore", ParameterWarning)
            kinds = {
                "cosine": library.CosineRecommender,
                "tf-idf": library.TFIDFRecommender,
                "bm25": library.BM25Recommender,
            }
            model = kinds[settings.weighting](K=settings.neighbours, num_threads=1)
            model.fit(taken(train, items), show_progress=False)
        return cls(model.similarity)

    def scores(self, histories: Ragged) -> Tensor:
        """Sum similarities to the items of each history: (histories, items) float64."""
        matrix = taken(histories, self.similarity.shape[0])
        return torch.from_numpy((matrix @ self.similarity).toarray())

    def size(self) -> int:
        """Count the stored similarities."""
        return int(self.similarity.nnz)


def item_knn(task: Task) -> Choice:
    """Choose weighting and number of neighbours from `GRID` by validation."""
    return choose(
        task, "item-knn", GRID, lambda settings: Neighbours.fit(task.train, task.items, settings)
    )
