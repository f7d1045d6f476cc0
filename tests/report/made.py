"""Run folders written from made-up numbers: any size, any fault, no training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fellrec.config import RunConfig
from fellrec.evaluation.balance import balance, sampling_gap
from fellrec.evaluation.ranking import mean_metrics
from fellrec.split.ledger import Ledger

METRICS = ("recall@5", "ndcg@5", "recall@10", "ndcg@10")
KINDS = ("activation", "gradient", "layout", "scalar", "lora", "dense", "metrics")
USERS = 40
SHIFTS = (0.0, -0.04, 0.09, 0.03, -0.01)


def write_run(
    path: Path,
    clients: int | Sequence[str] = 3,
    rounds: int = 4,
    *,
    failed: Mapping[tuple[int, str], str] | None = None,
    spread: float = 0.3,
    kept: bool = True,
) -> Path:
    """Write a run of made-up numbers and return its folder.

    clients: how many, or their names. failed: (completed rounds before, client) -> reason. spread:
    of the attention between clients. kept: users' scores and clients' times are in the folder; a
    deployment's coordinator has neither.
    """
    names = [f"c{index}" for index in range(clients)] if isinstance(clients, int) else list(clients)
    rng = np.random.default_rng(0)
    path.mkdir(parents=True)
    values: dict[str, object] = {
        "data.source": "ml-100k",
        "clients.count": len(names),
        "train.rounds": rounds,
        "evaluation.ks": [5, 10],
    }
    config = RunConfig.from_text("", "made", {"name": "made"}, values)
    (path / "config.toml").write_text(config.to_toml())
    lines = [
        line
        for number in range(rounds)
        for line in round_lines(names, number, failed or {}, rng, spread=spread, kept=kept)
    ]
    if lines:
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (path / "metrics.jsonl").write_text(text)
    _write_ledger(path, names, rounds)
    scores = {name: draw_scores(rng, SHIFTS[index % 5]) for index, name in enumerate(names)}
    if kept:
        for index, name in enumerate(names):
            folder = path / "clients" / name
            folder.mkdir(parents=True)
            frame = pd.DataFrame({"user": [f"{index}-{user}" for user in range(USERS)]})
            frame.assign(**scores[name]).to_parquet(folder / "scores.parquet", index=False)
    summary = make_summary(names, rounds, lines, scores, kept=kept)
    (path / "summary.json").write_text(json.dumps(summary))
    return path


def write_audit(run: Path) -> Path:
    """Write what an audit of texts found into a run's folder, all of it made up; return the run."""

    def sure(mean: float) -> dict[str, float]:
        return {"mean": mean, "low": mean - 0.05, "high": min(mean + 0.05, 1.0)}

    found = (("nearest", 0.37), ("search", 0.74), ("inverter", 0.82), ("search", 0.99))
    audit = {
        "recommender": "bigrec",
        "k_in": 1,
        "k_out": 1,
        "codec": "int8",
        "item_residual": "none",
        "users": 20,
        "chance": sure(0.19),
        "inversion": [
            {
                "attack": attack,
                "knows": "adapters" if number == 3 else "base",
                "recovered": sure(share),
                "placed": share,
                "token_accuracy": share,
                "rouge_l": share,
            }
            for number, (attack, share) in enumerate(found)
        ],
        "learners": 20,
        "label_chance": sure(0.05),
        "labels": [{"attack": "reading", "knows": "base", "first": sure(0.9), "ten": sure(1.0)}],
        "touched": [
            {"attack": "table", "auc": 0.935, "least": 0.9, "most": 0.97, "popularity": 0.83}
        ],
        "members": 100,
        "others": 99,
        "membership": [{"attack": "gain", "auc": sure(0.9), "caught": 0.6}],
        "veil": {
            "noise": 0.5,
            "bound": 2.0,
            "metric": "ndcg@10",
            "score": sure(0.0871),
            "without": sure(0.0904),
            "difference": {"mean": -0.0033, "low": -0.007, "high": 0.001},
            "positions": 50,
            "delta": 1e-5,
            "epsilon": 1234.4,
        },
    }
    (run / "audit.json").write_text(json.dumps(audit))
    return run


