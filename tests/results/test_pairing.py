"""Differences between cells: paired by row, refused between unlike data, each with its own base."""

from __future__ import annotations

import numpy as np
import pytest

from fellrec.config import RunConfig
from fellrec.errors import DataError, RunError
from fellrec.results.cells import Cell
from fellrec.results.pairing import gain, level, untrained_base

DATA = {"dataset": "toys", "split": "leave-one-out", "users": 4, "items": 9, "digest": "abc"}


def cell(
    rows: list[int],
    scores: list[float],
    settings: dict[str, object] | None = None,
    data: dict[str, object] | None = None,
    *,
    baseline: bool = False,
) -> Cell:
    config = None if baseline else RunConfig.from_text("", "test", None, settings)
    values = {"ndcg@10": np.array(scores)}
    origin = {"data": {**DATA, **(data or {})}}
    return Cell("cell", config, {}, origin, np.array(rows), values)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_a_gain_is_of_the_users_that_both_scored() -> None:
    one, other = cell([0, 1, 3], [0.5, 1, 0.75]), cell([1, 2, 3], [0.75, 1, 0.5])
    # Rows 1 and 3 are shared: gains 0.25 and 0.25.
    assert gain(one, other, np.arange(4), "ndcg@10", rng()) == (0.25, 0.25, 0.25)
    assert gain(one, other, np.array([3]), "ndcg@10", rng()) == (0.25, 0.25, 0.25)
    found = level(one, np.array([1]), "ndcg@10", rng())
    assert found == (1, 1, 1)


def test_what_is_not_known_is_none() -> None:
    one = cell([0], [1.0])
    assert gain(one, one, np.arange(4), "ndcg@50", rng()) is None
    assert level(one, np.arange(4), "ndcg@50", rng()) is None


@pytest.mark.parametrize("key", ["dataset", "split", "digest"])
def test_unlike_data_are_refused(key: str) -> None:
    one, other = cell([0], [1.0]), cell([0], [1.0], data={key: "other"})
    with pytest.raises(RunError, match=rf"{key} .* and other differ") as error:
        gain(one, other, np.arange(4), "ndcg@10", rng())
    assert "\n" not in str(error.value)


def test_nobody_in_common_is_refused() -> None:
    with pytest.raises(DataError, match="no user"):
        gain(cell([0], [1.0]), cell([1], [1.0]), np.arange(4), "ndcg@10", rng())


def test_a_cell_finds_its_own_base() -> None:
    def other(**settings: object) -> Cell:
        keys = {key.replace("__", "."): value for key, value in settings.items()}
        return cell([0], [1.0], {"train.rounds": 0, **keys})

    trained = cell([0], [1.0], {"train.learning_rate": 0.5, "lora.rank": 4, "balance.alpha": 2.0})
    base = other(balance__strategy="local")  # what training alone reads may differ
    strangers = [
        cell([0], [1.0], baseline=True),
        cell([0], [1.0]),  # trained
        other(seed=1),
        other(model__k_in=2),
        other(data__k_core=5),
        other(clients__count=2),
        other(split__codec="int8"),
        cell([0], [1.0], {"train.rounds": 0}, {"digest": "other"}),
    ]
    assert untrained_base(trained, [*strangers, base]) is base
    assert untrained_base(trained, strangers) is None
    for without in (base, strangers[0]):
        assert untrained_base(without, [base, *strangers]) is None


def test_each_recommender_looks_at_its_own_section() -> None:
    shared: dict[str, object] = {"model.recommender": "bigrec", "train.rounds": 0}
    trained = cell([0], [1.0], {**shared, "train.rounds": 2})
    assert untrained_base(trained, [cell([0], [1.0], {**shared, "bigrec.beams": 9})]) is None
    assert untrained_base(trained, [cell([0], [1.0], {**shared, "recformer.item_tokens": 9})])
