"""Full ranking: every item of the catalogue competes, except those in the user's history.

Never sampled negatives, which reorder methods. Users are scored a block at a time, so memory is one
block of scores whatever the number of users.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fellrec.data.interactions import Ragged
from fellrec.errors import ConfigError, DataError, ModelError

NO_ITEM = -1
"""Fills the end of a ranking when fewer than k items are left."""


def rank(
    queries: Tensor, items: Tensor, history: Ragged, k: int, *, block: int = 512
) -> NDArray[np.int32]:
    """Rank items by inner product: the k best of each user, best first, as (U, k) int32.

    queries (U, d) and items (n, d), of one dtype and on one device; row u of `history` holds the
    items that user u never gets back. Where fewer than k items are left the rest is `NO_ITEM`. The
    order of items with equal scores is unspecified. `block` users are scored at a time.

    Raises `ModelError` for shapes that do not fit or NaN scores, `DataError` when the history has
    another number of users or an item outside the catalogue, `ConfigError` for k or block below 1.
    """
    if queries.ndim != 2 or items.ndim != 2 or queries.shape[1] != items.shape[1]:
        raise ModelError(
            f"queries {tuple(queries.shape)} and items {tuple(items.shape)} do not fit: "
            "give (users, d) and (items, d)"
        )
    if block < 1:
        raise ConfigError(f"block is {block}: score at least one user at a time")
    users = len(queries)
    _check(history, users, len(items), k)
    ranked = np.full((users, k), NO_ITEM, dtype=np.int32)
    scores = torch.empty(min(block, users), len(items), dtype=queries.dtype, device=queries.device)
    with torch.no_grad():
        for first in range(0, users, block):
            last = min(first + block, users)
            part = torch.mm(queries[first:last], items.T, out=scores[: last - first])
            ranked[first:last] = _best(part, history, first, k)
    return ranked


def rank_scores(scores: Tensor, history: Ragged, k: int) -> NDArray[np.int32]:
    """Rank items by given scores: the k best of each row, best first, as (b, k) int32.

    scores (b, n) of any floating dtype; row i of `history` belongs to row i of `scores` and is
    overwritten with -inf **in place**. An item that scores -inf is never returned: where fewer than
    k are left the rest is `NO_ITEM`. The order of items with equal scores is unspecified.

    Raises as `rank` does.
    """
    if scores.ndim != 2:
        raise ModelError(f"scores have shape {tuple(scores.shape)}: give (users, items)")
    _check(history, len(scores), scores.shape[1], k)
    with torch.no_grad():
        return _best(scores, history, 0, k)


def ranking_metrics(
    ranked: NDArray[np.integer], targets: Ragged, ks: Iterable[int]
) -> dict[str, NDArray[np.float64]]:
    """Score rankings (U, k) against each user's targets: `{"recall@5": (U,) float64, ...}`.

    Recall@K is the share of the user's targets among the first K items. NDCG@K is binary: the sum
    of 1 / log2(position + 1) over hits, divided by that of an ideal ranking, whose first
    min(targets, K) positions are all hits. A target that is listed twice counts once. Users without
    targets are NaN.

    Raises `DataError` when users do not fit, a target is negative or a ranking holds an item twice,
    `ConfigError` when a
    K is below 1 or beyond the ranking's length.
    """
    cuts = list(ks)
    users, length = ranked.shape
    for cut in cuts:
        if not 1 <= cut <= length:
            raise ConfigError(f"K = {cut} needs a ranking of that length: this one has {length}")
    if len(targets) != users:
        raise DataError(f"{users} rankings but {len(targets)} rows of targets: give one row each")
    if targets.values.size and int(targets.values.min()) < 0:
        raise DataError("a target is a negative number: items count from 0")
    ordered = np.sort(ranked, axis=1)
    twice = (np.diff(ordered, axis=1) == 0) & (ordered[:, 1:] != NO_ITEM)
    if twice.any():
        raise DataError(
            f"the ranking of user {int(twice.any(axis=1).argmax())} lists an item twice"
        )

    # One integer for each (user, item): membership for all users at once.
    wanted = np.unique(_pair(np.repeat(np.arange(users), targets.lengths()), targets.values))
    hit = np.isin(_pair(np.arange(users)[:, None], ranked), wanted)
    relevant = np.bincount(wanted >> 32, minlength=users)
    known = relevant > 0

    gains = 1 / np.log2(np.arange(2, length + 2))
    best = np.concatenate([[0.0], np.cumsum(gains)])
    hits, gained = np.cumsum(hit, axis=1), np.cumsum(hit * gains, axis=1)
    metrics: dict[str, NDArray[np.float64]] = {}
    for cut in cuts:
        for name, value, ideal in (
            ("recall", hits[:, cut - 1], relevant),
            ("ndcg", gained[:, cut - 1], best[np.minimum(relevant, cut)]),
        ):
            scores = np.full(users, np.nan)
            metrics[f"{name}@{cut}"] = np.divide(value, ideal, out=scores, where=known)
    return metrics


def mean_metrics(metrics: Mapping[str, NDArray[np.float64]]) -> dict[str, float]:
    """Average per-user scores over the users that have targets; NaN when none has."""
    means = {}
    for name, scores in metrics.items():
        known = scores[~np.isnan(scores)]
        means[name] = float(known.mean()) if known.size else float("nan")
    return means


def _best(scores: Tensor, history: Ragged, first: int, k: int) -> NDArray[np.int32]:
    """Top k of scores (b, n) in place, whose row 0 is row `first` of the history."""
    users, items = scores.shape
    bounds = history.offsets[first : first + users + 1]
    seen = torch.from_numpy(history.values[bounds[0] : bounds[-1]].astype(np.int64))
    rows = torch.from_numpy(np.repeat(np.arange(users), np.diff(bounds)))
    scores[rows.to(scores.device), seen.to(scores.device)] = -torch.inf
    best = torch.topk(scores, min(k, items), dim=1)
    # top-k puts NaN first, so looking at the best is looking at all.
    if best.values.isnan().any():
        raise ModelError("a score is NaN: the model diverged, lower the learning rate")
    found = best.indices.masked_fill(best.values == -torch.inf, NO_ITEM)
    ranked = np.full((users, k), NO_ITEM, dtype=np.int32)
    ranked[:, : found.shape[1]] = found.cpu().numpy()
    return ranked


def _check(history: Ragged, users: int, items: int, k: int) -> None:
    if k < 1:
        raise ConfigError(f"k is {k}: ask for at least one item")
    if len(history) != users:
        raise DataError(f"{users} users to rank for but {len(history)} histories: give one each")
    seen = history.values
    if seen.size and (int(seen.min()) < 0 or int(seen.max()) >= items):
        raise DataError(f"a history holds an item outside the catalogue of {items} items")


def _pair(user: NDArray[np.integer], item: NDArray[np.integer]) -> NDArray[np.int64]:
    """Join user and int32 item in one int64; NO_ITEM gives a number that no item gives."""
    return (user.astype(np.int64) << 32) + item.astype(np.int64)
