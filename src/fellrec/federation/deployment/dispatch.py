"""What a coordinator sends to clients on machines of their own, and what it makes of the answers.

It knows no engine: `flower` carries the orders. A client gets its own adapter's label, its own
mixture, its own token; the trunk's part of both is settled with the trunk directly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

import fellrec
from fellrec.config import RunConfig
from fellrec.data.sources import known_config
from fellrec.errors import FellrecError, RunError, TrainingError
from fellrec.federation.client import TrainReport
from fellrec.federation.deployment.orders import (
    Failure,
    Hello,
    Introduction,
    Placed,
    Receive,
    Report,
    Score,
    Test,
    TestScores,
    Train,
)
from fellrec.federation.deployment.roll import Roll, check_adapter
from fellrec.federation.deployment.trunks import Trunks
from fellrec.federation.members import Mixed, Start, Trained
from fellrec.federation.recommenders import outline_part
from fellrec.federation.settings import lora_settings
from fellrec.federation.store import CLIENT, SERVER, RunState, RunStore, Standing
from fellrec.models.adapters import attach
from fellrec.models.bases import parse_config
from fellrec.models.stages import Stage
from fellrec.split.service.messages import Message

Tensors = Mapping[str, Tensor]
Parcel = tuple[Placed, Tensors]
Answer = tuple[Message, Tensors]


@dataclass(frozen=True)
class Terms:
    """What every order says. run: the run's id. recipe: as TOML."""

    run: str
    recipe: str

    @classmethod
    def of(cls, run: str, config: RunConfig) -> Terms:
        """Write a recipe down."""
        return cls(run, config.to_toml())

    def fields(self) -> dict[str, Any]:
        """Return the fields that all orders share."""
        return {"run": self.run, "recipe": self.recipe, "version": fellrec.__version__}

    def hello(self) -> Hello:
        """Ask a client who it is."""
        return Hello(**self.fields())


def trunk_outline(config: RunConfig) -> Stage:
    """Make the shapes of a recipe's trunk, with its adapter; of the base its configuration does."""
    architecture = parse_config(known_config(config.model.base), config.model.base)
    stage = outline_part(config, architecture, "trunk")
    attach(stage, lora_settings(config), config.seed)
    return stage


