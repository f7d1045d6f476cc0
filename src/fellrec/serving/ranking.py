"""A client's ranking of the catalogue for a history, whatever holds its model."""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fellrec.data.interactions import Catalogue, Ragged
from fellrec.errors import ConfigError, DataError
from fellrec.evaluation.ranking import rank_scores
from fellrec.federation.client import Client


@dataclass(frozen=True)
class Recommendation:
    """One ranked item. score: the recommender's, comparable within one list only."""

    item: str
    title: str
    score: float


class Recommends(ABC):
    """Recommends by one client's model. client: with its users. catalogue: what is ranked."""

    def __init__(self, client: Client, catalogue: Catalogue) -> None:
        self.client = client
        self.catalogue = catalogue

    @property
    def name(self) -> str:
        """The client's name."""
        return self.client.name

    @property
    def users(self) -> tuple[str, ...]:
        """Ids of the client's users."""
        return self.client.data.users

    def recommend(
        self,
        history: Sequence[str] | None = None,
        *,
        user: str | None = None,
        k: int = 10,
    ) -> list[Recommendation]:
        """Rank the catalogue for a history of titles (oldest first), or for one of its users.

        A user's history is all that the data set has of it. What is in the history is never
        recommended, nor is another item of a title given; fewer than k items come back where the
        catalogue has no more.

        Raises ConfigError unless there is exactly one of `history` and `user`, DataError for a
        title or a user that is not known (with the nearest ones).
        """
        if (history is None) == (user is None):
            raise ConfigError("give a history or a user, and not both")
        if user is not None:
            return self.recommend_items(self.items_of(user), k=k)
        found = [self.catalogue.find(title) for title in history or ()]
        # Of several items with one title the first is read; none of them is news.
        hidden = [item for items in found for item in items]
        return self.recommend_items([items[0] for items in found], k=k, hidden=hidden)

    def recommend_items(
        self, items: Sequence[int], *, k: int = 10, hidden: Sequence[int] = ()
    ) -> list[Recommendation]:
        """Rank the catalogue for a history of item indices, oldest first.

        Neither these nor the items of `hidden` come back.
        """
        if k < 1:
            raise ConfigError(f"k = {k}: ask for at least one recommendation")
        if len(items) == 0:
            raise DataError("the history is empty: name at least one title")
        row = Ragged.from_rows([np.asarray(items, dtype=np.int32)])
        scores = self._scores(row, k + len(hidden))
        values = scores[0].clone()
        known = Ragged.from_rows([np.asarray([*items, *hidden], dtype=np.int32)])
        ranked = rank_scores(scores, known, min(k, len(self.catalogue)))[0]
        return [
            Recommendation(self.catalogue.ids[i], self.catalogue.titles[i], float(values[i]))
            for i in ranked.tolist()
            if i >= 0
        ]

    def items_of(self, user: str) -> list[int]:
        """Return all that a user of this client interacted with, oldest first."""
        if user not in self.users:
            near = difflib.get_close_matches(user, self.users, 3) or list(self.users[:3])
            raise DataError(f"client {self.name} has no user {user!r}; near: {', '.join(near)}")
        number = self.users.index(user)
        data = self.client.data
        return [*data.history("test")[number].tolist(), *data.test[number].tolist()]

    @abstractmethod
    def _scores(self, history: Ragged, k: int) -> Tensor:
        """Score the catalogue for the one row of `history`: (1, items) float32, larger is better.

        k: places that will be read, see `Recommender.score`. The result may be written into.
        """


def score(client: Client, history: Ragged, k: int) -> Tensor:
    """Do what `Recommends._scores` says by a client whose model is installed and ready to serve."""
    batch = next(client.recommender.serving_batches(history, 1))
    return client.recommender.reweighted(client.recommender.score(client.trunk, batch, k))
