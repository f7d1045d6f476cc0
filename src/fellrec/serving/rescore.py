"""Score a finished run again, from its published adapters alone, and compare with its summary."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fellrec.evaluation.ranking import mean_metrics
from fellrec.files import finite
from fellrec.serving.run import Run

_TOLERANCE = 1e-9  # scores are means of a few hundred numbers; one changed rank is far larger


@dataclass(frozen=True)
class Rescored:
    """overall, clients: as in summary.json. differences: one line for each other score."""

    overall: Mapping[str, float | None]
    clients: tuple[Mapping[str, Any], ...]
    differences: tuple[str, ...]


def rescore(run: Run, progress: Callable[[str], None] = lambda client: None) -> Rescored:
    """Evaluate every client's best model on its test targets.

    progress is told each client's name before its turn.
    """
    scores = {}
    rows: list[Mapping[str, Any]] = []
    for client in run.clients():
        progress(client.name)
        scores[client.name] = client.evaluate()
        means = finite(mean_metrics(scores[client.name]))
        scored = int(np.count_nonzero(~np.isnan(next(iter(scores[client.name].values())))))
        rows.append({"id": client.name, "users": len(client.users), "scored": scored, **means})
    metrics = next(iter(scores.values())).keys()
    joined = {name: np.concatenate([each[name] for each in scores.values()]) for name in metrics}
    overall = finite(mean_metrics(joined))
    stored = {client["id"]: client for client in run.summary["clients"]}
    pairs = [("overall", overall, run.summary["overall"])]
    pairs += [(row["id"], row, stored.get(row["id"], {})) for row in rows]
    differences = [
        f"{who}: {name} is {_say(now[name])}, summary.json says {_say(before.get(name))}"
        for who, now, before in pairs
        for name in metrics
        if not _same(now[name], before.get(name))
    ]
    return Rescored(overall, tuple(rows), tuple(differences))


def _same(now: float | None, before: float | None) -> bool:
    if now is None or before is None:
        return now is before
    return abs(now - before) <= _TOLERANCE


def _say(value: float | None) -> str:
    return "nothing" if value is None else f"{value:.6f}"
