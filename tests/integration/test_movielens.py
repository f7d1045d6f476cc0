"""The real command on the real data and base model, short: it learns, and survives a SIGKILL."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from safetensors import safe_open

from fellrec.config import RunConfig
from tests.federation.crashes import differences, outcome

pytestmark = pytest.mark.integration

SETTINGS = {
    "data.max_users": 99,
    "clients.count": 3,
    "model.history": 15,
    "train.rounds": 2,
    "train.local_epochs": 1,
    "train.batch_size": 8,
    "train.learning_rate": 0.005,  # there is little time to learn in
    "train.threads": 1,
}
CLIENTS, BLOCKS = ("c0", "c1", "c2"), 6


def command(out: Path, *more: str) -> list[str]:
    sets = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
    program = [sys.executable, "-c", "from fellrec.cli import app; app()"]
    return [*program, "train", "demo", *sets, "--out", str(out), "--json", *more]


def environment() -> Mapping[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Return a run and the JSON that the command printed."""
    out = tmp_path_factory.mktemp("movielens") / "run"
    done = subprocess.run(command(out), env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out, json.loads(done.stdout)


def test_the_summary_is_what_was_printed(run: tuple[Path, dict[str, Any]]) -> None:
    path, printed = run
    assert json.loads((path / "summary.json").read_text()) == printed
    assert set(printed) >= {
        "dataset", "recommender", "strategy", "seed", "rounds", "overall", "valid", "clients",
        "balance", "cost",
    }  # fmt: skip
    assert (printed["dataset"], printed["rounds"]) == ("ml-100k", 2)
    assert printed["users"] + printed["users_dropped"] == 99
    assert printed["items"] == 1682
    assert {client["id"] for client in printed["clients"]} == set(CLIENTS)
    for key in ("recall@10", "ndcg@10"):
        assert all(0 <= client[key] <= 1 for client in printed["clients"])
    assert {"std", "cv", "min", "max", "relative_gap", "jain"} <= printed["balance"].keys()
    cost = printed["cost"]
    assert (cost["client_blocks"], cost["server_blocks"]) == (2, BLOCKS - 2)
    assert cost["client_block_share"] == pytest.approx(1 / 3)
    assert 0.2 < cost["client_parameter_share"] < 0.5
    # One-time transfer of both adapters each round, and far more in activations.
    assert cost["bytes_up"] > 10 << 20 and cost["bytes_down"] > 10 << 20
    assert cost["peak_rss_bytes"] < 4 << 30


def test_it_learns(run: tuple[Path, dict[str, Any]]) -> None:
    """Far above chance: 10 of 1,682 items at random hold a user's one target with 0.6 %."""
    _, summary = run
    assert summary["overall"]["recall@10"] > 5 * 10 / 1682
    assert summary["overall"]["recall@20"] > 5 * 20 / 1682


def test_every_round_learns_more(run: tuple[Path, dict[str, Any]]) -> None:
    lines = [json.loads(line) for line in (run[0] / "metrics.jsonl").read_text().splitlines()]
    assert [(line["round"], line["client"]) for line in lines] == [
        (t, client) for t in range(2) for client in CLIENTS
    ]
    first, second = lines[:3], lines[3:]
    for before, after in zip(first, second, strict=True):
        assert after["loss"] < before["loss"] < np.log(1682) + 0.5


def test_what_is_left(run: tuple[Path, dict[str, Any]]) -> None:
    path, summary = run
    config = RunConfig.from_toml(path / "config.toml")
    assert config.train.rounds == 2 and config.data.max_users == 99
    assert {"config.toml", "summary.json", "metrics.jsonl", "ledger.csv", "rounds", "clients",
            "server"} <= {entry.name for entry in path.iterdir()}  # fmt: skip
    assert {entry.name for entry in (path / "rounds").iterdir()} == {"1", "2", "current"}
    for client in CLIENTS:
        assert {entry.name for entry in (path / "server" / client).iterdir()} == {
            "best_adapter.safetensors",
            "last_adapter.safetensors",
        }
        blocks: dict[str, set[str]] = {}
        for side in ("clients", "server"):
            file = path / side / client / "best_adapter.safetensors"
            with safe_open(file, framework="pt") as tensors:
                names = [name for name in tensors.keys() if ".lora_" in name]  # noqa: SIM118
            blocks[side] = {name.split("layer.")[1].split(".")[0] for name in names}
        assert blocks == {"clients": {"0", "5"}, "server": {"1", "2", "3", "4"}}
        (entry,) = [each for each in summary["clients"] if each["id"] == client]
        scores = pd.read_parquet(path / "clients" / client / "scores.parquet")
        assert len(scores) == entry["users"]
        assert scores["recall@10"].mean() == pytest.approx(entry["recall@10"])
    ledger = pd.read_csv(path / "ledger.csv")
    assert ledger["bytes"].sum() == summary["cost"]["bytes_up"] + summary["cost"]["bytes_down"]
    assert set(ledger["kind"]) == {
        "activation", "gradient", "layout", "scalar", "lora", "dense", "metrics",
    }  # fmt: skip


def test_the_server_has_no_client_data(run: tuple[Path, dict[str, Any]]) -> None:
    path, _ = run
    users = {
        user
        for client in CLIENTS
        for user in pd.read_parquet(path / "clients" / client / "scores.parquet")["user"]
    }
    assert len(users) == 99
    for file in (path / "server").rglob("*"):
        assert file.is_dir() or file.suffix == ".safetensors"


@pytest.mark.faults
def test_killed_and_resumed(run: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    path, _ = run
    out = tmp_path / "run"
    with (tmp_path / "said").open("wb") as said:
        victim = subprocess.Popen(command(out), env=environment(), stdout=said, stderr=said)
        # The second round is under way when its folder is there.
        while victim.poll() is None and not (out / "rounds" / "2.partial").exists():
            time.sleep(0.05)
        victim.send_signal(signal.SIGKILL)
        assert victim.wait() == -signal.SIGKILL, (tmp_path / "said").read_text()
    assert (out / "rounds" / "current").read_text() == "1\n"
    assert not (out / "summary.json").exists()
    done = subprocess.run(
        command(out, "--resume"), env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert differences(outcome(path), outcome(out)) == []
