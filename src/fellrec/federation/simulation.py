"""A whole federation in one process: clients take turns on one head, one trunk, one tail.

Everything that would cross a network crosses the wire's codec here, and what each client owns is on
disk between its turns. A round reads the state of the round before and nothing else, and every
random draw is keyed by seed, client, round and step; so a run that was killed anywhere goes on from
its last complete round to the same end.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from fellrec.balance import Mixture
from fellrec.config import RunConfig
from fellrec.data.partition import describe
from fellrec.errors import FellrecError, TrainingError, WireError
from fellrec.federation.aggregate import mix_rows
from fellrec.federation.client import Client, Scores, TrainReport, check_finite
from fellrec.federation.coordinator import draw, judge, strategy_for, weigh
from fellrec.federation.files import append_line, finite
from fellrec.federation.observer import Observer, RoundRecord
from fellrec.federation.rows import Rows
from fellrec.federation.store import CLIENT, SERVER, RunState, RunStore, Standing
from fellrec.federation.turns import ClientModel, stored_model, turn
from fellrec.federation.workspace import Shares, Workspace, seeded
from fellrec.models.optimiser import without
from fellrec.models.recommender import Kind
from fellrec.split.ledger import Direction

_METRIC_BYTES = 8  # a loss, a count or a score is one 64-bit number


@dataclass
class _Collected:
    """What the coordinator has of a round so far, in the order of the rows."""

    rows: Rows
    starts: Rows | None
    reports: dict[str, TrainReport] = field(default_factory=dict)
    before: dict[str, float | None] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    server_seconds: dict[str, float] = field(default_factory=dict)


class Simulation:
    """Runs a recipe in a run directory, from wherever that stands."""

    def __init__(
        self,
        config: RunConfig,
        shares: Shares,
        workspace: Workspace,
        path: Path,
        observer: Observer,
    ) -> None:
        self.config = config
        self.shares = shares
        self.workspace = workspace
        self.observer = observer
        self.store = RunStore(path, config.evaluation.keep_rounds)
        self.started: dict[str, Mapping[str, Tensor]] = {}
        self.strategy = strategy_for(config)
        self.clients = {
            name: workspace.client(name, shares.of(number), shares.quotas[number])
            for number, name in enumerate(shares.partition.names)
        }

    def run(self) -> RunState:
        """Go on to the last round, or until every client has stopped; return the final state."""
        state = self.store.resume()
        self.observer.clients(
            describe(self.shares.split, self.shares.partition), self.shares.split.dropped
        )
        while state.round < self.config.train.rounds:
            drawn = draw(
                list(self.clients),
                state.standings,
                self.config.clients.per_round,
                seeded(self.config.seed, "draw", str(state.round)),
            )
            if not drawn:
                self.observer.note("every client has stopped early")
                break
            state = self._round(state, drawn)
        return state

    def test(self, state: RunState) -> dict[str, Scores]:
        """Score every client's best model on its test targets: per-user scores by client.

        A client that never completed a round may still let validation choose how scores are
        weighed, so that a base is scored as what was trained on it is; `started` keeps the choice.
        """
        scores = {}
        for name, client in self.clients.items():
            model = stored_model(self.store, self.workspace, state.round, name, best=True)
            with turn(self.workspace, client, state.round, model) as it:
                if name not in state.standings and client.recommender.choices > 1:
                    self._validate(state.round, client)
                self.observer.scoring(name, "test")
                scores[name] = client.evaluate("test")
            if name not in state.standings:
                self.started[name] = it.finished().private
            self._count(name, state.round, "up", {"metrics": _METRIC_BYTES * len(scores[name])})
        self.workspace.ledger.append_csv(self.store.path / "ledger.csv")
        return scores

    def _round(self, state: RunState, drawn: list[str]) -> RunState:
        t, begun = state.round, time.perf_counter()
        self.observer.round_begins(t, self.config.train.rounds, drawn)
        folder = self.store.begin(t + 1)
        collected = self._collect(t, drawn, folder)
        reports, rows = collected.reports, collected.rows
        mixture = weigh(self.strategy, t, list(reports.values()), rows, collected.starts)
        mixed = Rows(folder / "mixed.f32", len(reports), rows.shapes)
        dropped, reset = mix_rows(rows, mixed, mixture, self.strategy)
        standings, valid = dict(state.standings), {}
        for row, name in enumerate(reports):
            alone = int(mixture.weights[row].count_nonzero()) == 1
            model = self._mixed_model(t, name, mixed.read_row(row), () if alone else reset)
            try:
                valid[name], standings[name] = self._receive(
                    t, name, model, standings.get(name, Standing())
                )
            except (TrainingError, WireError) as error:
                valid[name] = math.nan
                self._leave_out(name, error, collected)
        if all(name in collected.failed for name in reports):
            self._stop(t, collected)
        for name in self.clients:
            if name not in reports or name in collected.failed:
                self.store.carry(t + 1, name)
        for used in (rows, mixed, collected.starts):
            if used is not None:
                used.remove()
        record = RoundRecord(
            round=t,
            reports=reports,
            warmth=dict(zip(reports, mixture.warmth.tolist(), strict=True)),
            spread=mixture.spread,
            before=collected.before,
            valid=valid,
            dropped=dict(zip(reports, dropped.tolist(), strict=True)),
            failed=collected.failed,
            server_seconds=collected.server_seconds,
            seconds=time.perf_counter() - begun,
        )
        self._log(record, mixture)
        state = RunState(t + 1, standings)
        self.store.commit(state)
        self.observer.round_ends(record)
        return state

    def _collect(self, t: int, drawn: list[str], folder: Path) -> _Collected:
        """Let the drawn clients train, one after another."""
        shapes = self._shapes()
        change = self.strategy.space == "change"
        collected = _Collected(
            Rows(folder / "updates.f32", len(drawn), shapes),
            Rows(folder / "starts.f32", len(drawn), shapes) if change else None,
        )
        for name in drawn:
            try:
                self._train(t, name, collected)
            except (TrainingError, WireError) as error:
                self._leave_out(name, error, collected)
        if not collected.reports:
            self._stop(t, collected)
        collected.rows.truncate(len(collected.reports))
        if collected.starts is not None:
            collected.starts.truncate(len(collected.reports))
        return collected

    def _leave_out(self, name: str, error: FellrecError, collected: _Collected) -> None:
        reason = str(error)
        if isinstance(error, WireError):  # the wire refuses what is not finite, and knows no more
            reason = f"client {name}: {error}; if it diverged, lower train.learning_rate"
        collected.failed[name] = reason
        self.observer.note(f"{reason}; the client keeps the model it had")

    @staticmethod
    def _stop(t: int, collected: _Collected) -> NoReturn:
        reason = next(iter(collected.failed.values()))
        raise TrainingError(f"no client completed round {t}: {reason}")

    def _train(self, t: int, name: str, collected: _Collected) -> None:
        """Let one client train; its update becomes the next row, the rest goes to the store."""
        model = stored_model(self.store, self.workspace, t, name)
        before = None
        with turn(self.workspace, self.clients[name], t, model) as it:
            report = it.client.train(t, lambda *now: self.observer.step(name, *now))
            if self.config.evaluation.before_mixing and self.strategy.exchanges:
                before = self._validate(t, it.client)
        trained = it.finished()
        check_finite(name, t, trained.trunk)
        row = len(collected.reports)
        for rows, side in ((collected.starts, model), (collected.rows, trained)):
            if rows is not None:
                tensors = {**side.exchanged, **side.trunk}
                rows.write_row(row, {name: tensors[name] for name in rows.shapes})
        self.store.put(t + 1, CLIENT, name, "private", trained.private)
        self.store.put(t + 1, CLIENT, name, "optimiser", trained.moments)
        self.store.put(t + 1, SERVER, name, "optimiser", trained.trunk_moments)
        collected.reports[name], collected.before[name] = report, before
        collected.server_seconds[name] = it.server_seconds
        self._count(name, t, "up", {"metrics": 2 * _METRIC_BYTES})
        self._count_exchange(name, t, "up", trained.exchanged)

    def _mixed_model(
        self, t: int, name: str, tensors: Mapping[str, Tensor], reset: Iterable[str]
    ) -> ClientModel:
        """Put a client's mixed tensors into the store; moments of re-factored ones start anew.

        Factors that are frozen were not mixed: they are as they were at the start.
        """
        exchanged = self.workspace.initial(Kind.LORA, Kind.DENSE)
        trunk = self.workspace.initial_trunk()
        for part in (exchanged, trunk):
            part.update({key: tensors[key] for key in part.keys() & tensors.keys()})
        self.store.put(t + 1, CLIENT, name, "adapter", exchanged)
        self.store.put(t + 1, SERVER, name, "adapter", trunk)
        if reset:
            for side in (CLIENT, SERVER):
                moments = without(self.store.prepared(t + 1, side, name, "optimiser"), reset)
                self.store.put(t + 1, side, name, "optimiser", moments)
        self._count_exchange(name, t, "down", exchanged)
        private = self.store.prepared(t + 1, CLIENT, name, "private")
        return ClientModel(exchanged, private, trunk)

    def _receive(
        self, t: int, name: str, model: ClientModel, standing: Standing
    ) -> tuple[float, Standing]:
        """Score a client's mixed model before further training, and keep it if it is the best."""
        with turn(self.workspace, self.clients[name], t, model) as it:
            score = self._validate(t, it.client)
        if it.client.recommender.choices > 1:  # what validation chose is part of the model now
            self.store.put(t + 1, CLIENT, name, "private", it.finished().private)
        standing, improved = judge(standing, score, t + 1, self.config.train.patience)
        self.store.keep_best(t + 1, name, improved=improved)
        return score, standing

    def _validate(self, t: int, client: Client) -> float:
        self.observer.scoring(client.name, "validation")
        self._count(client.name, t, "up", {"metrics": _METRIC_BYTES})
        return client.validate(self.config.evaluation.metric)

    def _shapes(self) -> dict[str, torch.Size]:
        """Names and shapes of what is mixed: the client's exchanged tensors, then the trunk's."""
        client = next(iter(self.clients.values()))
        tensors = {**client.exchanged(), **self.workspace.trunk_adapter()}
        return {name: p.shape for name, p in tensors.items() if p.requires_grad}

    def _count(self, name: str, t: int, direction: Direction, parts: Mapping[str, int]) -> None:
        self.workspace.ledger.record_parts(name, t, direction, parts)

    def _count_exchange(
        self, name: str, t: int, direction: Direction, tensors: Mapping[str, Tensor]
    ) -> None:
        """Count the adapter's way between client and coordinator; local training has none.

        What is frozen does not travel: both sides have it from the start.
        """
        if self.strategy.exchanges:
            moving = self._shapes()
            for tensor_name, tensor in tensors.items():
                if tensor_name not in moving:
                    continue
                kind = "lora" if ".lora_" in tensor_name else "dense"
                self.workspace.ledger.record(name, t, direction, kind, 4 * tensor.numel())

    def _log(self, record: RoundRecord, mixture: Mixture) -> None:
        """Append the round to metrics.jsonl, a line per client, and to ledger.csv."""
        for row, (name, report) in enumerate(record.reports.items()):
            line = {
                "round": record.round,
                "client": name,
                "loss": report.loss,
                "examples": report.examples,
                "tokens": report.tokens,
                "steps": report.steps,
                "warmth": record.warmth[name],
                "attention": [round(value, 6) for value in mixture.attention[row].tolist()],
                "weights": [round(value, 6) for value in mixture.weights[row].tolist()],
                "spread": [record.spread.min, record.spread.median, record.spread.max],
                "attention_active": record.spread.active,
                "valid_before_mixing": record.before[name],
                "valid": record.valid[name],
                "energy_dropped": record.dropped[name],
                "seconds": round(report.seconds, 3),
                "waiting_seconds": round(report.waiting, 3),
                "server_seconds": round(record.server_seconds[name], 3),
            }
            append_line(self.store.path / "metrics.jsonl", json.dumps(finite(line)))
        for name, reason in record.failed.items():
            line = {"round": record.round, "client": name, "failed": reason}
            append_line(self.store.path / "metrics.jsonl", json.dumps(line))
        self.workspace.ledger.append_csv(self.store.path / "ledger.csv")
