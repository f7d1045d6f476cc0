"""Everything a finished run's folder says, as a report needs it: no model, no data set."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pyarrow import ArrowException

from fellrec.config import RunConfig
from fellrec.errors import RunError
from fellrec.evaluation.bootstrap import Interval, mean_interval
from fellrec.federation.runs import finished
from fellrec.files import read_lines
from fellrec.split.ledger import Ledger, LedgerRow

Line = Mapping[str, Any]
_AUDITED = {
    *("k_in", "codec", "users", "chance", "inversion", "learners", "label_chance", "labels"),
    *("touched", "members", "others", "membership", "veil"),
}


@dataclass(frozen=True)
class RoundLog:
    """One round. number: completed rounds after it, from 1.

    lines: by client that trained, in the order of the rows of M1 and M3. failed: by client, why.
    """

    number: int
    lines: Mapping[str, Line]
    failed: Mapping[str, str]

    def value(self, client: str, key: str) -> float | None:
        """Return a client's number; None where it has none."""
        value = self.lines.get(client, {}).get(key)
        return None if value is None else float(value)

    def values(self, key: str) -> list[float | None]:
        """Return all clients' numbers, in the order of the lines."""
        return [self.value(client, key) for client in self.lines]

    def total(self, key: str) -> float | None:
        """Sum over the clients; None where one does not say."""
        values = self.values(key)
        known = [value for value in values if value is not None]
        return sum(known) if known and len(known) == len(values) else None

    def matrix(self, key: str) -> list[list[float | None]]:
        """Return M1 ("attention") or M3 ("weights"): rows and columns in the order of the lines.

        Empty where a run did not log it.
        """
        rows = [line.get(key) for line in self.lines.values()]
        size = len(self.lines)
        return [list(row) for row in rows if row is not None and len(row) == size] or []

    @property
    def active(self) -> bool:
        """Whether attention told clients apart."""
        return any(line.get("attention_active", False) for line in self.lines.values())

    @property
    def spread(self) -> tuple[float, float, float] | None:
        """Least, median and largest attention between different clients."""
        for line in self.lines.values():
            values = line.get("spread")
            if values is not None and None not in values:
                return float(values[0]), float(values[1]), float(values[2])
        return None


@dataclass(frozen=True)
class FinishedRun:
    """A run directory, read. scores: by client and metric, (users,) float64.

    Clients whose users' scores are not in the folder are not in it. audit: what `fellrec audit`
    wrote, None where nobody ran it.
    """

    path: Path
    config: RunConfig
    summary: Mapping[str, Any]
    rounds: Sequence[RoundLog]
    ledger: Sequence[LedgerRow]
    scores: Mapping[str, Mapping[str, NDArray[np.float64]]]
    audit: Mapping[str, Any] | None = None

    @property
    def metric(self) -> str:
        """The metric that the run went by."""
        return self.config.evaluation.metric

    @property
    def clients(self) -> list[Mapping[str, Any]]:
        """The summary's clients, largest first."""
        return list(self.summary["clients"])

    @property
    def names(self) -> list[str]:
        """Every client that the summary or a round names, the summary's first."""
        names = {str(client["id"]): None for client in self.clients}
        for each in self.rounds:
            names |= dict.fromkeys([*each.lines, *each.failed])
        return list(names)

    def interval(self, client: str, metric: str) -> Interval | None:
        """Return a client's mean test score with its 95 % interval; None without users' scores."""
        return _interval([self.scores.get(client, {}).get(metric)])

    def overall(self, metric: str) -> Interval | None:
        """Return it over all users; None unless every client's scores are here."""
        if metric not in self._overall:
            ids = [str(client["id"]) for client in self.clients]
            parts = [self.scores.get(client, {}).get(metric) for client in ids]
            self._overall[metric] = _interval(parts)
        return self._overall[metric]

    @cached_property
    def _overall(self) -> dict[str, Interval | None]:
        """Intervals already drawn: each takes a while where there are many users."""
        return {}


def read_run(path: Path) -> FinishedRun:
    """Read a finished run.

    Raises RunError when the folder is none, the run is not finished, or a file is damaged.
    """
    config, summary = finished(path)
    rounds = _rounds(path / "metrics.jsonl")
    if not rounds and summary["rounds"]:
        raise RunError(
            f"{path / 'metrics.jsonl'}: nothing about the run's rounds; give the folder that "
            "training left"
        )
    scores = {
        str(client["id"]): found
        for client in summary["clients"]
        if (found := _scores(path / "clients" / str(client["id"]) / "scores.parquet"))
    }
    ledger = Ledger.read(path / "ledger.csv").rows()
    return FinishedRun(path, config, summary, rounds, ledger, scores, _audit(path / "audit.json"))


def _audit(path: Path) -> Mapping[str, Any] | None:
    """Read an audit; None where there is none."""
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: can't be read ({error}); audit the run again") from error
    if not (isinstance(found, dict) and found.keys() >= _AUDITED):
        raise RunError(f"{path}: not an audit as this version writes it; audit the run again")
    return found


def _rounds(path: Path) -> list[RoundLog]:
    """Read the log, a line per round and client; none where no round was asked for."""
    if not path.exists():
        return []
    lines = read_lines(path)
    for place, line in enumerate(lines, start=1):
        try:
            int(line["round"]), str(line["client"])
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"{path}:{place}: not a line of a run's log ({error!r})") from error
    return round_logs(lines)


def round_logs(log: Iterable[Line]) -> list[RoundLog]:
    """Sort the lines of a log by round; each has `round` and `client`."""
    lines: dict[int, dict[str, Line]] = {}
    failed: dict[int, dict[str, str]] = {}
    for line in log:
        number, client = int(line["round"]) + 1, str(line["client"])
        if "failed" in line:
            failed.setdefault(number, {})[client] = str(line["failed"])
        else:
            lines.setdefault(number, {})[client] = line
    numbers = sorted({*lines, *failed})
    return [RoundLog(number, lines.get(number, {}), failed.get(number, {})) for number in numbers]


def _scores(path: Path) -> dict[str, NDArray[np.float64]]:
    """Read a client's users' scores; empty where they stayed elsewhere."""
    if not path.exists():
        return {}
    try:
        frame = pd.read_parquet(path)
        return {name: frame[name].to_numpy(np.float64) for name in frame.columns if name != "user"}
    except (OSError, ValueError, ArrowException) as error:
        raise RunError(f"{path}: can't be read as scores; train the recipe again") from error


def _interval(parts: Sequence[NDArray[np.float64] | None]) -> Interval | None:
    known = [part for part in parts if part is not None]
    if len(known) < len(parts) or not known:
        return None
    values = np.concatenate(known)
    # The same draws wherever an interval is shown, as in the page of results.
    return None if np.isnan(values).all() else mean_interval(values, np.random.default_rng(0))
