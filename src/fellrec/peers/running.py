"""Run a peer by its name: fit, choose by validation, score on the test targets once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from fellrec.data.interactions import Split
from fellrec.errors import ConfigError
from fellrec.peers.factors import als
from fellrec.peers.federated import sasrec_federated
from fellrec.peers.neighbours import item_knn
from fellrec.peers.peer import Choice, Progress, Settings, Task, judge
from fellrec.peers.popular import popularity
from fellrec.peers.training import sasrec

_FIT: dict[str, Callable[[Task, NDArray[np.integer]], Choice]] = {
    "popularity": lambda task, assignment: popularity(task),
    "item-knn": lambda task, assignment: item_knn(task),
    "als": lambda task, assignment: als(task),
    "sasrec": lambda task, assignment: sasrec(task),
    "sasrec-federated": sasrec_federated,
}
PEERS = tuple(_FIT)


@dataclass(frozen=True, eq=False)
class PeerResult:
    """How a peer did.

    Attributes:
        name: one of `PEERS`.
        scores: `{"recall@5": (U,) float64, …}` on the test targets; users without any are NaN.
        valid: validation score of what was chosen, the mean over users.
        chosen: its hyper-parameters.
        tried: all hyper-parameters tried, each with its validation score.
        seconds: wall time of all of it.
        parameters: numbers that must be held to score a history.
    """

    name: str
    scores: dict[str, NDArray[np.float64]]
    valid: float
    chosen: Settings
    tried: tuple[tuple[Settings, float], ...]
    seconds: float
    parameters: int


def run_peer(
    name: str,
    split: Split,
    items: int,
    assignment: NDArray[np.integer],
    *,
    ks: Iterable[int] = (5, 10, 20),
    metric: str = "ndcg@10",
    seed: int = 0,
    progress: Progress = lambda what, done, total: None,
) -> PeerResult:
    """Fit a peer to the training items, choose by validation, score it on the test targets.

    items: in the catalogue. assignment: (U,) the client of each user; only "sasrec-federated" reads
    it, the others have everybody's data. metric: chooses by its mean over validation users. seed: 0
    or more. progress: told what is going on, how much is done, of how much.

    Raises `ConfigError` for an unknown name or metric or a missing package, `DataError` when the
    data have no validation targets or an item outside the catalogue, `TrainingError` when SASRec
    diverges.
    """
    if name not in _FIT:
        raise ConfigError(f"unknown peer {name!r}: choose one of {', '.join(PEERS)}")
    began = perf_counter()
    # The test items are not in the task, so no peer can look at them.
    task = Task(split.train, split.valid, items, metric, seed, progress)
    choice = _FIT[name](task, assignment)
    scores = judge(choice.fitted, split.history("test"), split.test, ks)
    return PeerResult(
        name,
        scores,
        choice.valid,
        choice.chosen,
        choice.tried,
        perf_counter() - began,
        choice.fitted.size(),
    )
