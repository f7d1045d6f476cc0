"""ALS: a user's factors by the closed form, groups of taste, one seed one result."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from fellrec.data.interactions import Ragged
from fellrec.errors import ConfigError, DataError
from fellrec.peers.factors import GRID, Factors, FactorSettings, als
from fellrec.peers.peer import recommend
from tests.peers.tastes import GROUP, dense, groups, random_histories, task_of

ITEMS = 30
SETTINGS = FactorSettings(4, 0.5, 3.0, 10)
TRAIN = random_histories(50, ITEMS, 12)


def test_user_factors_are_the_closed_form() -> None:
    # Hu et al., equation 4: x_u = (Y'CᵘY + λI)⁻¹ Y'Cᵘp(u), with Cᵘ = alpha on the history, else 1.
    fitted = Factors.fit(TRAIN, ITEMS, SETTINGS, 0)
    queries = random_histories(10, ITEMS, 6, seed=1)
    y = fitted.item_factors.astype(np.float64)
    for user, taken in enumerate(dense(queries, ITEMS)):
        confidence = np.where(taken > 0, SETTINGS.alpha, 1.0)
        left = y.T @ (confidence[:, None] * y) + SETTINGS.regularisation * np.eye(4)
        expected = np.linalg.solve(left, y.T @ (confidence * taken))
        one = queries.take([user])
        np.testing.assert_allclose(fitted.user_factors(one)[0], expected, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(fitted.scores(one)[0], y @ expected, rtol=1e-3, atol=1e-3)


def test_a_longer_history_counts_without_another_fit() -> None:
    split = groups()
    fitted = Factors.fit(split.train, 2 * GROUP, FactorSettings(2, 0.1, 5.0), 0)
    # A user who goes over to the other group is recommended from it.
    first, second = Ragged.from_rows([[0]]), Ragged.from_rows([[0, *range(12, 18)]])
    assert recommend(fitted, first, 1)[0, 0] < GROUP
    assert recommend(fitted, second, 1)[0, 0] >= GROUP


def test_recommends_within_a_group() -> None:
    split = groups()
    fitted = Factors.fit(split.train, 2 * GROUP, FactorSettings(2, 0.1, 5.0), 0)
    found = recommend(fitted, split.train, GROUP - 5)
    assert (found // GROUP == (np.arange(len(found)) % 2)[:, None]).all()
    assert fitted.size() == 2 * 2 * GROUP


def test_the_seed_decides() -> None:
    one, same, other = (
        Factors.fit(TRAIN, ITEMS, SETTINGS, seed).item_factors for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_chosen_from_the_grid() -> None:
    choice = als(task_of(groups(), 2 * GROUP))
    scores = [valid for _, valid in choice.tried]
    assert len(scores) == len(GRID)
    assert choice.valid == max(scores)
    assert FactorSettings(**choice.chosen) == GRID[scores.index(choice.valid)]  # type: ignore[arg-type]


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="outside the catalogue of 30 items"):
        Factors.fit(Ragged.from_rows([[30]]), ITEMS, SETTINGS, 0)
    monkeypatch.setitem(sys.modules, "implicit", None)
    with pytest.raises(ConfigError, match=r"implicit is missing; install fellrec\[peers\]"):
        Factors.fit(TRAIN, ITEMS, SETTINGS, 0)
