"""What a finished run says of itself: `summary.json`, the stable interface for scripts."""

from __future__ import annotations

import json
import resource
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fellrec.data.sampling import examples
from fellrec.evaluation.balance import balance, sampling_gap
from fellrec.evaluation.ranking import mean_metrics
from fellrec.federation.client import Scores
from fellrec.federation.simulation import Simulation
from fellrec.federation.sizes import sizes
from fellrec.federation.store import RunState
from fellrec.federation.workspace import seeded
from fellrec.files import finite
from fellrec.split.ledger import Ledger


def summarise(
    simulation: Simulation, state: RunState, scores: Mapping[str, Scores]
) -> dict[str, Any]:
    """Build the summary of a run from its final state and every client's per-user test scores."""
    config, shares = simulation.config, simulation.shares
    metric = config.evaluation.metric
    overall = mean_metrics(_joined(scores))
    lines = _metrics(simulation.store.path / "metrics.jsonl")
    tokens: Counter[str] = Counter()
    for line in lines:
        tokens[line["client"]] += line["tokens"]
    clients = []
    for name, client in simulation.clients.items():
        standing = state.standings.get(name)
        clients.append(
            {
                "id": name,
                "users": len(client.data),
                "examples": client.settings.samples or examples(client.data.train),
                "tokens": tokens[name],
                "scored": int(np.count_nonzero(~np.isnan(scores[name][metric]))),
                "valid": standing.best_score if standing else None,
                "best_round": standing.best_round if standing else 0,
                **mean_metrics(scores[name]),
            }
        )
    per_user = [values[metric][~np.isnan(values[metric])] for values in scores.values()]
    per_user = [values for values in per_user if len(values)]
    best = {
        name: standing.best_score
        for name, standing in state.standings.items()
        if standing.best_score is not None
    }
    users = [len(simulation.clients[name].scored("valid")) for name in best]
    equal = sampling_gap(per_user, seeded(config.seed, "sampling gap")) if per_user else None
    summary = {
        "dataset": shares.dataset.name,
        "recommender": config.model.recommender,
        "strategy": config.balance.strategy,
        "seed": config.seed,
        "rounds": state.round,
        "users": len(shares.split),
        "users_dropped": shares.split.dropped,
        "items": len(shares.dataset.catalogue),
        "overall": overall,
        "valid": {metric: float(np.average(list(best.values()), weights=users)) if best else None},
        "clients": clients,
        "balance": {
            "metric": metric,
            **balance([values.mean() for values in per_user]),
            "relative_gap_by_sampling_alone": equal,
        },
        "cost": _cost(simulation, lines),
    }
    checked: dict[str, Any] = finite(summary)
    return checked


def _joined(scores: Mapping[str, Scores]) -> Scores:
    names = next(iter(scores.values())).keys()
    return {name: np.concatenate([client[name] for client in scores.values()]) for name in names}


def _cost(simulation: Simulation, lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Count what each side holds, from its tensors, and sum up what the logs say."""
    workspace = simulation.workspace
    crossed = Ledger.read(simulation.store.path / "ledger.csv").totals()
    train = sum(line["seconds"] for line in lines)
    server = sum(line["server_seconds"] for line in lines)
    waiting = sum(line["waiting_seconds"] for line in lines)
    steps = sum(line["steps"] for line in lines)
    return {
        **sizes(workspace.recommender, workspace.server.base if workspace.server else None),
        "bytes_up": crossed["bytes_up"],
        "bytes_down": crossed["bytes_down"],
        "train_seconds": round(train, 3),
        "server_seconds": round(server, 3),
        "steps": steps,
        "client_seconds_per_step": round((train - waiting) / max(steps, 1), 4),
        "server_seconds_per_step": round(server / max(steps, 1), 4),
        "peak_rss_bytes": peak_rss(),
    }


def _metrics(path: Path) -> list[dict[str, Any]]:
    if not path.exists():  # no round was asked for
        return []
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for line in lines if "failed" not in line]


def peak_rss() -> int:
    """Largest resident memory of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
