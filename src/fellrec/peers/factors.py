"""ALS: implicit matrix factorisation by alternating least squares (`als`).

Hu, Koren & Volinsky (ICDM 2008) as the library `implicit` has it: an item that was taken is a 1 of
confidence alpha, any other a 0 of confidence 1. Only item factors are kept. A user's factors are
the least-squares answer to the history that is known when the user asks: what a user took after
training counts without another fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fellrec.data.interactions import Ragged
from fellrec.peers.library import one_thread, taken
from fellrec.peers.peer import Choice, Task, choose


@dataclass(frozen=True)
class FactorSettings:
    """factors: of an item. regularisation: weight of their squares. alpha: see the module."""

    factors: int
    regularisation: float
    alpha: float
    iterations: int = 15


GRID = tuple(
    FactorSettings(factors, regularisation, alpha, iterations)
    for factors, regularisation, alpha, iterations in product(
        (32, 64, 128, 256), (1.0, 10.0), (1.0, 3.0), (5, 15)
    )
)


class Factors:
    """Item factors as fitted, in the library's model."""

    def __init__(self, model: Any) -> None:
        self._model = model

    @classmethod
    def fit(cls, train: Ragged, items: int, settings: FactorSettings, seed: int) -> Factors:
        """Factorise the 0/1 matrix of the training histories; `seed` draws the initial factors.

        Raises `DataError` for an item outside the catalogue, `ConfigError` when `implicit` is
        missing.
        """
        with one_thread():
            # Not the library's own choice, which is another algorithm where there is a GPU.
            from implicit.cpu.als import AlternatingLeastSquares

            model = AlternatingLeastSquares(
                factors=settings.factors,
                regularization=settings.regularisation,
                alpha=settings.alpha,
                iterations=settings.iterations,
                num_threads=1,
                random_state=seed,
            )
            model.fit(taken(train, items), show_progress=False)
        return cls(model)

    @property
    def item_factors(self) -> NDArray[np.float32]:
        """(items, factors)."""
        found: NDArray[np.float32] = self._model.item_factors
        return found

    def user_factors(self, histories: Ragged) -> NDArray[np.float32]:
        """Answer each history by least squares, the items' factors held: (histories, factors)."""
        with one_thread():
            found: NDArray[np.float32] = self._model.recalculate_user(
                np.arange(len(histories)), taken(histories, len(self.item_factors))
            )
        return found

    def scores(self, histories: Ragged) -> Tensor:
        """Inner products of the histories' factors with all items': (histories, items) float32."""
        users = torch.from_numpy(self.user_factors(histories))
        return users @ torch.from_numpy(self.item_factors).T

    def size(self) -> int:
        """Count the item factors."""
        return int(self.item_factors.size)


def als(task: Task) -> Choice:
    """Choose factors, regularisation, alpha and iterations from `GRID` by validation."""

    def fit(settings: FactorSettings) -> Factors:
        return Factors.fit(task.train, task.items, settings, task.seed)

    return choose(task, "als", GRID, fit)
