"""The round loop: collect what clients learned, mix it, send it back, keep the best, save.

It sees adapters, mean losses, example counts and aggregate scores; no history, no user. A round
reads the state of the round before and nothing else, so that a run which was killed anywhere goes
on from its last complete round to the same end.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from torch import Tensor

from fellrec.balance import Mixture
from fellrec.config import RunConfig
from fellrec.errors import FellrecError, TrainingError, WireError
from fellrec.federation.aggregate import mix_rows
from fellrec.federation.client import TrainReport
from fellrec.federation.decisions import draw, judge, strategy_for, weigh
from fellrec.federation.files import append_line, finite
from fellrec.federation.members import Members, Mixed, Start, Trained
from fellrec.federation.observer import Observer, RoundRecord
from fellrec.federation.rows import Rows
from fellrec.federation.store import CLIENT, SERVER, RunState, RunStore, Standing
from fellrec.federation.workspace import seeded
from fellrec.split.ledger import Direction, Ledger

METRIC_BYTES = 8  # a loss, a count or a score is one 64-bit number


@dataclass
class _Collected:
    """What the coordinator has of a round so far, in the order of the rows."""

    rows: Rows
    starts: Rows | None
    reports: dict[str, TrainReport] = field(default_factory=dict)
    before: dict[str, float | None] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    server_seconds: dict[str, float] = field(default_factory=dict)


class Coordinator:
    """Runs a recipe's rounds in a run directory, from wherever that stands.

    ledger: where the adapters' and the metrics' bytes are counted.
    """

    def __init__(
        self,
        config: RunConfig,
        members: Members,
        store: RunStore,
        ledger: Ledger,
        observer: Observer,
    ) -> None:
        self.config = config
        self.members = members
        self.store = store
        self.ledger = ledger
        self.observer = observer
        self.strategy = strategy_for(config)

    def run(self, state: RunState) -> RunState:
        """Go on to the last round, or until every client has stopped; return the final state."""
        start = self.members.start() if state.round < self.config.train.rounds else None
        while start is not None and state.round < self.config.train.rounds:
            drawn = draw(
                self.members.names,
                state.standings,
                self.config.clients.per_round,
                seeded(self.config.seed, "draw", str(state.round)),
            )
            if not drawn:
                self.observer.note("every client has stopped early")
                break
            state = self._round(state, drawn, start)
        return state

    def _round(self, state: RunState, drawn: list[str], start: Start) -> RunState:
        t, begun = state.round, time.perf_counter()
        self.observer.round_begins(t, self.config.train.rounds, drawn)
        folder = self.store.begin(t + 1)
        collected = self._collect(t, drawn, start, folder)
        reports, rows = collected.reports, collected.rows
        mixture = weigh(self.strategy, t, list(reports.values()), rows, collected.starts)
        mixed = Rows(folder / "mixed.f32", len(reports), rows.shapes)
        dropped, reset = mix_rows(rows, mixed, mixture, self.strategy)
        standings, valid = dict(state.standings), {}
        parts = self._mixtures(t, state, start, mixed, mixture, list(reports), sorted(reset))
        for name, score in self.members.receive(t, parts):
            if isinstance(score, FellrecError):
                valid[name] = math.nan
                self._leave_out(name, score, collected)
                continue
            valid[name] = score
            self._count_metrics(name, t, 1)
            standing = standings.get(name, Standing())
            standings[name], improved = judge(standing, score, t + 1, self.config.train.patience)
            self.store.keep_best(t + 1, name, improved=improved)
        if all(name in collected.failed for name in reports):
            self._stop(t, collected)
        for name in self.members.names:
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

    def _collect(self, t: int, drawn: list[str], start: Start, folder: Path) -> _Collected:
        """Let the drawn clients train; what each learned becomes a row."""
        shapes = start.shapes()
        change = self.strategy.space == "change"
        collected = _Collected(
            Rows(folder / "updates.f32", len(drawn), shapes),
            Rows(folder / "starts.f32", len(drawn), shapes) if change else None,
        )
        for name, answer in self.members.train(t, drawn):
            if isinstance(answer, FellrecError):
                self._leave_out(name, answer, collected)
            else:
                self._take(t, name, answer, start, collected)
        if not collected.reports:
            self._stop(t, collected)
        collected.rows.truncate(len(collected.reports))
        if collected.starts is not None:
            collected.starts.truncate(len(collected.reports))
        return collected

    def _take(
        self, t: int, name: str, trained: Trained, start: Start, collected: _Collected
    ) -> None:
        row = len(collected.reports)
        collected.rows.write_row(row, trained.tensors)
        if collected.starts is not None:
            begun = self._begun(t, name, start)
            collected.starts.write_row(row, {key: begun[key] for key in collected.starts.shapes})
        collected.reports[name], collected.before[name] = trained.report, trained.before
        collected.server_seconds[name] = trained.server_seconds
        self._count_metrics(name, t, 2)
        if trained.before is not None:
            self._count_metrics(name, t, 1)
        self._count_exchange(name, t, "up", start)

    def _begun(self, t: int, name: str, start: Start) -> dict[str, Tensor]:
        """Return what a client began the round with."""
        exchanged = self.store.tensors(t, CLIENT, name, "adapter")
        trunk = self.store.tensors(t, SERVER, name, "adapter")
        return {**(exchanged or start.exchanged), **(trunk or start.trunk)}

    def _mixtures(
        self,
        t: int,
        state: RunState,
        start: Start,
        mixed: Rows,
        mixture: Mixture,
        names: Sequence[str],
        reset: Sequence[str],
    ) -> Iterator[tuple[str, Mixed]]:
        """Store each client's mixed tensors, and hand them on; what is frozen is as at the start.

        Moments of re-factored tensors start anew, but for a client that took nothing from others.
        """
        for row, name in enumerate(names):
            tensors = mixed.read_row(row)
            exchanged, trunk = dict(start.exchanged), dict(start.trunk)
            for part in (exchanged, trunk):
                part.update({key: tensors[key] for key in part.keys() & tensors.keys()})
            self.store.put(t + 1, CLIENT, name, "adapter", exchanged)
            self.store.put(t + 1, SERVER, name, "adapter", trunk)
            self._count_exchange(name, t, "down", start)
            alone = int(mixture.weights[row].count_nonzero()) == 1
            standing = state.standings.get(name, Standing())
            yield name, Mixed(exchanged, trunk, () if alone else reset, standing)

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

    def _count_metrics(self, name: str, t: int, metrics: int) -> None:
        self.ledger.record(name, t, "up", "metrics", metrics * METRIC_BYTES)

    def _count_exchange(self, name: str, t: int, direction: Direction, start: Start) -> None:
        """Count the adapter's way between client and coordinator; local training has none.

        What is frozen does not travel: both sides have it from the start.
        """
        if not self.strategy.exchanges:
            return
        for tensor_name, tensor in start.exchanged.items():
            if tensor_name in start.moving:
                kind = "lora" if ".lora_" in tensor_name else "dense"
                self.ledger.record(name, t, direction, kind, 4 * tensor.numel())

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
        self.ledger.append_csv(self.store.path / "ledger.csv")
