"""Comparisons of made-up numbers: any rows, any faults, nothing is trained."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fellrec.comparison.outcomes import Failure, Outcome
from fellrec.comparison.plan import Comparison, Planned
from fellrec.comparison.rows import Compared
from fellrec.comparison.table import compare
from fellrec.evaluation.ranking import mean_metrics
from fellrec.results.cells import Cell
from tests.report.made import METRICS, SHIFTS, USERS, draw_scores, make_summary, round_lines

CLIENTS = 5
DATA = {"dataset": "ml-100k", "split": "leave-one-out", "items": 1682, "digest": "made"}
STRATEGIES: dict[str, dict[str, object]] = {
    "local": {"balance.strategy": "local"},
    "fedavg": {"balance.strategy": "fedavg"},
    "fellrec": {},
    "centralised": {
        "clients.partition": "random",
        "clients.count": 1,
        "balance.strategy": "local",
    },
}
QUALITY = {"local": -0.04, "fedavg": 0.02, "fellrec": 0.03, "centralised": 0.3}
"""Added to the shift of each client's scores; 0 for other rows."""


def write_file(
    path: Path,
    *,
    strategies: Mapping[str, Mapping[str, object]] | None = None,
    seeds: Sequence[int] = (0,),
    reference: str = "fedavg",
    peers: Sequence[str] = (),
    axes: Mapping[str, Sequence[object]] | None = None,
    title: str = "Made up",
) -> Path:
    """Write a comparison of these rows."""
    rows = STRATEGIES if strategies is None else strategies
    lines = [f'name = "made"\ntitle = "{title}"\nabout = "Numbers without a `run <0>`."']
    lines.append(f'recipe = "smoke"\nseeds = {list(seeds)}\nreference = "{reference}"')
    lines.append(f'peers = {list(peers)}\n[set]\n"clients.count" = {CLIENTS}')
    for label, settings in rows.items():
        lines.append(f'[strategies."{label}"]')
        lines += [f'"{key}" = {_toml(value)}' for key, value in settings.items()]
    lines.append("[axes]")
    lines += [f'"{key}" = {_toml(list(values))}' for key, values in (axes or {}).items()]
    path.write_text("\n".join(lines) + "\n")
    return path


def made_up(
    path: Path,
    *,
    failed: Mapping[tuple[str, int], str] | None = None,
    missing: Collection[tuple[str, int]] = (),
    old: Collection[str] = (),
    vouched: Mapping[str, tuple[str, ...]] | None = None,
    rounds: int = 5,
) -> Compared:
    """Work out a comparison whose cells have made-up results.

    failed: by label and seed, why. missing: labels and seeds. old: labels that other code has made.
    vouched: those whose code today's is vouched to match, with the cells that showed it.
    """
    comparison = Comparison.read(path)
    reasons = failed or {}
    found = []
    for planned in comparison.cells:
        place = planned.label, planned.seed
        where = Path("cells") / planned.name
        if place in reasons:
            failure = Failure(reasons[place], "made", "2026-11-01")
            found.append(Outcome(planned, where, None, failure, True))
        elif place in missing:
            found.append(Outcome(planned, where))
        else:
            cell = _peer(planned) if planned.peer else _run(planned, rounds)
            shown = (vouched or {}).get(planned.label, ())
            found.append(Outcome(planned, where, cell, None, planned.label not in old, shown))
    return compare(comparison, found)


def _run(planned: Planned, rounds: int) -> Cell:
    """Return the cell of a run: the users divided evenly, one client after another."""
    count = planned.config.clients.count
    names = [f"c{number}" for number in range(count)]
    rng = np.random.default_rng([planned.seed, *planned.label.encode()])
    scores = _scores(planned, rng)
    users = CLIENTS * USERS
    whose = np.arange(users) * count // users
    per_client = {
        name: {metric: values[whose == at] for metric, values in scores.items()}
        for at, name in enumerate(names)
    }
    lines = []
    for number in range(rounds):
        lines += round_lines(names, number, {}, rng, spread=0.3, kept=True)
    shift = QUALITY.get(planned.label, 0.0) / 5
    for line in lines:
        line["valid"] += shift
        if planned.config.balance.strategy == "fedavg":
            line["weights"] = [1 / count] * count
        elif planned.config.balance.strategy == "local":
            line["weights"] = [float(name == line["client"]) for name in names]
    summary = make_summary(names, rounds, lines, per_client, kept=True)
    command = f"fellrec train smoke --out runs/{planned.name}"
    return Cell(
        planned.name,
        planned.config,
        summary | {"strategy": planned.config.balance.strategy, "seed": planned.seed},
        {"command": command, **_origin(planned, users)},
        np.arange(users),
        scores,
        whose,
        tuple(lines),
    )


def _peer(planned: Planned) -> Cell:
    rng = np.random.default_rng([planned.seed, *planned.label.encode()])
    scores = _scores(planned, rng)
    summary = {
        "recommender": planned.label,
        "overall": mean_metrics(scores),
        "chosen": {"neighbours": 50},
        "cost": {"parameters": 1682, "seconds": 1.5},
    }
    rows = np.arange(CLIENTS * USERS)
    return Cell(planned.name, None, summary, _origin(planned, len(rows)), rows, scores)


def _scores(planned: Planned, rng: np.random.Generator) -> dict[str, Any]:
    """Draw the scores of all users by metric: five equal groups, some better served."""
    shift = QUALITY.get(planned.label, 0.0)
    clients = [draw_scores(rng, SHIFTS[number] + shift) for number in range(CLIENTS)]
    return {metric: np.concatenate([each[metric] for each in clients]) for metric in METRICS}


def _origin(planned: Planned, users: int) -> dict[str, Any]:
    return {"seed": planned.seed, "code": ["made"], "data": DATA | {"users": users}}


def _toml(value: object) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return str(value).lower() if isinstance(value, bool) else repr(value)
