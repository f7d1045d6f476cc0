"""SASRec's training: which windows, what it learns, where it stops, and that a seed decides it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fellrec.data.interactions import Ragged
from fellrec.errors import ConfigError, TrainingError
from fellrec.peers.peer import judge
from fellrec.peers.sasrec import SasRec, SasRecSettings
from fellrec.peers.training import Learner, Patience, TrainingSettings, sasrec, windows
from tests.peers.tastes import CHAIN, chain, task_of

SIZE = SasRecSettings(width=16, blocks=1, heads=2, dropout=0.2, history=8)
TRAINING = TrainingSettings(learning_rate=0.01, batch_size=16)


@given(
    lengths=st.lists(st.integers(0, 40), max_size=8),
    history=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_every_item_but_the_first_is_a_target_once(
    lengths: list[int], history: int, seed: int
) -> None:
    histories = Ragged.from_rows([list(range(length)) for length in lengths])
    starts, stops = windows(histories, history, np.random.default_rng(seed))
    assert ((stops - starts >= 2) & (stops - starts <= history + 1)).all()
    rows = histories.rows()
    assert (rows[starts] == rows[stops - 1]).all()
    targets = [
        place for start, stop in zip(starts, stops, strict=True) for place in range(start + 1, stop)
    ]
    assert sorted(targets) == np.flatnonzero(histories.values > 0).tolist()


def test_cuts_are_drawn_where_a_history_is_long() -> None:
    histories = Ragged.from_rows([list(range(9)), list(range(30))])
    rng = np.random.default_rng(0)
    cuts = {tuple(windows(histories, 8, rng)[0].tolist()) for _ in range(100)}
    assert {starts[0] for starts in cuts} == {0}
    assert {starts[2] for starts in cuts} == {9 + first for first in range(1, 9)}


def test_learns_what_follows() -> None:
    split = chain()
    choice = sasrec(task_of(split, CHAIN, "recall@1"), SIZE, TRAINING, Patience(6, 6))
    assert choice.valid == 1.0
    assert judge(choice.fitted, split.history("test"), split.test, [1])["recall@1"].mean() == 1.0


def test_the_best_epoch_is_kept() -> None:
    task = task_of(chain(20), CHAIN)
    choice = sasrec(task, SIZE, TRAINING, Patience(most=12, patience=3))
    scores = [valid for _, valid in choice.tried]
    best = scores.index(max(scores))
    assert choice.valid == scores[best] == task.validate(choice.fitted)
    assert choice.chosen == choice.tried[best][0]
    assert choice.chosen["epochs"] == best + 1
    assert len(scores) == min(12, best + 4)

    # So many epochs by hand give the same weights, bit for bit.
    model = SasRec(CHAIN, SIZE, torch.Generator().manual_seed(task.seed))
    learner = Learner(model, task.train, TRAINING, task.seed)
    for _ in range(best + 1):
        learner.epoch()
    assert isinstance(choice.fitted, SasRec)
    found = choice.fitted.values()
    assert all(torch.equal(found[name], value) for name, value in model.values().items())


def test_stops_when_nothing_rises() -> None:
    # Nothing can be learned at no rate: the first epoch is the best, and patience ends it.
    choice = sasrec(
        task_of(chain(20), CHAIN), SIZE, replace(TRAINING, learning_rate=0.0), Patience(9, 2)
    )
    assert [settings["epochs"] for settings, _ in choice.tried] == [1, 2, 3]
    assert choice.chosen["epochs"] == 1


def test_the_seed_decides_whatever_others_draw() -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed * 7 + 1)
        task = task_of(chain(20), CHAIN, seed=seed)
        fitted = sasrec(task, SIZE, TRAINING, Patience(2)).fitted
        assert isinstance(fitted, SasRec)
        return fitted.items.weight.detach()

    with torch.random.fork_rng():
        first = weights(1)
        torch.rand(3)
        assert torch.equal(weights(1), first)
        assert not torch.equal(weights(2), first)


def test_examples_are_counted() -> None:
    model = SasRec(CHAIN, SIZE, torch.Generator().manual_seed(0))
    learner = Learner(model, Ragged.from_rows([[1], [], [1, 2, 3], [4, 5]]), TRAINING, 0)
    assert learner.examples() == 3


def test_nothing_to_learn_changes_nothing() -> None:
    model = SasRec(CHAIN, SIZE, torch.Generator().manual_seed(0))
    before = model.values()
    Learner(model, Ragged.from_rows([[1], [2]]), TRAINING, 0).epoch()
    assert all(torch.equal(before[name], value) for name, value in model.values().items())


def test_refusals() -> None:
    task = task_of(chain(20), CHAIN)
    with pytest.raises(TrainingError, match="lower its learning rate"):
        sasrec(task, SIZE, replace(TRAINING, learning_rate=1e30))
    for limits in (Patience(0, 1), Patience(1, 0)):
        with pytest.raises(ConfigError, match="must be 1 or more"):
            sasrec(task, SIZE, TRAINING, limits)
