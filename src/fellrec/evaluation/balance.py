"""How evenly clients are served, beside what sampling alone would show.

A handful of clients with a few hundred users each differ by sampling alone: a gap means something
only beside the gap that equally good clients of those sizes would show.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from fellrec.errors import DataError
from fellrec.evaluation.bootstrap import in_parts


def balance(scores: ArrayLike) -> dict[str, float]:
    """Summarise one score per client: (N,), not negative; NaN (a client without score) is left out.

    Keys: `mean`, `std` (population), `cv` (std / mean), `min`, `max`, `relative_gap`
    ((max - min) / max), `jain` ((Σx)² / (N Σx²): 1 when all are equal, 1/N when one has all),
    `worst_k` (N // 5, at least 1) and `worst_mean` (mean of the `worst_k` lowest). When
    all scores are 0 the clients are equal: cv and relative_gap are 0, jain 1.

    Raises `DataError` when no client has a score, or one is negative or infinite.
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1:
        raise DataError(f"scores have shape {values.shape}: give one for each client")
    values = np.sort(values[~np.isnan(values)])
    if not values.size:
        raise DataError("no client has a score: none has users with targets")
    if values[0] < 0 or np.isinf(values[-1]):
        raise DataError("a client's score is negative or infinite: give scores such as NDCG")
    clients, top = len(values), float(values[-1])
    worst = max(1, clients // 5)
    # Ratios do not depend on the unit: dividing by the largest keeps squares from underflowing.
    shares = values / top if top > 0 else np.ones(clients)
    return {
        "mean": float(values.mean()),
        "std": float(values.std()),
        "cv": float(shares.std() / shares.mean()),
        "min": float(values[0]),
        "max": top,
        "relative_gap": float(1 - shares[0]),
        "jain": float(shares.sum() ** 2 / (clients * np.square(shares).sum())),
        "worst_k": worst,
        "worst_mean": float(values[:worst].mean()),
    }


def sampling_gap(
    per_user_scores: Sequence[ArrayLike], rng: np.random.Generator, draws: int = 1000
) -> float:
    """Mean relative gap that equally good clients of these sizes would show by sampling alone.

    `per_user_scores[c]` (U_c,) are client c's users' scores. Users are permuted over the clients
    `draws` times, so that clients differ by nothing but chance; the (max - min) / max of their
    means is averaged. NaN users, then clients without users, are left out; fewer than two clients
    give 0, without a draw.

    Raises `DataError` for draws below 1.
    """
    groups = [np.asarray(scores, dtype=np.float64).ravel() for scores in per_user_scores]
    groups = [scores[~np.isnan(scores)] for scores in groups]
    groups = [scores for scores in groups if scores.size]
    if len(groups) < 2:
        return 0.0
    pooled = np.concatenate(groups)
    sizes = np.array([len(scores) for scores in groups])
    starts = np.cumsum(sizes) - sizes
    total = 0.0
    for part in in_parts(draws, len(pooled)):
        shuffled = rng.permuted(np.tile(pooled, (part, 1)), axis=1)
        means = np.add.reduceat(shuffled, starts, axis=1) / sizes
        top = means.max(axis=1)
        gaps = np.divide(top - means.min(axis=1), top, out=np.zeros_like(top), where=top > 0)
        total += float(gaps.sum())
    return total / draws
