"""One client's part of a round: train on its own histories, and score its own users.

The same code runs in a simulation and in a deployment: a client knows its data, its head and tail,
and a trunk that may be anywhere.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fellrec.data.interactions import Split
from fellrec.data.sampling import few_shot, some_users
from fellrec.errors import TrainingError
from fellrec.evaluation.ranking import mean_metrics, rank_scores, ranking_metrics
from fellrec.federation.steps import Step, steps
from fellrec.models.adapters import take_turns, write
from fellrec.models.optimiser import Optimiser, OptimiserSettings
from fellrec.models.recommender import Batch, Kind, Recommender, Trunk
from fellrec.privacy.draws import Draws
from fellrec.privacy.user_level import UserLevel

Progress = Callable[[int, int, float], None]
Scores = dict[str, npt.NDArray[np.float64]]


@dataclass(frozen=True)
class ClientSettings:
    """How a client trains and scores; see the recipe's [train] and [evaluation].

    in_flight: micro-batches that may be on their way at the same time. samples: examples it trains
    on, drawn once; valid_users, test_users: users it is scored on, drawn once. 0 takes all.
    alternate: rounds train B and A in turn. user_level: steps are private, see there.
    """

    seed: int
    optimiser: OptimiserSettings
    local_epochs: int = 2
    batch_size: int = 16
    micro_batches: int = 1
    in_flight: int = 1
    windows: int = 1
    ks: tuple[int, ...] = (5, 10, 20)
    evaluation_batch: int = 128
    samples: int = 0
    valid_users: int = 0
    test_users: int = 0
    alternate: bool = False
    user_level: UserLevel | None = None


@dataclass(frozen=True)
class TrainReport:
    """What a client tells the coordinator, with its adapter.

    loss: mean over the round's training targets. examples: targets in one epoch. The rest stays in
    the client's log: positions that went through the model, steps, seconds of both sides together,
    seconds spent waiting for the trunk.

    epsilon: what its uploads, this one too, tell of each of its users (`privacy.accounting`), 0
    where that is not bounded. last: whether its budget covers no further round.
    """

    loss: float
    examples: int
    tokens: int
    steps: int
    seconds: float
    waiting: float
    epsilon: float = 0.0
    last: bool = False


class Client:
    """A party with histories of its own.

    name: its id. data: its users. recommender, trunk: the model; a simulation lends one model to
    one client at a time, so `install` comes before anything else. secretly: draws what nobody else
    may draw again, where steps are private.
    """

    def __init__(
        self,
        name: str,
        data: Split,
        recommender: Recommender,
        trunk: Trunk,
        settings: ClientSettings,
        secretly: Draws | None = None,
    ) -> None:
        self.name = name
        self.data = data
        self.recommender = recommender
        self.trunk = trunk
        self.settings = settings
        self.secretly = secretly or Draws.fresh()
        self._moments: Mapping[str, Tensor] = {}
        self._anchors: Mapping[str, Tensor] | None = None
        self.learned_from = (
            few_shot(data.train, settings.samples, self._rng("samples"))
            if settings.samples
            else data.train
        )

    def install(
        self,
        round: int,
        exchanged: Mapping[str, Tensor],
        private: Mapping[str, Tensor],
        moments: Mapping[str, Tensor] | None = None,
        anchors: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Take over a model: exchanged and private tensors, and the optimiser's moments.

        anchors: what a proximal term pulls exchanged tensors towards; None: what they now become.
        """
        self.point(round, 0, 0)
        if self.settings.alternate:
            take_turns(self.recommender.factors(), round)
        write(self.exchanged(), exchanged)
        write(self.private(), private)
        self._moments = moments or {}
        self._anchors = anchors

    def exchanged(self) -> dict[str, nn.Parameter]:
        """The tensors that travel: LoRA factors of head and tail, and dense ones."""
        return self.recommender.parameters_of(Kind.LORA, Kind.DENSE)

    def private(self) -> dict[str, nn.Parameter]:
        """The tensors that never leave."""
        return self.recommender.parameters_of(Kind.PRIVATE)

    def release(self) -> Mapping[str, Tensor]:
        """Hand over the optimiser's state after training, and keep nothing of it.

        Many clients wait for their turn in one process: what each would keep adds up.
        """
        moments, self._moments, self._anchors = self._moments, {}, None
        return moments

    def train(self, round: int, progress: Progress = lambda done, total, loss: None) -> TrainReport:
        """Run the local epochs of a round.

        Raises TrainingError when the loss or what was learned is no number any more, WireError when
        the trunk refuses.
        """
        start, waited = time.perf_counter(), getattr(self.trunk, "seconds", 0.0)
        settings = self.settings
        trained = self.exchanged() | self.private()
        for parameter in trained.values():
            parameter.grad = None  # a client whose training broke off has left some
        anchors = self.exchanged() if self._anchors is None else self._anchors
        optimiser = Optimiser(trained, settings.optimiser, anchors)
        optimiser.load(self._moments)
        done: list[Step] = []
        loss_sum, targets_sum = 0.0, 0
        for step in steps(self, round, optimiser):
            done.append(step)
            loss_sum, targets_sum = loss_sum + step.loss * step.targets, targets_sum + step.targets
            progress(len(done), step.total, step.loss)
        check_finite(self.name, round, trained)
        self._moments = optimiser.state()
        self._training(False)
        return TrainReport(
            loss=loss_sum / max(targets_sum, 1),
            examples=self._examples(done),
            tokens=sum(step.positions for step in done),
            steps=len(done),
            seconds=time.perf_counter() - start,
            waiting=getattr(self.trunk, "seconds", 0.0) - waited,
        )

    def _examples(self, done: Sequence[Step]) -> int:
        """Count an epoch's targets; users where steps are private: more would tell of one."""
        if self.settings.user_level is not None:
            return len(self.learners)
        return sum(step.targets for step in done if step.epoch == 0)

    @property
    def learners(self) -> npt.NDArray[np.int64]:
        """Rows of the histories that there is something to learn from, (n,)."""
        return np.flatnonzero(self.learned_from.lengths() >= 2)

    def begin_epoch(self) -> None:
        """Make the model ready for an epoch of training."""
        self._training(False)
        self.recommender.begin_epoch(self.trunk)
        self._training(True)

    def alone(self, users: npt.NDArray[np.int64], rng: np.random.Generator) -> list[Batch]:
        """Return a batch of its own for each of some rows of the histories, with one window."""
        if not len(users):
            return []
        data = self.learned_from.take(users)
        batches = self.recommender.training_batches(data, len(users), 1, rng)
        return [part for batch in batches for part in batch.micro(len(batch.rows))]

    def epoch(self, round: int, number: int) -> list[Batch]:
        """Return the batches of one of a round's epochs: the same ones every time."""
        return self.recommender.training_batches(
            self.learned_from,
            self.settings.batch_size,
            self.settings.windows,
            self.batch_rng(round, number),
        )

    def batch_rng(self, round: int, number: int) -> np.random.Generator:
        """Return what draws the batches of an epoch."""
        return self._rng("batches", str(round), str(number))

    def evaluate(self, target: Literal["valid", "test"]) -> Scores:
        """Rank the whole catalogue for each user, history masked: metric -> (users,) float64.

        Users without targets, and those that were not drawn, are NaN. Raises TrainingError when the
        model's scores are no numbers.
        """
        return self._evaluate(target, [None])[0]

    def validate(self, metric: str) -> float:
        """Return the mean validation score, with the recommender's best way of weighing scores.

        Where it has several, that one is chosen, of equal ones the first. NaN without targets.
        """
        every = self.recommender.choices
        found = self._evaluate("valid", [None] if every == 1 else range(every))
        means = [mean_metrics(scores)[metric] for scores in found]
        best = max(range(len(means)), key=lambda choice: means[choice])
        if every > 1:
            self.recommender.choose(best)
        return means[best]

    def _evaluate(
        self, target: Literal["valid", "test"], choices: Sequence[int | None]
    ) -> list[Scores]:
        """Score each way of weighing; the model runs once for all of them."""
        self.begin_serving()
        history = self.data.history(target)
        targets = self.data.valid if target == "valid" else self.data.test
        asked = self.scored(target)
        k = max(self.settings.ks)
        ranked = np.full((len(choices), len(self.data), k), -1, dtype=np.int32)
        chosen = history.take(asked)
        for batch in self.recommender.serving_batches(chosen, self.settings.evaluation_batch):
            scores = self.recommender.score(self.trunk, batch, k)
            if scores.isnan().any():
                raise TrainingError(
                    f"client {self.name}: its scores are no numbers; lower train.learning_rate"
                )
            rows = asked[batch.rows]
            for number, choice in enumerate(choices):
                weighed = self.recommender.reweighted(scores, choice)
                last = number == len(choices) - 1  # ranking writes into what it is given
                weighed = weighed if last or weighed is not scores else scores.clone()
                ranked[number, rows] = rank_scores(weighed, history.take(rows), k)
        left_out = np.setdiff1d(np.arange(len(self.data)), asked)
        found = [ranking_metrics(each, targets, self.settings.ks) for each in ranked]
        for values in (values for metrics in found for values in metrics.values()):
            values[left_out] = np.nan
        return found

    def scored(self, target: Literal["valid", "test"]) -> npt.NDArray[np.int64]:
        """Return the users that are scored, as rows of the data: the same ones every time."""
        targets = self.data.valid if target == "valid" else self.data.test
        count = self.settings.valid_users if target == "valid" else self.settings.test_users
        users = np.flatnonzero(targets.lengths() > 0)
        return some_users(users, count, self._rng("scored", target))

    def begin_serving(self) -> None:
        """Make the installed model ready to score."""
        self._training(False)
        self.recommender.begin_serving(self.trunk, self.data.train)

    def _training(self, mode: bool) -> None:
        self.recommender.train(mode)
        self.trunk.train(mode)

    def point(self, round: int, step: int, micro: int) -> None:
        """Tell every stage where training stands."""
        for key in (self.recommender.head.key, self.recommender.tail.key, self.trunk.key):
            key.seed, key.client = self.settings.seed, self.name
            key.round, key.step, key.micro = round, step, micro

    def _rng(self, *names: str) -> np.random.Generator:
        """Return a generator that depends on the seed, the client and `names` alone."""
        kind, *rest = names
        text = "|".join((str(self.settings.seed), kind, self.name, *rest))
        return np.random.default_rng(
            int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")
        )


def check_finite(client: str, round: int, tensors: Mapping[str, Tensor]) -> None:
    """Raise TrainingError when a client's tensors hold a value that is NaN or infinite."""
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise TrainingError(
                f"client {client}: {name} is not finite after round {round}; lower "
                f"train.learning_rate"
            )
