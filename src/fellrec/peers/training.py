"""How SASRec is trained: epochs over windows of the histories, until validation says enough.

A learner holds the histories of one place: all users' for central training, or one client's. All
its draws are keyed by seed, client and how far it is, so that a federation of one client is central
training, bit for bit.

Departure from the paper: it learns from the last items of each history alone; here all of a long
history is learned from, in windows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fellrec.data.interactions import Ragged
from fellrec.errors import ConfigError, TrainingError
from fellrec.models.batching import like_lengths
from fellrec.peers.peer import Choice, Settings, Task
from fellrec.peers.sasrec import SIZE, SasRec, SasRecSettings, pad


@dataclass(frozen=True)
class TrainingSettings:
    """How a learner steps.

    learning_rate: of Adam. batch_size: windows in a step. clip: largest norm of the gradient.
    """

    learning_rate: float = 1e-3
    batch_size: int = 32
    clip: float = 5.0


@dataclass(frozen=True)
class Patience:
    """most: epochs (or rounds) at most. patience: stop after so many without a better score."""

    most: int = 60
    patience: int = 6


TRAINING = TrainingSettings()
EPOCHS = Patience()


class Learner:
    """Trains a model on the histories of one place, with an Adam that it keeps.

    Learners may take turns with one model. client: a number; learners of another draw otherwise.
    """

    def __init__(
        self,
        model: SasRec,
        histories: Ragged,
        settings: TrainingSettings,
        seed: int,
        client: int = 0,
    ) -> None:
        self.model = model
        self.histories = histories
        self.settings = settings
        self._seed = seed
        self._client = client
        self._epochs = 0
        self._steps = 0
        self._adam = torch.optim.Adam(model.parameters(), settings.learning_rate, fused=True)

    def examples(self) -> int:
        """Count what an epoch predicts: every item but each history's first."""
        return int((self.histories.lengths() - 1).clip(0).sum())

    def epoch(self) -> None:
        """Predict each of the examples once.

        Raises `TrainingError` when a loss is not finite.
        """
        rng = np.random.default_rng([self._seed, self._client, self._epochs])
        self._epochs += 1
        starts, stops = windows(self.histories, self.model.settings.history, rng)
        self.model.train()
        for batch in like_lengths(stops - starts, self.settings.batch_size, rng):
            self._step(starts[batch], stops[batch])

    def _step(self, starts: NDArray[np.int64], stops: NDArray[np.int64]) -> None:
        key = self.model.key
        key.seed, key.client, key.step = self._seed, str(self._client), self._steps
        self._steps += 1
        inputs, lengths = pad(self.histories.values, starts, stops - 1)
        following, _ = pad(self.histories.values, starts + 1, stops)
        valid = torch.arange(inputs.shape[1]) < lengths[:, None]
        loss = self.model.loss(inputs, lengths, following[valid])
        if not torch.isfinite(loss):
            raise TrainingError("SASRec diverged: lower its learning rate")
        self._adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        self._adam.step()


def windows(
    histories: Ragged, history: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Cut histories into windows of 2 … `history` + 1 items: (w,) starts and stops in their values.

    Every item but a history's first is a target in exactly one window, which begins with the last
    target of the window before. Where a history needs several, the cuts are drawn, so that over
    epochs an item is predicted from contexts of all lengths.
    """
    lengths = histories.lengths()
    rows = np.flatnonzero(lengths >= 2)
    targets = lengths[rows] - 1
    # So many targets does the first window lack.
    lacking = np.where(targets > history, rng.integers(0, history, len(rows)), 0)
    pieces = -(-(targets + lacking) // history)
    row = np.repeat(np.arange(len(rows)), pieces)
    piece = np.arange(len(row)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    first = piece * history - lacking[row]
    begin = histories.offsets[rows][row]
    starts = begin + first.clip(0)
    stops = begin + np.minimum(first + history, targets[row]) + 1
    return starts, stops


def train_best(
    task: Task,
    what: str,
    model: SasRec,
    advance: Callable[[], None],
    limits: Patience,
    settings: Mapping[str, int | float | str],
) -> Choice:
    """Advance by an epoch or a round until validation stops rising; the model ends at its best.

    what: "epochs" or "rounds". settings: all other hyper-parameters. Their number is what is
    chosen. Raises as `Task.validate`, `ConfigError` for limits below 1.
    """
    if min(limits.most, limits.patience) < 1:
        raise ConfigError(f"{what} and patience of SASRec must be 1 or more, not {limits}")
    best, values = 0, model.values()
    tried: list[tuple[Settings, float]] = []
    for done in range(limits.most):
        task.progress(what, done, limits.most)
        advance()
        valid = task.validate(model)
        if not tried or valid > tried[best][1]:
            best, values = done, model.values()
        tried.append(({**settings, what: done + 1}, valid))
        if done - best >= limits.patience:
            break
    task.progress(what, limits.most, limits.most)
    model.load(values)
    return Choice(model, tried[best][1], tried[best][0], tuple(tried))


def sasrec(
    task: Task,
    size: SasRecSettings = SIZE,
    training: TrainingSettings = TRAINING,
    limits: Patience = EPOCHS,
) -> Choice:
    """Train one SASRec on all users' histories; validation chooses the number of epochs.

    Raises as `train_best`, `TrainingError` when it diverges.
    """
    model = SasRec(task.items, size, torch.Generator().manual_seed(task.seed))
    learner = Learner(model, task.train, training, task.seed)
    settings = {**asdict(size), **asdict(training)}
    return train_best(task, "epochs", model, learner.epoch, limits, settings)
