"""What all peers share: choosing by validation, ranking without the history, one scoring."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from fellrec.data.interactions import Ragged
from fellrec.errors import ConfigError, DataError
from fellrec.peers.peer import Task, choose, judge, recommend
from fellrec.peers.popular import popularity


@dataclass(frozen=True)
class Liking:
    """Scores `favourite` highest, then items by their index, lowest first."""

    favourite: int
    items: int = 6

    def scores(self, histories: Ragged) -> Tensor:
        row = -torch.arange(self.items, dtype=torch.float64)
        row[self.favourite] = 1
        return row.repeat(len(histories), 1)

    def size(self) -> int:
        return 1


TRAIN = Ragged.from_rows([[0], [1], [2]])
TASK = Task(TRAIN, Ragged.from_rows([[4], [4], []]), 6, "recall@1", 0)


def test_the_best_by_validation_is_chosen_and_of_equals_the_first() -> None:
    told = []
    task = Task(TRAIN, TASK.valid, 6, "recall@1", 0, lambda *news: told.append(news))
    grid = [Liking(3), Liking(4, 6), Liking(4, 6)]
    choice = choose(task, "toy", grid, lambda settings: settings)
    assert choice.fitted is grid[1]
    assert (choice.valid, choice.chosen) == (1.0, {"favourite": 4, "items": 6})
    assert [valid for _, valid in choice.tried] == [0.0, 1.0, 1.0]
    assert told == [("toy", done, 3) for done in range(4)]


def test_a_history_is_never_recommended() -> None:
    histories = Ragged.from_rows([[4], [0, 1], [4, 0, 5, 1, 2]])
    found = recommend(Liking(4), histories, 3)
    assert found.tolist() == [[0, 1, 2], [4, 2, 3], [3, -1, -1]]


def test_many_users_are_scored_as_few() -> None:
    histories = Ragged.from_rows([[user % 6] for user in range(1100)])
    found = recommend(Liking(4), histories, 2)
    np.testing.assert_array_equal(found[6:], found[:-6])
    assert len(found) == 1100


def test_judged_as_by_hand() -> None:
    found = judge(Liking(4), TRAIN, Ragged.from_rows([[1], [3], []]), (1, 3))
    np.testing.assert_allclose(found["recall@1"], [0, 0, math.nan])
    np.testing.assert_allclose(found["ndcg@3"], [1 / math.log2(3), 0, math.nan])


def test_popularity_tries_one_thing() -> None:
    # Counts are equal, so the order is that of the index: user 0 gets 1, users 1 and 2 get 0.
    choice = popularity(Task(TRAIN, Ragged.from_rows([[1], [4], []]), 6, "recall@1", 0))
    assert (choice.valid, choice.chosen, choice.tried) == (0.5, {}, (({}, 0.5),))
    assert choice.fitted.size() == 6


def test_refusals() -> None:
    for metric in ("mrr@10", "ndcg", "ndcg@x"):
        with pytest.raises(ConfigError, match=r"choose recall@K or ndcg@K"):
            Task(TRAIN, TASK.valid, 6, metric, 0).validate(Liking(4))
    with pytest.raises(DataError, match="no user has validation targets"):
        Task(TRAIN, Ragged.from_rows([[], [], []]), 6, "ndcg@1", 0).validate(Liking(4))
    with pytest.raises(ConfigError, match="nothing to try"):
        choose(TASK, "toy", list[Liking](), lambda settings: settings)
