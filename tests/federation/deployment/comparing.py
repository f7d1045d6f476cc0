"""Compare what a deployment leaves, at all its parties, with what a simulation leaves."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from fellrec.federation.store import CLIENT, SERVER, RunStore
from fellrec.split.ledger import Ledger
from tests.federation.deployment.town import Town, tensors_below

# What a coordinator can't know of clients that are elsewhere;
# what a failure is called depends on who failed, and how.
ELSEWHERE = {"failed", "tokens", "steps", "seconds", "waiting_seconds", "server_seconds"}


def summary_of(run: Path) -> dict[str, Any]:
    """Return what a summary says of scores."""
    summary: dict[str, Any] = json.loads((run / "summary.json").read_text())
    del summary["cost"], summary["balance"]["relative_gap_by_sampling_alone"]
    for client in summary["clients"]:
        del client["tokens"]
    return summary


def lines_of(run: Path) -> list[dict[str, Any]]:
    """Return what a coordinator knows of each client's rounds."""
    path = run / "metrics.jsonl"
    lines = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
    return [{k: v for k, v in line.items() if k not in ELSEWHERE} for line in lines]


def check_equal(it: Town, run: Path, simulated: Path) -> None:
    """Compare all that two runs leave, whoever keeps it."""
    whole = tensors_below(simulated)
    found = {
        f"{side}/{path}": tensors
        for side in (CLIENT, SERVER)
        for path, tensors in tensors_below(run / side).items()
    }
    for name in it.names:
        own = tensors_below(it.folder_of(name) / CLIENT)
        assert {path for path in own if path.startswith(f"{name}/")} == own.keys()
        found |= {f"{CLIENT}/{path}": tensors for path, tensors in own.items()}
    published = {path for path in whole if not path.startswith("rounds/")}
    assert found.keys() == published
    for path in published:
        assert found[path].keys() == whole[path].keys(), path
        for name, tensor in found[path].items():
            assert torch.equal(tensor, whole[path][name]), f"{path}: {name}"
    for name in it.names:
        scores = pd.read_parquet(it.folder_of(name) / CLIENT / name / "scores.parquet")
        expected = pd.read_parquet(simulated / CLIENT / name / "scores.parquet")
        pd.testing.assert_frame_equal(scores, expected)
    assert RunStore(run).state().standings == RunStore(simulated).state().standings
    assert lines_of(run) == lines_of(simulated)
    assert close(summary_of(run), summary_of(simulated))


def close(one: Any, other: Any) -> bool:
    """Compare nested values, numbers up to rounding: means of means differ in the last bit."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        return all(close(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return all(close(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == (pytest.approx(other) if isinstance(other, float) else other))


def check_moments(it: Town, simulated: Path, rounds: int) -> None:
    """Compare the moments: they stay with the client and with the trunk."""
    for name in it.names:
        standing = RunStore(simulated).state().standings[name]
        whole = tensors_below(simulated / "rounds" / str(rounds))
        own = tensors_below(it.folder_of(name) / "rounds" / str(standing.label))
        pairs = [(own["optimiser.safetensors"], whole[f"{CLIENT}/{name}/optimiser.safetensors"])]
        if it.trunks:
            (folder,) = (it.grounds.folder / "trunk-0").glob("*/clients")
            theirs = tensors_below(folder / name / str(standing.label))
            moments = whole[f"{SERVER}/{name}/optimiser.safetensors"]
            pairs.append((theirs["optimiser.safetensors"], moments))
        for one, other in pairs:
            assert one.keys() == other.keys()
            assert all(torch.equal(one[key], other[key]) for key in one)


def sums(paths: Iterable[Path]) -> dict[tuple[object, ...], tuple[int, int]]:
    """Add up ledgers, all but the metrics: a coordinator counts how many users were scored, too."""
    found: dict[tuple[object, ...], tuple[int, int]] = {}
    for path in paths:
        for row in Ledger.read(path).rows() if path.exists() else ():
            if row.kind != "metrics":
                key = (row.round, row.client, row.direction, row.kind)
                count, size = found.get(key, (0, 0))
                found[key] = (count + row.count, size + row.bytes)
    return found
