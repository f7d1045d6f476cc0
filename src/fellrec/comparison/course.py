"""The course of training, from what a cell's rounds logged: how far, how fast, and whether flat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fellrec.results.cells import Cell

_FLAT = 0.01  # relative rise of the best score within the last two rounds
_LAST = 2
_WARM = 0.95


@dataclass(frozen=True)
class Course:
    """How a row's seeds learned; one entry per seed.

    curve: validation score after each round, the mean over all clients' validation users, NaN
    before anybody has one. best: the highest. flat: whether the best of the last two rounds is at
    most 1 % above that of all before. seconds: of training, both sides, clients one after another.
    heated: share of rounds and clients whose warmth stayed below 0.95. spread: largest difference
    in attention, by round. reached: rounds and seconds until the curve was first at the given
    score, None where it never was.
    """

    curve: tuple[tuple[float, ...], ...]
    best: tuple[float, ...]
    flat: tuple[bool, ...]
    seconds: tuple[float | None, ...]
    heated: tuple[float, ...]
    spread: tuple[tuple[float, ...], ...]
    reached: tuple[tuple[int, float | None] | None, ...]


def course_of(cells: Sequence[Cell], aims: Sequence[float | None]) -> Course | None:
    """Read the course of a row's cells; aims: the score to be reached, for each.

    None where a cell has no rounds, or nobody has a validation score.
    """
    if not cells or not all(_scored(cell) for cell in cells):
        return None
    found = [_one(cell, aim) for cell, aim in zip(cells, aims, strict=True)]
    return Course(*(tuple(column) for column in zip(*found, strict=True)))


def _scored(cell: Cell) -> bool:
    """Return whether a round has a score that counts."""
    if not cell.rounds:  # a peer has no clients either
        return False
    users = {client["id"]: client["valid_users"] for client in cell.summary["clients"]}
    return any(line.get("valid") is not None and users[line["client"]] for line in cell.rounds)


def _one(cell: Cell, aim: float | None) -> tuple[Any, ...]:
    """Return the fields of a course for one cell, in their order."""
    weights = {client["id"]: client["valid_users"] for client in cell.summary["clients"]}
    lines = [line for line in cell.rounds if "failed" not in line]
    latest: dict[str, float] = {}
    curve: list[float] = []
    clock: list[float | None] = []
    spread: list[float] = []
    spent: float | None = 0.0
    for number in range(1 + max(line["round"] for line in cell.rounds)):
        here = [line for line in lines if line["round"] == number]
        for line in here:  # a client that sat the round out is as it was
            if line["valid"] is not None:
                latest[line["client"]] = line["valid"]
            spent = None if spent is None or line["seconds"] is None else spent + line["seconds"]
        known = [name for name in latest if weights[name]]
        values, shares = [latest[name] for name in known], [weights[name] for name in known]
        curve.append(float(np.average(values, weights=shares)) if known else float("nan"))
        clock.append(spent)
        spread.append(here[0]["spread"][2] - here[0]["spread"][0] if here else 0.0)
    before = [value for value in curve[:-_LAST] if not np.isnan(value)]
    # A curve that has a score keeps one in every later round.
    flat = bool(before) and max(curve[-_LAST:]) <= (1 + _FLAT) * max(before)
    first = next((n for n, value in enumerate(curve) if aim is not None and value >= aim), None)
    heated = float(np.mean([line["warmth"] < _WARM for line in lines]))
    reached = None if first is None else (first + 1, clock[first])
    best = float(np.nanmax(curve))
    return tuple(curve), best, flat, spent, heated, tuple(spread), reached