def edit_summary(path: Path, **changes: Any) -> None:
    """Replace keys of a run's summary."""
    file = path / "summary.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def round_lines(
    names: Sequence[str],
    number: int,
    failed: Mapping[tuple[int, str], str],
    rng: np.random.Generator,
    *,
    spread: float,
    kept: bool,
) -> list[dict[str, Any]]:
    """Return what a run logs of one round; see `write_run`."""
    here = [name for name in names if (number, name) not in failed]
    size = len(here)
    noise = rng.uniform(0.0, spread, (size, size))
    attention = 0.99 - (noise + noise.T) / 2
    np.fill_diagonal(attention, 1.0)
    warmth = float(np.tanh(0.7 * max(len(names), 1) ** (number / 1.0)))
    weights = attention * warmth
    np.fill_diagonal(weights, 1.0)
    weights /= weights.sum(axis=1, keepdims=True)
    others = attention[~np.eye(size, dtype=bool)]
    ends = np.percentile(others, [0, 50, 100]).tolist() if size > 1 else [1.0, 1.0, 1.0]
    lines: list[dict[str, Any]] = []
    for row, name in enumerate(here):
        score = 0.09 + SHIFTS[names.index(name) % 5] + 0.03 * (1 - 0.5**number)
        score += float(rng.normal(0, 0.004))
        line: dict[str, Any] = {
            "round": number,
            "client": name,
            "loss": 6.1 * 0.93**number + 0.2 * SHIFTS[names.index(name) % 5],
            "examples": 1000,
            "tokens": 5000,
            "steps": 30,
            "warmth": warmth,
            "attention": [round(float(value), 6) for value in attention[row]],
            "weights": [round(float(value), 6) for value in weights[row]],
            "spread": ends,
            "attention_active": ends[2] - ends[0] >= 0.02,
            "valid_before_mixing": score - 0.006,
            "valid": score,
            "energy_dropped": 0.0,
            "seconds": 20.5 + row,
            "waiting_seconds": 8.25,
            "server_seconds": 9.5,
        }
        if not kept:
            line |= dict.fromkeys(("tokens", "steps", "seconds", "waiting_seconds"))
        lines.append(line)
    reasons = [(name, reason) for (at, name), reason in failed.items() if at == number]
    return lines + [{"round": number, "client": name, "failed": reason} for name, reason in reasons]


def _write_ledger(path: Path, names: Sequence[str], rounds: int) -> None:
    ledger = Ledger()
    for number in range(rounds + 1):
        for name in names:
            for place, kind in enumerate(KINDS if number < rounds else KINDS[:1]):
                size = 4_000_000 >> (2 * place)
                ledger.record(name, number, "up", kind, size)
                ledger.record(name, number, "down", kind, size)
    ledger.append_csv(path / "ledger.csv")


def draw_scores(rng: np.random.Generator, shift: float) -> dict[str, Any]:
    """Draw scores of a client's users by metric, better ones for a larger shift."""
    ranks = rng.geometric(0.02 + 0.3 * max(shift + 0.05, 0.01), USERS)
    return {
        metric: np.where(
            ranks <= int(metric.partition("@")[2]),
            1.0 if metric.startswith("recall") else 1 / np.log2(ranks + 1.0),
            0.0,
        )
        for metric in METRICS
    }


def make_summary(
    names: Sequence[str],
    rounds: int,
    lines: Sequence[Mapping[str, Any]],
    scores: Mapping[str, Mapping[str, Any]],
    *,
    kept: bool,
) -> dict[str, Any]:
    """Return a run's summary; lines: of its log. scores: by client and metric."""
    means = {name: mean_metrics(dict(scores[name])) for name in names}
    joined = {m: np.concatenate([scores[name][m] for name in names]) for m in METRICS}
    clients = []
    for name in names:
        own = [line["valid"] for line in lines if line["client"] == name and "valid" in line]
        clients.append(
            {
                "id": name,
                "users": USERS,
                "examples": 1000,
                "tokens": 5000 * len(own) if kept else None,
                "scored": USERS,
                "valid_users": USERS,
                "valid": max(own, default=None),
                "best_round": 1 + int(np.argmax(own)) if own else 0,
                **means[name],
            }
        )
    per_user = [scores[name]["ndcg@10"] for name in names]
    chance = sampling_gap(per_user, np.random.default_rng(0), 50) if kept else None
    clocks = {"train_seconds": 84.0, "client_seconds_per_step": 0.1}
    return {
        "dataset": "ml-100k",
        "recommender": "hllm",
        "strategy": "fellrec",
        "seed": 0,
        "rounds": rounds,
        "users": USERS * len(names),
        "users_dropped": 0,
        "items": 1682,
        "overall": mean_metrics(joined),
        "valid": {"ndcg@10": 0.1 if rounds else None},
        "clients": clients,
        "balance": {
            "metric": "ndcg@10",
            **balance([means[name]["ndcg@10"] for name in names]),
            "relative_gap_by_sampling_alone": chance,
        },
        "cost": {
            "client_parameters": 5_235_457,
            "client_bytes": 20_900_000,
            "client_blocks": 2,
            "client_block_parameters": 3_590_000,
            "server_parameters": 7_200_000,
            "server_bytes": 28_800_000,
            "server_blocks": 4,
            "server_block_parameters": 7_200_000,
            "server_adapter_parameters": 98_304,
            "client_parameter_share": 0.42,
            "client_block_share": 0.333,
            "bytes_up": 36_700_000,
            "bytes_down": 36_700_000,
            "server_seconds": 12.0,
            "steps": 120 if kept else 0,
            "server_seconds_per_step": 0.05,
            "peak_rss_bytes": 900_000_000,
            **(clocks if kept else dict.fromkeys(clocks)),
        },
    }
