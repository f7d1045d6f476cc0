"""The baseline that knows nothing of a user: what most others took, at the protocol of every model.

Counts are of training interactions alone, of all clients' users together: what one server with
everybody's data would recommend. Nobody holds these counts in a federation.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray

from fellrec.data.interactions import Ragged, Split
from fellrec.errors import DataError
from fellrec.evaluation.ranking import rank, ranking_metrics


def places(train: Ragged, items: int) -> NDArray[np.int64]:
    """Return each item's place by popularity, (items,) from 0 for the most popular.

    Items taken equally often stand in the order of their index, so that the ranking is the same
    everywhere.

    Raises `DataError` when the histories hold an item outside the catalogue.
    """
    if train.values.size and not 0 <= train.values.min() <= train.values.max() < items:
        raise DataError(f"a history holds an item outside the catalogue of {items} items")
    counts = np.bincount(train.values, minlength=items)
    found = np.empty(items, dtype=np.int64)
    found[np.argsort(-counts, kind="stable")] = np.arange(items)
    return found


def popularity_metrics(
    split: Split, items: int, ks: Iterable[int]
) -> dict[str, NDArray[np.float64]]:
    """Score the most popular items as everybody's recommendation: `{"recall@5": (U,), …}`.

    As models are scored: the whole catalogue, training and validation items of the user masked,
    against the test targets. Users without targets are NaN.

    Raises `DataError` as `places`, `ConfigError` for a K below 1.
    """
    cuts = list(ks)
    # In float64 places are exact, so no two items are equal and none of the order is left to torch.
    scores = torch.from_numpy(-places(split.train, items).astype(np.float64))[:, None]
    everybody = torch.ones(len(split), 1, dtype=torch.float64)
    ranked = rank(everybody, scores, split.history("test"), max(cuts))
    return ranking_metrics(ranked, split.test, cuts)
