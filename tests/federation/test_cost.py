"""The ledger and the summary against counts by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fellrec.config import RunConfig
from fellrec.data.interactions import Split
from fellrec.federation.runs import train
from fellrec.federation.shares import share_data
from fellrec.split.ledger import Ledger
from tests.toys import BLOCKS, ENCODER_WIDTH, ITEMS, SHOPS, WIDTH, Toys

HEADER = 35  # fixed bytes of a frame, before the client's name (docs of split.wire)
HISTORY, RANK = 8, 2


def tensor_bytes(codec: str, rows: int) -> int:
    """Bytes of (rows, 32) values: one int8 block of 64 channels has one bf16 scale."""
    match codec:
        case "fp32":
            return 4 * rows * WIDTH
        case "bf16":
            return 2 * rows * WIDTH
        case "fp16":
            return 4 + 2 * rows * WIDTH
    return rows * (WIDTH + 2)


def expected(config: RunConfig, data: Split, client: str) -> dict[tuple[str, str], int]:
    """Count what one client's two rounds send, from the lengths of its histories alone.

    One epoch a round, no windows: each history of n >= 2 training items is one row of
    min(n - 1, 8) positions. Positions, not batches, decide the bytes of fp32; how positions fall
    into batches decides the rest, and every batch has 4 histories but the last.
    """
    batch, rounds = config.train.batch_size, config.train.rounds
    lengths = data.train.lengths()
    positions = int(np.minimum(lengths[lengths >= 2] - 1, HISTORY).sum())
    rows = int((lengths >= 2).sum())
    steps = -(-rows // batch)
    frame = HEADER + len(client)
    sent: dict[tuple[str, str], int] = {}

    def add(direction: str, kind: str, size: int) -> None:
        sent[direction, kind] = sent.get((direction, kind), 0) + size

    def served(history: np.ndarray[Any, Any], times: int) -> None:
        seen = np.minimum(history, HISTORY)
        batches = -(-len(seen) // config.evaluation.batch_size)
        assert batches == 1
        for direction in ("up", "down"):
            add(direction, "activation", times * tensor_bytes(config.split.codec, int(seen.sum())))
            add(direction, "layout", times * frame)
        add("up", "layout", times * 4 * len(seen))

    # fp16 has 4 bytes a tensor, so bytes of a step's tensors do not simply add up over positions.
    extra = (steps - 1) * 4 if config.split.codec == "fp16" else 0
    for direction in ("up", "down"):
        for kind in ("activation", "gradient"):
            size = tensor_bytes(config.split.codec, positions) + extra
            add(direction, kind, rounds * size)
        add(direction, "layout", rounds * steps * 3 * frame)  # forward, gradient, norm
        add(direction, "scalar", rounds * steps * 8)
    add("up", "layout", rounds * 4 * rows)  # lengths
    # Validation before and after mixing in every round; local training has one of them.
    validations = 1 + (config.balance.strategy != "local")
    served(data.train.lengths(), rounds * validations)
    served(data.history("test").lengths(), 1)
    # A loss and a count, the validation scores, then recall and NDCG at 3 and 10.
    add("up", "metrics", 8 * (rounds * (2 + validations) + 5))
    if config.balance.strategy != "local":
        # Head and tail: one block each, six adapted modules of 32 or 64 channels.
        lora = 2 * RANK * (4 * (WIDTH + WIDTH) + 2 * (WIDTH + 2 * WIDTH))
        dense = WIDTH * ENCODER_WIDTH + 1 + ITEMS * WIDTH
        for direction in ("up", "down"):
            add(direction, "lora", rounds * 4 * lora)
            add(direction, "dense", rounds * 4 * dense)
    return sent


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"split.codec": "int8"},
        {"split.codec": "fp16", "balance.strategy": "fedavg"},
        {"split.codec": "bf16", "balance.strategy": "local"},
    ],
    ids=["fp32", "int8", "fp16", "bf16 local"],
)
def test_the_ledger_is_the_sum_of_the_frames(
    toys: Toys, runs: Path, overrides: dict[str, object]
) -> None:
    config = toys.recipe({"lora.targets": ["attention", "mlp"], **overrides})
    done = train(config, runs / "run")
    rows = Ledger.read(done.path / "ledger.csv").rows()
    shares = share_data(config)
    total = {"up": 0, "down": 0}
    for number, client in enumerate(shares.partition.names):
        found: dict[tuple[str, str], int] = {}
        for row in rows:
            if row.client == client:
                key = row.direction, row.kind
                found[key] = found.get(key, 0) + row.bytes
        assert found == expected(config, shares.of(number), client)
        for (direction, _), size in found.items():
            total[direction] += size
    assert done.summary["cost"]["bytes_up"] == total["up"]
    assert done.summary["cost"]["bytes_down"] == total["down"]


def block_parameters() -> int:
    """Frozen values of one block of the tiny BERT, by hand, and its six adapters."""
    attention = 4 * (WIDTH * WIDTH + WIDTH) + 2 * WIDTH
    mlp = (WIDTH * 2 * WIDTH + 2 * WIDTH) + (2 * WIDTH * WIDTH + WIDTH) + 2 * WIDTH
    return attention + mlp


ADAPTER = RANK * (4 * (WIDTH + WIDTH) + 2 * (WIDTH + 2 * WIDTH))  # of one block


def test_summary(toys: Toys, runs: Path) -> None:
    config = toys.recipe({"lora.targets": ["attention", "mlp"]})
    done = train(config, runs / "run")
    summary = done.summary
    assert summary == json.loads((done.path / "summary.json").read_text())
    assert set(summary) == {
        "dataset", "recommender", "strategy", "seed", "rounds", "users", "users_dropped", "items",
        "overall", "valid", "clients", "balance", "cost",
    }  # fmt: skip
    metrics = {"recall@3", "recall@10", "ndcg@3", "ndcg@10"}
    assert set(summary["overall"]) == metrics
    assert set(summary["valid"]) == {"ndcg@10"}
    assert set(summary["balance"]) == {
        "metric", "mean", "std", "cv", "min", "max", "relative_gap", "jain", "worst_k",
        "worst_mean", "relative_gap_by_sampling_alone",
    }  # fmt: skip
    assert set(summary["cost"]) >= {
        "client_parameters", "server_parameters", "client_parameter_share", "bytes_up",
        "bytes_down", "train_seconds", "peak_rss_bytes", "client_bytes", "client_blocks",
        "client_block_parameters", "server_bytes", "server_blocks", "server_block_parameters",
        "server_adapter_parameters", "client_block_share", "server_seconds", "steps",
    }  # fmt: skip
    named = {"dataset": "toys", "recommender": "hllm", "strategy": "fellrec", "seed": 0}
    assert named.items() <= summary.items()
    assert (summary["rounds"], summary["users"], summary["users_dropped"]) == (2, 27, 0)
    assert summary["items"] == ITEMS

    clients = summary["clients"]
    assert {client["id"] for client in clients} == set(SHOPS)
    users = np.array([client["users"] for client in clients])
    shares = share_data(config)
    for number, client in enumerate(clients):
        assert set(client) - metrics == {
            "id", "users", "scored", "valid_users", "examples", "tokens", "valid", "best_round"
        }  # fmt: skip
        own = shares.of(number)
        assert client["users"] == client["scored"] == len(own)
        assert client["examples"] == sum(len(own.train[u]) - 1 for u in range(len(own)))
        table = pd.read_parquet(done.path / "clients" / client["id"] / "scores.parquet")
        assert tuple(table["user"]) == own.users
        for metric in metrics:
            assert client[metric] == pytest.approx(table[metric].mean(), abs=1e-12)
        history = [
            line["valid"]
            for line in map(json.loads, (done.path / "metrics.jsonl").read_text().splitlines())
            if line["client"] == client["id"]
        ]
        assert client["valid"] == max(history)
        assert client["best_round"] == 1 + history.index(max(history))
    for metric in metrics:
        each = [client[metric] for client in clients]
        assert summary["overall"][metric] == pytest.approx(np.average(each, weights=users))
    valid = np.average([client["valid"] for client in clients], weights=users)
    assert summary["valid"]["ndcg@10"] == pytest.approx(valid)
    scores = np.array([client["ndcg@10"] for client in clients])
    balance = summary["balance"]
    assert balance["mean"] == pytest.approx(scores.mean())
    assert balance["std"] == pytest.approx(scores.std())
    assert balance["relative_gap"] == pytest.approx((scores.max() - scores.min()) / scores.max())

    cost = summary["cost"]
    positions, norm = 64 * WIDTH + 2 * WIDTH, 2 * WIDTH  # with token types: 2 rows
    own_tensors = ITEMS * ENCODER_WIDTH + WIDTH * ENCODER_WIDTH + 1 + ITEMS * WIDTH
    block = block_parameters() + ADAPTER
    assert cost["client_blocks"] == 2 and cost["server_blocks"] == BLOCKS - 2
    assert cost["client_block_parameters"] == 2 * block
    assert cost["client_parameters"] == 2 * block + positions + norm + own_tensors
    assert cost["server_parameters"] == cost["server_block_parameters"] == block
    assert cost["server_adapter_parameters"] == ADAPTER
    assert cost["client_bytes"] == 4 * cost["client_parameters"]
    assert cost["server_bytes"] == 4 * cost["server_parameters"]
    share = cost["client_parameters"] / (cost["client_parameters"] + cost["server_parameters"])
    assert cost["client_parameter_share"] == pytest.approx(share)
    assert cost["client_block_share"] == pytest.approx(2 / 3)
    assert cost["steps"] == 2 * 3 * 3  # rounds, clients, batches of 4 among 9 users
    assert 0 < cost["server_seconds"] < cost["train_seconds"]
    assert cost["peak_rss_bytes"] > 50 << 20


def test_scores_of_users_without_targets_are_left_out(toys: Toys, runs: Path) -> None:
    """By global time few users have targets: overall and valid are means over those alone."""
    config = toys.recipe({"data.split": "global-time", "train.rounds": 1})
    done = train(config, runs / "run")
    shares = share_data(config)
    tests = {n: shares.of(i).test.lengths() for i, n in enumerate(shares.partition.names)}
    valids = {n: shares.of(i).valid.lengths() for i, n in enumerate(shares.partition.names)}
    assert any((lengths == 0).any() for lengths in tests.values())
    for key, metric, counts in (("overall", "ndcg@10", tests), ("valid", "valid", valids)):
        pairs = [
            (client[metric], np.count_nonzero(counts[client["id"]]))
            for client in done.summary["clients"]
            if np.count_nonzero(counts[client["id"]])
        ]
        wanted = np.average([v for v, _ in pairs], weights=[n for _, n in pairs])
        assert done.summary[key]["ndcg@10"] == pytest.approx(wanted)