class Dispatch:
    """Writes orders and reads answers.

    trunks: None where clients hold all blocks. store: the run directory, with the coordinator's
    copies.
    """

    def __init__(
        self,
        config: RunConfig,
        terms: Terms,
        roll: Roll,
        begun: Start,
        trunks: Trunks | None,
        store: RunStore,
    ) -> None:
        self.names = roll.names
        self.begun = begun
        self.trunks = trunks
        self._config = config
        self._terms = terms
        self._roll = roll
        self._store = store
        self._held = {name: set(told.held) for name, told in roll.told.items()}

    def train(self, state: RunState, name: str) -> Parcel:
        """Order a local round. Raises WireError when no trunk takes the client."""
        label = state.standings.get(name, Standing()).label
        placed = self._place(name, state.round, label, "train", state.round)
        return Train(**placed), self._own(name, state.round, label, "adapter")

    def trained(self, t: int, name: str, answer: Answer) -> Trained | FellrecError:
        """Read what came of it, and take the trunk's part from there."""
        report, tensors = answer
        if isinstance(report, Failure):
            return self._failed(name, report)
        try:
            if not isinstance(report, Report) or not _possible(report):
                raise TrainingError(f"client {name}: its answer to the round is no report")
            own = {n: each for n, each in self.begun.exchanged.items() if n in self.begun.moving}
            check_adapter(f"client {name}", tensors, own)
            tokens, steps, seconds = 0, 0, 0.0
            trunk: Tensors = {}
            if self.trunks is not None:
                counted, trunk = self.trunks.collect(name, t)
                tokens, steps, seconds = counted.positions, counted.steps, counted.seconds
        except FellrecError as error:
            return error
        told = TrainReport(
            report.loss,
            report.examples,
            tokens,
            steps,
            math.nan,
            math.nan,
            report.epsilon,
            report.last,
        )
        before = report.before if report.scored else None
        return Trained.of(told, before, tensors, trunk, self.begun, seconds)

    def receive(self, t: int, name: str, mixed: Mixed) -> Parcel:
        """Hand a client its mixture, and its trunk the other part.

        Raises WireError when the trunk can't take it.
        """
        standing = mixed.standing
        if self.trunks is not None:
            self.trunks.install(name, t + 1, mixed)
        order = Receive(
            **self._place(name, t, standing.label, "serve", t, trunk_label=t + 1),
            reset=[each for each in mixed.reset if each in mixed.exchanged],
            scored=standing.best_score is not None,
            best_score=standing.best_score or 0.0,
            best_round=standing.best_round,
            stale=standing.stale,
            stopped=standing.stopped,
        )
        moving_now = self.begun.moving
        return order, {n: each for n, each in mixed.exchanged.items() if n in moving_now}

    def scored(self, t: int, name: str, answer: Answer) -> float | FellrecError:
        """Read a mixture's validation score."""
        score, _ = answer
        if isinstance(score, Failure):
            return self._failed(name, score)
        if not isinstance(score, Score) or not (math.isnan(score.score) or _share(score.score)):
            return TrainingError(f"client {name}: its answer to the mixture is no score")
        self._held[name].add(t + 1)
        return score.score

    def test(self, state: RunState, name: str) -> Parcel:
        """Order the last scores. Raises WireError when no trunk takes the client."""
        label = state.standings.get(name, Standing()).label
        placed = self._place(name, state.round, label, "serve", state.round, best=label > 0)
        return Test(**placed), self._own(name, state.round, label, "best_adapter")

    def tested(self, name: str, answer: Answer) -> TestScores | FellrecError:
        """Read a client's test scores."""
        scores, _ = answer
        if isinstance(scores, Failure):
            return self._failed(name, scores)
        ks, most = self._config.evaluation.ks, self._roll.told[name].test_users
        names = {f"{metric}@{k}" for metric in ("recall", "ndcg") for k in ks}
        if not isinstance(scores, TestScores) or scores.metrics.keys() != names:
            return TrainingError(f"client {name}: its answer to the test is no score")
        if scores.scored > most or (
            scores.scored and not all(map(_share, scores.metrics.values()))
        ):
            return TrainingError(f"client {name}: its test scores can't be")
        return scores

    def rejoined(self, told: Introduction, start: Tensors) -> None:
        """Take note of what a client that came anew still holds.

        Raises ConfigError for one that is not on the roll, or no longer agrees with it.
        """
        self._roll.check(told, start)
        self._held[told.client] = set(told.held)

    def _place(
        self,
        name: str,
        t: int,
        label: int,
        mode: Any,
        stored: int,
        *,
        trunk_label: int | None = None,
        best: bool = False,
    ) -> dict[str, Any]:
        """Say where a client works; stored: the round whose files are the coordinator's copy."""
        address, token = "", ""
        if self.trunks is not None:
            address, token = self.trunks.let_in(
                name,
                t,
                label if trunk_label is None else trunk_label,
                mode,
                lambda: self._copy(stored, SERVER, name, "best_adapter" if best else "adapter"),
                best=best,
            )
        quota = self._roll.quotas[name]
        return {
            **self._terms.fields(),
            "round": t,
            "label": label,
            "samples": quota.samples,
            "valid_users": quota.valid_users,
            "test_users": quota.test_users,
            "trunk": address,
            "token": token,
        }

    def _own(self, name: str, stored: int, label: int, file: str) -> Tensors:
        """Return the coordinator's copy of a client's adapter where the client has lost its own."""
        if not label or label in self._held[name]:
            return {}
        self._held[name].add(label)
        return self._copy(stored, CLIENT, name, file)

    def _copy(self, round: int, side: str, name: str, file: str) -> Tensors:
        found = self._store.tensors(round, side, name, file)
        if found is None:
            raise RunError(f"the run directory lacks the {file} of client {name}; it is damaged")
        return found

    def _failed(self, name: str, failure: Failure) -> FellrecError:
        if failure.kind == "missing":
            self._held[name].clear()
        return failure.error(name)


def _possible(report: Report) -> bool:
    """Whether a report can be true."""
    scored = not report.scored or math.isnan(report.before) or _share(report.before)
    return math.isfinite(report.loss) and scored and report.epsilon >= 0


def _share(score: float) -> bool:
    """Whether a number can be a recall or an NDCG."""
    return 0 <= score <= 1
