"""What every peer is asked and judged by: one task, one way to score, one form of result.

A peer is fitted to training interactions alone. What it has fitted scores any histories: those
before validation, by which hyper-parameters are chosen, and those before the test, as a served
model would be asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fellrec.data.interactions import Ragged
from fellrec.errors import ConfigError, DataError
from fellrec.evaluation.ranking import mean_metrics, rank_scores, ranking_metrics

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    S = TypeVar("S", bound=DataclassInstance)

Settings = Mapping[str, int | float | str]
Progress = Callable[[str, int, int], None]
"""Told what is going on, how much of it is done, and of how much."""

_USERS = 512  # scored at a time: memory is one block of scores whatever the number of users


class Fitted(Protocol):
    """A recommender that has been fitted to training interactions."""

    def scores(self, histories: Ragged) -> Tensor:
        """Score every item for every history, oldest item first: (len(histories), items).

        Floating, on the CPU, and the caller's to overwrite.
        """
        ...

    def size(self) -> int:
        """Count the numbers that must be held to score a history."""
        ...


@dataclass(frozen=True, eq=False)
class Task:
    """What a peer learns from and chooses by; test items are not in it.

    Attributes:
        train: histories to learn from, oldest item first.
        valid: what each user took next; rows may be empty.
        items: items in the catalogue.
        metric: such as "ndcg@10"; the higher its mean over users, the better.
        seed: decides all draws.
        progress: told how fitting goes on.
    """

    train: Ragged
    valid: Ragged
    items: int
    metric: str
    seed: int
    progress: Progress = lambda what, done, total: None

    def __post_init__(self) -> None:
        """Raise `DataError` when an item lies outside the catalogue."""
        check_items(self.train, self.items)
        check_items(self.valid, self.items)

    def validate(self, fitted: Fitted) -> float:
        """Return the metric's mean over users that have validation targets.

        Raises `ConfigError` for an unknown metric, `DataError` when no user has such a target.
        """
        kind, _, cut = self.metric.partition("@")
        if kind not in ("recall", "ndcg") or not cut.isdecimal():
            raise ConfigError(f"unknown metric {self.metric!r}: choose recall@K or ndcg@K")
        mean = mean_metrics(judge(fitted, self.train, self.valid, [int(cut)]))[self.metric]
        if np.isnan(mean):
            raise DataError("no user has validation targets to choose by: use another split")
        return mean


@dataclass(frozen=True, eq=False)
class Choice:
    """The best of what was tried.

    fitted: ready to score. valid: its validation score. chosen: its hyper-parameters. tried: all
    that were tried, with their validation scores, in that order.
    """

    fitted: Fitted
    valid: float
    chosen: Settings
    tried: tuple[tuple[Settings, float], ...]


def choose(task: Task, what: str, grid: Sequence[S], fit: Callable[[S], Fitted]) -> Choice:
    """Fit each entry of a grid (dataclasses), keep the best by validation; of equals, the first.

    what: told to the task's progress. Raises as `Task.validate`.
    """
    best: Fitted | None = None
    tried: list[tuple[Settings, float]] = []
    for done, settings in enumerate(grid):
        task.progress(what, done, len(grid))
        fitted = fit(settings)
        valid = task.validate(fitted)
        if best is None or valid > max(score for _, score in tried):
            best, chosen = fitted, len(tried)
        tried.append((asdict(settings), valid))
    task.progress(what, len(grid), len(grid))
    if best is None:
        raise ConfigError(f"{what} has nothing to try: give its grid at least one entry")
    return Choice(best, tried[chosen][1], tried[chosen][0], tuple(tried))


def check_items(histories: Ragged, items: int) -> None:
    """Raise `DataError` when a history holds an item outside the catalogue."""
    values = histories.values
    if values.size and not 0 <= values.min() <= values.max() < items:
        raise DataError(f"a history holds an item outside the catalogue of {items} items")


def recommend(fitted: Fitted, histories: Ragged, k: int) -> NDArray[np.int32]:
    """Return the k best items of each history, best first, (U, k) int32; never one of its own.

    Raises as `evaluation.rank_scores`.
    """
    ranked = np.empty((len(histories), k), dtype=np.int32)
    for first in range(0, len(histories), _USERS):
        users = np.arange(first, min(first + _USERS, len(histories)))
        few = histories.take(users)
        ranked[users] = rank_scores(fitted.scores(few), few, k)
    return ranked


def judge(
    fitted: Fitted, histories: Ragged, targets: Ragged, ks: Iterable[int]
) -> dict[str, NDArray[np.float64]]:
    """Score recommendations for histories against targets: `{"recall@5": (U,), …}`.

    Raises as `evaluation.rank_scores` and `evaluation.ranking_metrics`.
    """
    cuts = list(ks)
    return ranking_metrics(recommend(fitted, histories, max(cuts)), targets, cuts)
