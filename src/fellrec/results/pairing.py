"""Differences between results: over the users that both scored, never between unlike data."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from fellrec.errors import RunError
from fellrec.evaluation.bootstrap import Interval, mean_interval, paired_bootstrap
from fellrec.results.cells import Cell


def level(
    cell: Cell, rows: NDArray[np.int64], metric: str, rng: np.random.Generator
) -> Interval | None:
    """Return the mean of a metric over some users, with its interval; None where it is unknown."""
    if metric not in cell.scores:
        return None
    return mean_interval(cell.of(rows, metric), rng)


def gain(
    cell: Cell, other: Cell, rows: NDArray[np.int64], metric: str, rng: np.random.Generator
) -> Interval | None:
    """Return how far `cell` is above `other`, paired over those of these users that both scored.

    None where one of them does not know the metric.

    Raises RunError when the cells are of different data or splits, DataError when they have no
    user in common.
    """
    check_same_data(cell, other)
    if metric not in cell.scores or metric not in other.scores:
        return None
    return paired_bootstrap(cell.of(rows, metric), other.of(rows, metric), rng)


def check_same_data(cell: Cell, other: Cell) -> None:
    """Raise RunError when two cells are of different data or splits."""
    one, two = cell.origin["data"], other.origin["data"]
    for key in ("dataset", "split", "digest"):
        if one[key] != two[key]:
            what = f"{key} {one[key]} and {two[key]}"
            raise RunError(f"{cell.name} and {other.name} can't be compared: {what} differ")


def untrained_base(cell: Cell, cells: Iterable[Cell]) -> Cell | None:
    """Return the cell that scored the same base before any training; None if there is none.

    Whatever decides an untrained model's scores and whose they are is the same in both: seed,
    data, clients, model, the recommender's own section and the codec.
    """
    for other in cells:
        if (
            _untrained(other)
            and not _untrained(cell)
            and _decides(other) == _decides(cell)
            and other.origin["data"] == cell.origin["data"]
        ):
            return other
    return None


def _untrained(cell: Cell) -> bool:
    return cell.config is not None and cell.config.train.rounds == 0


def _decides(cell: Cell) -> object:
    config = cell.config
    if config is None:
        return None
    own = getattr(config, config.model.recommender, None)
    return (config.seed, config.data, config.clients, config.model, own, config.split.codec)
