"""A comparison of three strategies and a peer whose figures are worked out in the tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from fellrec.comparison.plan import Comparison
from fellrec.comparison.rows import Compared
from fellrec.results.cells import Cell
from tests.comparison.made import cell, compared, description, line

TEXT = """
name = "mine"
title = "All of mine"
about = "To see."
recipe = "smoke"
seeds = [0, 1]
reference = "fedavg"
peers = ["popularity"]
[strategies.centralised]
"clients.count" = 1
"clients.partition" = "random"
[strategies.local]
"balance.strategy" = "local"
[strategies.fedavg]
"balance.strategy" = "fedavg"
[strategies.fellrec]
"""
SCORES = {
    "popularity": [0.0, 0.0, 0.0, 0.4],
    "centralised": [0.4, 0.6, 0.5, 0.7],
    "local": [0.1, 0.3, 0.5, 0.9],
    "fedavg": [0.2, 0.4, 0.6, 0.8],
}
"""Of four users, two of each of two clients. fellrec is fedavg and 0.1 for everybody."""

Results = dict[tuple[str, int], Cell | str | None]


@pytest.fixture
def comparison(tmp_path: Path) -> Comparison:
    """Return the comparison as it is read."""
    return description(tmp_path, TEXT.replace('"smoke"', '"demo"'))


@pytest.fixture
def results(comparison: Comparison) -> Results:
    """Return all its cells; seed 1 swaps the clients' users: no client stays what it was."""
    found: Results = {}
    for planned in comparison.cells:
        label, seed = planned.label, planned.seed
        scores = SCORES.get(label) or [score + 0.1 for score in SCORES["fedavg"]]
        whose = [[0, 0, 1, 1], [1, 1, 0, 0]][seed]
        if planned.peer is not None:
            found[label, seed] = cell(planned, scores, None)
            continue
        rounds = [line(number, f"c{c}", 0.1 * number) for number in range(3) for c in range(2)]
        if label == "centralised":
            rounds, whose = [line(number, "c0", 0.1) for number in range(3)], [0, 0, 0, 0]
        found[label, seed] = cell(planned, scores, whose, rounds=rounds)
    return found


@pytest.fixture
def whole(comparison: Comparison, results: Results) -> Compared:
    """Return the comparison with nothing missing."""
    return compared(comparison, results)


@pytest.fixture
def partly(comparison: Comparison, results: Results) -> Compared:
    """Return the comparison where fellrec failed, once or twice, and other cells lack."""
    results["fellrec", 0] = "it | diverged"
    results["fellrec", 1] = "it | diverged"
    results["local", 1] = "out of memory"
    results["centralised", 0] = results["centralised", 1] = None
    return compared(comparison, results)
