"""Full ranking against sorting by hand; metrics against worked values, a loop, and ir_measures."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import ir_measures
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ir_measures import R, nDCG

from fellrec.data.interactions import Ragged
from fellrec.errors import ConfigError, DataError, ModelError
from fellrec.evaluation import mean_metrics, rank, rank_scores, ranking_metrics


def naive_rank(scores: np.ndarray, history: Ragged, k: int) -> list[list[int]]:
    ranked = []
    for user, row in enumerate(scores):
        seen = set(history[user].tolist())
        left = sorted((i for i in range(len(row)) if i not in seen), key=lambda i: -row[i])
        ranked.append((left + [-1] * k)[:k])
    return ranked


def naive_metrics(ranked: Sequence[int], targets: Sequence[int], cut: int) -> tuple[float, float]:
    wanted = set(targets)
    hits = [position for position, item in enumerate(ranked[:cut]) if item in wanted]
    ideal = sum(1 / math.log2(p + 2) for p in range(min(len(wanted), cut)))
    return len(hits) / len(wanted), sum(1 / math.log2(p + 2) for p in hits) / ideal


def test_history_is_masked_and_short_rankings_are_filled() -> None:
    # Scores 4, 3, 2, 1. User 0 has seen the best (twice); user 1 all but item 2; user 2 nothing.
    queries, items = torch.ones(3, 1), torch.tensor([[4.0], [3.0], [2.0], [1.0]])
    history = Ragged.from_rows([[0, 0], [3, 1, 0], []])
    found = rank(queries, items, history, 3)
    assert found.dtype == np.int32
    assert found.tolist() == [[1, 2, 3], [2, -1, -1], [0, 1, 2]]


def test_more_than_the_catalogue_is_filled() -> None:
    found = rank(torch.ones(1, 1), torch.tensor([[1.0], [2.0]]), Ragged.from_rows([[]]), 5)
    assert found.tolist() == [[1, 0, -1, -1, -1]]


@settings(max_examples=60)
@given(
    users=st.integers(0, 9),
    count=st.integers(1, 30),
    k=st.integers(1, 12),
    block=st.integers(1, 12),
    seed=st.integers(0, 10**6),
)
def test_rank_matches_sorting(users: int, count: int, k: int, block: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    # All scores of a user differ, and times the identity they are exact in any order of summation.
    scores = np.array([rng.permutation(count) for _ in range(users)], dtype=np.float32)
    scores = scores.reshape(users, count)
    history = Ragged.from_rows(
        [rng.integers(count, size=rng.integers(0, count + 3), dtype=np.int32) for _ in scores]
    )
    queries, items = torch.from_numpy(scores), torch.eye(count)
    expected = naive_rank(scores, history, k)
    assert rank(queries, items, history, k, block=block).tolist() == expected
    assert torch.equal(queries, torch.from_numpy(scores))
    assert rank_scores(queries.clone(), history, k).tolist() == expected


def test_rank_scores_never_returns_minus_infinity() -> None:
    scores = torch.tensor([[-math.inf, 1.0, math.inf], [-math.inf] * 3])
    found = rank_scores(scores, Ragged.from_rows([[1], []]), 2)
    assert found.tolist() == [[2, -1], [-1, -1]]
    assert scores[0, 1] == -math.inf  # in place, as announced


def test_metrics_by_hand() -> None:
    # User 0: targets {7, 9}, hits at positions 1 and 3. Recall@1 = 1/2, @3 = 1.
    #   NDCG@1 = 1/1 (ideal of min(2, 1) = 1); @3 = (1 + 1/2) / (1 + 1/log2(3)) = 0.91972.
    # User 1: target {5} at position 2: NDCG@3 = 1/log2(3) = 0.63093. User 2: no target.
    ranked = np.array([[7, 1, 9], [1, 5, -1], [1, 2, 3]], dtype=np.int32)
    found = ranking_metrics(ranked, Ragged.from_rows([[9, 7, 7], [5], []]), [1, 3])
    assert list(found) == ["recall@1", "ndcg@1", "recall@3", "ndcg@3"]
    assert found["recall@1"].tolist() == pytest.approx([0.5, 0, math.nan], nan_ok=True)
    assert found["recall@3"].tolist() == pytest.approx([1, 1, math.nan], nan_ok=True)
    assert found["ndcg@1"].tolist() == pytest.approx([1, 0, math.nan], nan_ok=True)
    expected = [1.5 / (1 + 1 / math.log2(3)), 1 / math.log2(3), math.nan]
    assert found["ndcg@3"].tolist() == pytest.approx(expected, nan_ok=True)
    assert mean_metrics(found)["ndcg@3"] == pytest.approx((0.9197207891 + 0.6309297536) / 2)


def test_users_without_targets_only() -> None:
    found = ranking_metrics(np.array([[0, 1]], dtype=np.int32), Ragged.from_rows([[]]), [2])
    assert math.isnan(mean_metrics(found)["ndcg@2"])


def draw_rankings(seed: int, users: int, count: int, k: int) -> tuple[np.ndarray, Ragged]:
    rng = np.random.default_rng(seed)
    ranked = np.array([rng.permutation(count)[:k] for _ in range(users)], dtype=np.int32)
    for row in ranked:
        row[len(row) - rng.integers(0, 3) :] = -1
    rows = [rng.integers(count, size=rng.integers(1, 8), dtype=np.int32) for _ in range(users)]
    return ranked, Ragged.from_rows(rows)


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), users=st.integers(1, 8))
def test_metrics_match_a_loop(seed: int, users: int) -> None:
    ranked, targets = draw_rankings(seed, users, 25, 10)
    found = ranking_metrics(ranked, targets, (1, 5, 10))
    for cut in (1, 5, 10):
        pairs = [naive_metrics(ranked[u].tolist(), targets[u].tolist(), cut) for u in range(users)]
        assert found[f"recall@{cut}"].tolist() == pytest.approx([recall for recall, _ in pairs])
        assert found[f"ndcg@{cut}"].tolist() == pytest.approx([ndcg for _, ndcg in pairs])


def test_metrics_match_ir_measures() -> None:
    ranked, targets = draw_rankings(3, 40, 30, 20)
    qrels = {str(u): {str(i): 1 for i in targets[u]} for u in range(40)}
    run = {
        str(u): {str(i): float(-p) for p, i in enumerate(row) if i != -1}
        for u, row in enumerate(ranked)
    }
    measures = {f"{n}@{k}": m @ k for k in (5, 10, 20) for n, m in (("recall", R), ("ndcg", nDCG))}
    found = ranking_metrics(ranked, targets, (5, 10, 20))
    seen = 0
    for metric in ir_measures.iter_calc(list(measures.values()), qrels, run):
        name = next(n for n, m in measures.items() if m == metric.measure)
        assert found[name][int(metric.query_id)] == pytest.approx(metric.value)
        seen += 1
    assert seen == 40 * 6


def test_refusals() -> None:
    one, history = torch.ones(2, 3), Ragged.from_rows([[], []])
    with pytest.raises(ModelError, match="do not fit"):
        rank(one, torch.ones(4, 2), history, 1)
    with pytest.raises(ModelError, match="NaN"):
        rank(one, torch.full((4, 3), torch.nan), history, 1)
    with pytest.raises(DataError, match="1 histories"):
        rank(one, one, Ragged.from_rows([[]]), 1)
    for outside in (-1, 2):
        with pytest.raises(DataError, match="outside the catalogue of 2"):
            rank(one, one, Ragged.from_rows([[0], [outside]]), 1)
    with pytest.raises(ConfigError, match="k is 0"):
        rank(one, one, history, 0)
    with pytest.raises(ConfigError, match="block is 0"):
        rank(one, one, history, 1, block=0)
    with pytest.raises(ModelError, match="users, items"):
        rank_scores(torch.ones(3), history, 1)
    ranked = np.array([[0, 1], [2, 2]], dtype=np.int32)
    with pytest.raises(DataError, match="user 1 lists an item twice"):
        ranking_metrics(ranked, history, [1])
    with pytest.raises(DataError, match="1 rows of targets"):
        ranking_metrics(ranked, Ragged.from_rows([[0]]), [1])
    with pytest.raises(DataError, match="negative"):
        ranking_metrics(ranked, Ragged.from_rows([[0], [-1]]), [1])
    for cut in (0, 3):
        with pytest.raises(ConfigError, match=f"K = {cut}"):
            ranking_metrics(ranked, history, [cut])


def test_the_benchmark_runs() -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "ranking.py"
    done = subprocess.run(
        [sys.executable, script, "--quick"], capture_output=True, text=True, check=True
    )
    assert done.stdout.count("\n") == 1
    assert "(target 2.0)" in done.stdout
