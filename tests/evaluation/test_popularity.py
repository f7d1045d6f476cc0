"""The popularity baseline: by hand, its order of equals, the known figures of MovieLens."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fellrec.data.interactions import Ragged, Split
from fellrec.data.sources import load_dataset
from fellrec.data.splits import split
from fellrec.errors import ConfigError, DataError
from fellrec.evaluation import mean_metrics
from fellrec.evaluation.popularity import places, popularity_metrics


def test_places_by_hand() -> None:
    # Counts 1, 3, 0, 3, 1: the two of three first, equal ones by index.
    train = Ragged.from_rows([[1, 3, 0], [3, 1], [3, 1, 4]])
    assert places(train, 5).tolist() == [2, 0, 4, 1, 3]
    assert places(Ragged.from_rows([]), 3).tolist() == [0, 1, 2]


def test_metrics_by_hand() -> None:
    # By training counts the order is 0 (3), 1 (2), 2 (1), 3, 4: what validation adds does not
    # count, but is masked. User 0 has taken 0, 1, 3: gets 2, 4; the target 4 is second. User 1 has
    # taken 0, 1, 4: gets 2, 3, the target 2 is first. User 2 has no target.
    parts = Split(
        users=("a", "b", "c"),
        train=Ragged.from_rows([[0, 1], [0, 1], [0, 2]]),
        valid=Ragged.from_rows([[3], [4], [3]]),
        test=Ragged.from_rows([[4], [2], []]),
        dropped=0,
        user_columns={},
    )
    found = popularity_metrics(parts, 5, (1, 2))
    nan = math.nan
    for metric, wanted in (
        ("recall@1", [0, 1, nan]),
        ("recall@2", [1, 1, nan]),
        ("ndcg@1", [0, 1, nan]),
        ("ndcg@2", [1 / math.log2(3), 1, nan]),
    ):
        np.testing.assert_allclose(found[metric], wanted)


def test_lists_longer_than_the_catalogue() -> None:
    one = Ragged.from_rows([[0]])
    parts = Split(("a",), one, Ragged.from_rows([[]]), Ragged.from_rows([[1]]), 0, {})
    assert popularity_metrics(parts, 2, (50,))["recall@50"].tolist() == [1]


def test_refusals() -> None:
    one = Ragged.from_rows([[2]])
    parts = Split(("a",), one, one, one, 0, {})
    for items in (0, 2):
        with pytest.raises(DataError, match="outside the catalogue"):
            popularity_metrics(parts, items, (5,))
    with pytest.raises(DataError, match="outside the catalogue"):
        places(Ragged.from_rows([[-1]]), 5)
    with pytest.raises(ConfigError, match="k is 0"):
        popularity_metrics(parts, 3, (0,))


@pytest.mark.integration
def test_movielens() -> None:
    """The known figures of all 943 users: METHOD section 3 has Recall@10 0.086, NDCG@10 0.045."""
    dataset = load_dataset("ml-100k")
    found = popularity_metrics(split(dataset, "leave-one-out"), len(dataset.catalogue), (5, 10, 20))
    means = mean_metrics(found)
    assert len(found["ndcg@10"]) == 943
    assert (round(means["recall@10"], 3), round(means["ndcg@10"], 3)) == (0.086, 0.045)
