"""A finished run, ready to recommend: split inference with each client's own best adapter."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fellrec.config import RunConfig
from fellrec.data.interactions import Ragged
from fellrec.errors import ConfigError, DataError, RunError
from fellrec.evaluation.ranking import rank_scores
from fellrec.federation.client import Client, Scores
from fellrec.federation.runs import finished
from fellrec.federation.turns import ClientModel, published_model, turn
from fellrec.federation.workspace import Shares, Workspace, share_data
from fellrec.models.recommender import Kind

# What may differ from the recipe that was trained: how it is served, and who is scored.
SERVING_KEYS = (
    "bigrec.beams",
    "bigrec.decode",
    "bigrec.popularity",
    "bigrec.prompts",
    "evaluation.batch_size",
    "evaluation.test_users",
    "evaluation.valid_users",
    "model.device",
    "model.dtype",
    "model.quantize",
    "split.codec",
)


@dataclass(frozen=True)
class Recommendation:
    """One ranked item. score: the recommender's, comparable within one list only."""

    item: str
    title: str
    score: float


class Run:
    """A run directory. Data and weights are loaded when first needed.

    overrides: values by dotted key that replace the recipe's, of those in `SERVING_KEYS`; a
    ConfigError names another. ready: the client that the recommender last made itself ready for.
    What that took, such as a pass over all titles, serves as long as no other client's turn comes.
    """

    def __init__(self, path: Path, overrides: Mapping[str, object] | None = None) -> None:
        self.path = path
        self.overrides = dict(overrides or {})
        self.config, summary = finished(path)
        for key in self.overrides:
            if key not in SERVING_KEYS:
                raise ConfigError(
                    f"{key}: a finished run keeps it; what can be set is {', '.join(SERVING_KEYS)}"
                )
        if self.overrides:
            self.config = RunConfig.from_toml(path / "config.toml", self.overrides)
        self.summary: dict[str, Any] = summary
        self.ready: str | None = None

    @cached_property
    def shares(self) -> Shares:
        """The run's data, split and partitioned again from its recipe."""
        return share_data(self.config)

    @cached_property
    def workspace(self) -> Workspace:
        """The run's model, cut."""
        return Workspace(self.config, self.shares.dataset)

    def client(self, name: str) -> RunClient:
        """Return one client; RunError lists those there are."""
        names = self.shares.partition.names
        if name not in names:
            some = ", ".join(names[:10]) + (" …" if len(names) > 10 else "")
            raise RunError(f"{self.path}: no client {name!r}; there are: {some}")
        return RunClient(self, name)

    def clients(self) -> list[RunClient]:
        """Return all clients, largest first."""
        return [RunClient(self, name) for name in self.shares.partition.names]


class RunClient:
    """One client of a finished run, with its own adapter."""

    def __init__(self, run: Run, name: str) -> None:
        self.name = name
        self.run = run
        number = run.shares.partition.names.index(name)
        self.client: Client = run.workspace.client(
            name, run.shares.of(number), run.shares.quotas[number]
        )

    @cached_property
    def model(self) -> ClientModel:
        """The client's best model.

        Where scores are weighed otherwise than in the run, validation chooses how once more.
        """
        workspace, stored = self.run.workspace, published_model(self.run.path, self.name)
        if not self.run.overrides:
            return stored
        private = {
            name: stored.private.get(name, start)
            for name, start in workspace.initial(Kind.PRIVATE).items()
        }
        stored = replace(stored, private=private)
        if self.client.recommender.choices == 1:
            return stored
        with turn(workspace, self.client, 0, stored) as it:
            self.client.validate(self.run.config.evaluation.metric)
        return replace(stored, private=it.finished().private)

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
        found = [self.run.shares.dataset.catalogue.find(title) for title in history or ()]
        # Of several items with one title the first is read; none of them is news.
        hidden = [item for items in found for item in items]
        return self.recommend_items([items[0] for items in found], k=k, hidden=hidden)

    def recommend_items(
        self, items: Sequence[int], *, k: int = 10, hidden: Sequence[int] = ()
    ) -> list[Recommendation]:
        """Rank the catalogue for a history of item indices, oldest first.

        Neither these nor the items of `hidden` come back.
        """
        catalogue = self.run.shares.dataset.catalogue
        if k < 1:
            raise ConfigError(f"k = {k}: ask for at least one recommendation")
        if len(items) == 0:
            raise DataError("the history is empty: name at least one title")
        row = Ragged.from_rows([np.asarray(items, dtype=np.int32)])
        with turn(self.run.workspace, self.client, 0, self.model):
            if self.run.ready != self.name:
                self.client.begin_serving()
                self.run.ready = self.name
            batch = next(self.client.recommender.serving_batches(row, 1))
            scores = self.client.recommender.score(self.client.trunk, batch, k + len(hidden))
            scores = self.client.recommender.reweighted(scores)
        values = scores[0].clone()
        known = Ragged.from_rows([np.asarray([*items, *hidden], dtype=np.int32)])
        ranked = rank_scores(scores, known, min(k, len(catalogue)))[0]
        return [
            Recommendation(catalogue.ids[i], catalogue.titles[i], float(values[i]))
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

    def evaluate(self) -> Scores:
        """Score the client's best model on its test targets: metric -> (users,) float64."""
        self.run.ready = None
        with turn(self.run.workspace, self.client, 0, self.model):
            return self.client.evaluate("test")


def load_run(path: str | Path, overrides: Mapping[str, object] | None = None) -> Run:
    """Open a finished run; RunError when the folder is none.

    overrides: see `Run`, such as {"bigrec.decode": "retrieve"}.
    """
    return Run(Path(path), overrides)
