"""One round: collect what clients learned, mix it, judge what came of it, save.

The stages are called in order, by whoever brings the answers: a loop in one process, or an engine
that sends messages between them. A round reads the state of the round before and nothing else, so
that a run which was killed anywhere goes on from its last complete round to the same end.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from torch import Tensor

from fellrec.balance import Mixture, Strategy
from fellrec.config import RunConfig
from fellrec.errors import FellrecError, TrainingError, WireError
from fellrec.federation.aggregate import mix_rows
from fellrec.federation.client import TrainReport
from fellrec.federation.decisions import judge, weigh
from fellrec.federation.members import Mixed, Start, Trained
from fellrec.federation.observer import Observer, RoundRecord
from fellrec.federation.rows import Rows
from fellrec.federation.screening import Screening
from fellrec.federation.store import CLIENT, SERVER, RunState, RunStore, Standing
from fellrec.files import append_line, finite
from fellrec.split.ledger import Direction, Ledger

METRIC_BYTES = 8  # a loss, a count or a score is one 64-bit number


@dataclass(frozen=True)
class Books:
    """Where a round is written. ledger: counts the adapters' and the metrics' bytes."""

    store: RunStore
    ledger: Ledger
    observer: Observer


class Round:
    """A round in the making: `collect`, then `finish`.

    state: as the round before left it. names: all clients. drawn: those that take part.
    """

    def __init__(
        self,
        config: RunConfig,
        strategy: Strategy,
        books: Books,
        start: Start,
        state: RunState,
        names: list[str],
        drawn: list[str],
    ) -> None:
        self.t = state.round
        self.drawn = drawn
        self._config = config
        self._strategy = strategy
        self._store, self._ledger, self._observer = books.store, books.ledger, books.observer
        self._start = start
        self._state = state
        self._names = names
        self._begun = time.perf_counter()
        self._reports: dict[str, TrainReport] = {}
        self._before: dict[str, float | None] = {}
        self._failed: dict[str, str] = {}
        self._spent: dict[str, float] = {}
        self._server_seconds: dict[str, float] = {}
        self._observer.round_begins(self.t, config.train.rounds, drawn)
        folder, shapes = self._store.begin(self.t + 1), start.shapes()
        self._rows = Rows(folder / "updates.f32", len(drawn), shapes)
        change = strategy.space == "change"
        self._starts = Rows(folder / "starts.f32", len(drawn), shapes) if change else None
        self._mixed = Rows(folder / "mixed.f32", len(drawn), shapes)
        self._screening = Screening(config.robust, self._begun_with)

    def collect(
        self, answers: Iterable[tuple[str, Trained | FellrecError]]
    ) -> Iterator[tuple[str, Mixed]]:
        """Take what clients learned, in the order in which they were drawn, and mix it.

        Returns each client's own mixture, stored when it is asked for. Raises TrainingError when
        fewer clients trained than `clients.minimum`.
        """
        for name, answer in answers:
            failed = answer if isinstance(answer, FellrecError) else self._take(name, answer)
            if failed is not None:
                self._leave_out(name, failed)
        self._screen()
        reports = list(self._reports.values())
        mixture = weigh(self._strategy, self.t, reports, self._rows, self._starts)
        self.mixture, self._found = self._screening.apply(mixture, self._rows)
        for note in self._found.notes:
            self._observer.note(note)
        self._dropped, reset = mix_rows(
            self._rows, self._mixed, self.mixture, self._strategy, self._found.trimmed
        )
        return self._mixtures(self.mixture, sorted(reset))

    def finish(self, scores: Iterable[tuple[str, float | FellrecError]]) -> RunState:
        """Take the validation scores of the mixed models, save the round, return the new state.

        Raises TrainingError when fewer clients completed the round than `clients.minimum`.
        """
        standings, valid = dict(self._state.standings), {}
        for name, score in scores:
            if isinstance(score, FellrecError):
                valid[name] = math.nan
                self._leave_out(name, score)
                continue
            valid[name] = score
            self._count_metrics(name, 1)
            standing, patience = standings.get(name, Standing()), self._config.train.patience
            judged, improved = judge(standing, score, self.t + 1, patience)
            last = self._reports[name].last
            standings[name] = replace(judged, stopped=judged.stopped or last)
            self._store.keep_best(self.t + 1, name, improved=improved)
        self._check_enough(len(self._reports.keys() - self._failed.keys()))
        for name in self._names:
            if name not in self._reports or name in self._failed:
                self._store.carry(self.t + 1, name)
        for rows in (self._rows, self._mixed, self._starts):
            if rows is not None:
                rows.remove()
        record = self._record(valid)
        self._log(record)
        sent = dict(self._state.contributed)
        for name in self._spent:
            sent[name] = sent.get(name, 0) + 1
        state = RunState(self.t + 1, standings, contributed=sent)
        self._store.commit(state)
        self._observer.round_ends(record)
        return state

    def _take(self, name: str, trained: Trained) -> FellrecError | None:
        """Keep what a client sent; return why not, where it can't be mixed."""
        row = len(self._reports)
        self._spent[name] = trained.report.epsilon
        self._rows.write_row(row, trained.tensors)
        self._count_metrics(name, 2 if trained.before is None else 3)
        self._count_exchange(name, "up")
        # Where nothing is exchanged nobody can be harmed, and nothing is looked at.
        refused = self._screening.admit(name, trained) if self._strategy.exchanges else None
        if refused is not None:
            return refused
        if self._starts is not None:
            begun = self._begun_with(name)
            self._starts.write_row(row, {key: begun[key] for key in self._starts.shapes})
        if trained.kept:
            self._store.put(self.t + 1, SERVER, name, "adapter", trained.kept)
        self._reports[name], self._before[name] = trained.report, trained.before
        self._server_seconds[name] = trained.server_seconds
        return None

    def _screen(self) -> None:
        """Leave out clients whose changes are beyond measure, and shorten those that are long.

        Raises TrainingError when too few are left.
        """
        order = list(self._reports)
        for name, error in self._screening.refuse().items():
            for kept in (self._reports, self._before, self._server_seconds):
                del kept[name]
            self._leave_out(name, error)
        self._check_enough(len(self._reports))
        rows = [order.index(name) for name in self._reports]
        for each in (self._rows, self._starts):
            if each is not None:
                each.keep(rows)
        self._mixed.truncate(len(rows))
        self._clipped = self._screening.clip(self._rows)
        for name, factor in self._clipped.items():
            self._observer.note(
                f"client {name}: it changed more than {self._config.robust.clip:g} times as far as "
                f"the median client; its change is multiplied by {factor:.3g}"
            )

    def _begun_with(self, name: str) -> dict[str, Tensor]:
        """Return what a client began the round with."""
        exchanged = self._store.tensors(self.t, CLIENT, name, "adapter")
        trunk = self._store.tensors(self.t, SERVER, name, "adapter")
        return {**(exchanged or self._start.exchanged), **(trunk or self._start.trunk)}

    def _mixtures(self, mixture: Mixture, reset: list[str]) -> Iterator[tuple[str, Mixed]]:
        """Store each client's mixed tensors, and hand them on; what is frozen is as at the start.

        Moments of re-factored tensors start anew, but for a client that took nothing from others.
        """
        for row, name in enumerate(self._reports):
            tensors = self._mixed.read_row(row)
            exchanged, trunk = dict(self._start.exchanged), dict(self._start.trunk)
            for part in (exchanged, trunk):
                part.update({key: tensors[key] for key in part.keys() & tensors.keys()})
            if trunk and not trunk.keys() & self._start.moving:  # it was not mixed
                trunk = dict(self._store.prepared(self.t + 1, SERVER, name, "adapter"))
            self._store.put(self.t + 1, CLIENT, name, "adapter", exchanged)
            self._store.put(self.t + 1, SERVER, name, "adapter", trunk)
            self._count_exchange(name, "down")
            alone = int(mixture.weights[row].count_nonzero()) == 1
            standing = self._state.standings.get(name, Standing())
            yield name, Mixed(exchanged, trunk, () if alone else reset, standing)

    def _leave_out(self, name: str, error: FellrecError) -> None:
        reason = str(error)
        if isinstance(error, WireError):
            reason = f"client {name}: {error}"
            if "NaN" in reason and "diverged" not in reason:  # the wire knows no more than that
                reason += "; it diverged, lower train.learning_rate"
        self._failed[name] = reason
        self._observer.note(f"{reason}; the client keeps the model it had")

    def _check_enough(self, completed: int) -> None:
        """Raise TrainingError when too few clients got so far."""
        if completed < min(self._config.clients.minimum, len(self.drawn)):
            reason = next(iter(self._failed.values()))
            who = f"{completed} of {len(self.drawn)} clients" if completed else "no client"
            raise TrainingError(f"{who} completed round {self.t}: {reason}")

    def _count_metrics(self, name: str, metrics: int) -> None:
        self._ledger.record(name, self.t, "up", "metrics", metrics * METRIC_BYTES)

    def _count_exchange(self, name: str, direction: Direction) -> None:
        """Count the adapter's way between client and coordinator; local training has none.

        What is frozen does not travel: both sides have it from the start.
        """
        if not self._strategy.exchanges:
            return
        for tensor_name, tensor in self._start.exchanged.items():
            if tensor_name in self._start.moving:
                kind = "lora" if ".lora_" in tensor_name else "dense"
                self._ledger.record(name, self.t, direction, kind, 4 * tensor.numel())

    def _record(self, valid: dict[str, float]) -> RoundRecord:
        reports, mixture = self._reports, self.mixture
        return RoundRecord(
            round=self.t,
            reports=reports,
            warmth=dict(zip(reports, mixture.warmth.tolist(), strict=True)),
            spread=mixture.spread,
            before=self._before,
            valid=valid,
            dropped=dict(zip(reports, self._dropped.tolist(), strict=True)),
            failed=self._failed,
            server_seconds=self._server_seconds,
            seconds=time.perf_counter() - self._begun,
        )

    def _log(self, record: RoundRecord) -> None:
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
                "attention": [round(value, 6) for value in self.mixture.attention[row].tolist()],
                "weights": [round(value, 6) for value in self.mixture.weights[row].tolist()],
                "spread": [record.spread.min, record.spread.median, record.spread.max],
                "attention_active": record.spread.active,
                "valid_before_mixing": record.before[name],
                "valid": record.valid[name],
                "energy_dropped": record.dropped[name],
                "seconds": round(report.seconds, 3),
                "waiting_seconds": round(report.waiting, 3),
                "server_seconds": round(record.server_seconds[name], 3),
            }
            if self._config.privacy.user_noise:
                line["epsilon"] = report.epsilon
            if name in self._clipped:
                line["clipped"] = self._clipped[name]
            if name in self._found.left_out:
                line["left_out"] = True
            append_line(self._store.path / "metrics.jsonl", json.dumps(finite(line)))
        for name, reason in record.failed.items():
            line = {"round": record.round, "client": name, "failed": reason}
            if self._config.privacy.user_noise and name in self._spent:
                line["epsilon"] = self._spent[name]
            append_line(self._store.path / "metrics.jsonl", json.dumps(finite(line)))
        self._ledger.append_csv(self._store.path / "ledger.csv")
