"""Item-kNN against the formulas written out densely, and where the answer is plain."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from numpy.typing import NDArray

from fellrec.data.interactions import Ragged
from fellrec.errors import ConfigError, DataError
from fellrec.peers.neighbours import GRID, Neighbours, NeighbourSettings, Weighting, item_knn
from fellrec.peers.peer import recommend
from tests.peers.tastes import GROUP, dense, groups, random_histories, task_of

ITEMS = 30


def similarities(weighting: Weighting) -> NDArray[np.float64]:
    """All items with all, (ITEMS, ITEMS), by the formulas of information retrieval.

    A user is a term and an item a document: a term's rarity is log(N / (1 + documents with it)).
    """
    taken = dense(TRAIN, ITEMS).T
    rarity = np.log(ITEMS / (1 + taken.sum(axis=0)))
    if weighting == "cosine":
        rows = taken
    elif weighting == "tf-idf":
        rows = taken * rarity
    else:
        lengths = taken.sum(axis=1) / taken.sum(axis=1).mean()
        rows = taken * rarity * 2.2 / (1.2 * (0.25 + 0.75 * lengths[:, None]) + 1)
    if weighting != "bm25":
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return rows @ rows.T


TRAIN = random_histories(50, ITEMS, 12)
KINDS: tuple[Weighting, ...] = ("cosine", "tf-idf", "bm25")


@pytest.mark.parametrize("weighting", KINDS)
def test_the_formulas_when_all_are_neighbours(weighting: Weighting) -> None:
    fitted = Neighbours.fit(TRAIN, ITEMS, NeighbourSettings(weighting, ITEMS))
    queries = random_histories(20, ITEMS, 6, seed=1)
    expected = dense(queries, ITEMS) @ similarities(weighting)
    np.testing.assert_allclose(fitted.scores(queries).numpy(), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("weighting", KINDS)
def test_only_the_nearest_count(weighting: Weighting) -> None:
    fitted = Neighbours.fit(TRAIN, ITEMS, NeighbourSettings(weighting, 5))
    each = Ragged.from_rows([[item] for item in range(ITEMS)])
    found, full = fitted.scores(each).numpy(), similarities(weighting)
    kept = found > 0
    np.testing.assert_allclose(found[kept], full[kept], rtol=1e-6)
    # By value and not by item: of equally near ones either may be kept.
    largest = -np.sort(-full, axis=1)[:, :5]
    np.testing.assert_allclose(-np.sort(-found, axis=1)[:, :5], largest, rtol=1e-6, atol=1e-9)
    assert kept.sum(axis=1).max() == 5
    assert fitted.size() == 5 * ITEMS


def test_taking_an_item_twice_is_taking_it() -> None:
    settings = NeighbourSettings("cosine", 5)
    once, twice = Ragged.from_rows([[0, 1], [1, 2]]), Ragged.from_rows([[1, 0, 1], [2, 2, 1]])
    left, right = (Neighbours.fit(train, 3, settings) for train in (once, twice))
    np.testing.assert_array_equal(left.scores(twice), right.scores(once))
    assert twice.values.tolist() == [1, 0, 1, 2, 2, 1]


@pytest.mark.parametrize("weighting", KINDS)
def test_recommends_within_a_group(weighting: Weighting) -> None:
    split = groups()
    fitted = Neighbours.fit(split.train, 2 * GROUP, NeighbourSettings(weighting, 10))
    found = recommend(fitted, split.train, GROUP - 5)
    assert (found // GROUP == (np.arange(len(found)) % 2)[:, None]).all()


def test_chosen_from_the_grid() -> None:
    choice = item_knn(task_of(groups(), 2 * GROUP))
    scores = [valid for _, valid in choice.tried]
    assert len(scores) == len(GRID)
    assert choice.valid == max(scores)
    assert NeighbourSettings(**choice.chosen) == GRID[scores.index(choice.valid)]  # type: ignore[arg-type]


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = NeighbourSettings("cosine", 5)
    for item in (-1, 3):
        with pytest.raises(DataError, match="outside the catalogue of 3 items"):
            Neighbours.fit(Ragged.from_rows([[item]]), 3, settings)
    monkeypatch.setitem(sys.modules, "implicit", None)
    with pytest.raises(ConfigError, match=r"implicit is missing; install fellrec\[peers\]"):
        Neighbours.fit(TRAIN, ITEMS, settings)
