"""What a finished run says of itself: `summary.json`, the stable interface for scripts."""

from __future__ import annotations

import json
import resource
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fellrec.config import RunConfig
from fellrec.data.sampling import examples
from fellrec.evaluation.balance import balance, sampling_gap
from fellrec.evaluation.ranking import mean_metrics
from fellrec.federation.client import Client, Scores
from fellrec.federation.promises import promises
from fellrec.federation.shares import seeded
from fellrec.federation.store import RunState
from fellrec.files import finite
from fellrec.split.ledger import Ledger

_NEEDED = (
    *("dataset", "recommender", "strategy", "seed", "rounds", "users", "items"),
    *("overall", "clients", "balance", "cost"),
)


@dataclass(frozen=True)
class About:
    """What a summary begins with. sizes: what each side holds, see there. width: channels at the
    cut, 0 where there is none.
    """

    dataset: str
    users: int
    dropped: int
    items: int
    sizes: Mapping[str, int | float]
    width: int = 0


@dataclass(frozen=True)
class ClientResult:
    """One client's end. users: how many it has. examples: training targets of an epoch.
    valid_users: how many its validation score is of. scored: users of the test score. means: each
    metric's mean over them. scores: the same by user, None where these stay with the client.
    """

    name: str
    users: int
    examples: int
    valid_users: int
    scored: int
    means: Mapping[str, float]
    scores: Scores | None = None


def result_of(client: Client, scores: Scores, metric: str) -> ClientResult:
    """Return a client's end from its per-user test scores."""
    return ClientResult(
        client.name,
        len(client.data),
        client.settings.samples or examples(client.data.train),
        len(client.scored("valid")),
        int(np.count_nonzero(~np.isnan(scores[metric]))),
        mean_metrics(scores),
        scores,
    )


def is_summary(value: Any) -> bool:
    """Return whether a value has what every reader of a summary asks for."""
    return (
        isinstance(value, dict)
        and all(key in value for key in _NEEDED)
        and isinstance(value["clients"], list)
        and all(isinstance(client, dict) and "id" in client for client in value["clients"])
    )


def summarise(
    config: RunConfig, path: Path, about: About, state: RunState, results: Sequence[ClientResult]
) -> dict[str, Any]:
    """Build the summary of a run.

    path: the run directory, for its logs. results: of all clients that have test scores, in their
    order. Where their users' scores stay with them, what takes these is None.
    """
    metric = config.evaluation.metric
    logged = _metrics(path / "metrics.jsonl")
    lines = [line for line in logged if "failed" not in line]
    tokens: Counter[str] = Counter()
    for line in lines:
        tokens[line["client"]] += line["tokens"]
    clients = []
    for result in results:
        standing = state.standings.get(result.name)
        clients.append(
            {
                "id": result.name,
                "users": result.users,
                "examples": result.examples,
                "tokens": tokens[result.name],
                "scored": result.scored,
                "valid_users": result.valid_users,
                "valid": standing.best_score if standing else None,
                "best_round": standing.best_round if standing else 0,
                **result.means,
            }
        )
    best = {
        name: standing.best_score
        for name, standing in state.standings.items()
        if standing.best_score is not None
    }
    users = {result.name: result.valid_users for result in results}
    known = [name for name in best if name in users]
    weights = [users[name] for name in known]
    valid = float(np.average([best[name] for name in known], weights=weights)) if known else None
    scored = [result.means[metric] for result in results if result.scored]
    summary = {
        "dataset": about.dataset,
        "recommender": config.model.recommender,
        "strategy": config.balance.strategy,
        "seed": config.seed,
        "rounds": state.round,
        "users": about.users,
        "users_dropped": about.dropped,
        "items": about.items,
        "overall": _overall(results),
        "valid": {metric: valid},
        "clients": clients,
        "balance": {
            "metric": metric,
            **balance(scored),
            "relative_gap_by_sampling_alone": _gap(config, results),
        },
        "cost": _cost(path, about, lines),
    }
    promised = promises(config, logged, about.width)
    if promised:
        summary["privacy"] = promised
    checked: dict[str, Any] = finite(summary)
    return checked


def _overall(results: Sequence[ClientResult]) -> dict[str, float]:
    """Average over all users, each alike."""
    per_user = [result.scores for result in results if result.scores is not None]
    if len(per_user) == len(results):
        joined = {m: np.concatenate([each[m] for each in per_user]) for m in per_user[0]}
        return mean_metrics(joined)
    having = [result for result in results if result.scored]
    weights = [result.scored for result in having]
    return {
        metric: float(np.average([result.means[metric] for result in having], weights=weights))
        for metric in having[0].means
    }


def _gap(config: RunConfig, results: Sequence[ClientResult]) -> float | None:
    metric = config.evaluation.metric
    per_user = [result.scores[metric] for result in results if result.scores is not None]
    per_user = [kept for scores in per_user if len(kept := scores[~np.isnan(scores)])]
    known = len(per_user) == sum(result.scored > 0 for result in results)
    if not (known and per_user):
        return None
    return sampling_gap(per_user, seeded(config.seed, "sampling gap"))


def _cost(path: Path, about: About, lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Count what each side holds, and sum up what the logs say; None for what no log knows."""
    crossed = Ledger.read(path / "ledger.csv").totals()

    def total(key: str) -> float | None:
        values = [line[key] for line in lines]
        return None if None in values else sum(values)

    train, waiting, steps = total("seconds"), total("waiting_seconds"), total("steps") or 0
    server = total("server_seconds") or 0.0
    own = None if train is None or waiting is None else (train - waiting) / max(steps, 1)
    return {
        **about.sizes,
        "bytes_up": crossed["bytes_up"],
        "bytes_down": crossed["bytes_down"],
        "train_seconds": None if train is None else round(train, 3),
        "server_seconds": round(server, 3),
        "steps": steps,
        "client_seconds_per_step": None if own is None else round(own, 4),
        "server_seconds_per_step": round(server / max(steps, 1), 4),
        "peak_rss_bytes": peak_rss(),
    }


def _metrics(path: Path) -> list[dict[str, Any]]:
    if not path.exists():  # no round was asked for
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def peak_rss() -> int:
    """Largest resident memory of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
