"""A run over Flower's messages and a real trunk is the simulation's, to the last bit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from fellrec.federation.runs import train
from fellrec.federation.store import RunStore
from tests.federation.deployment.comparing import check_equal, check_moments, sums
from tests.federation.deployment.town import town
from tests.toys import Toys

CASES: Mapping[str, Mapping[str, object]] = {
    # Private item vectors, moments that start anew, clients that stop early.
    "hllm": {
        "model.item_residual": "local",
        "balance.merge": "product",
        "train.rounds": 4,
        "train.patience": 1,
        "train.learning_rate": 0.05,
    },
    # Clients that sit rounds out, and draw of their own.
    "recformer": {
        "model.recommender": "recformer",
        "clients.per_round": 2,
        "train.rounds": 3,
        "train.samples": 20,
        "evaluation.valid_users": 12,
        "evaluation.test_users": 9,
        "balance.space": "change",
    },
    # A frozen factor that does not travel, and a strength that validation chooses.
    "bigrec": {
        "model.recommender": "bigrec",
        "lora.freeze_a": True,
        "bigrec.popularity": [0.0, 1.0],
        "bigrec.decode": "retrieve",
        "train.micro_batches": 2,
        "train.in_flight": 2,
    },
    "fedavg, no trunk": {
        "balance.strategy": "fedavg",
        "balance.weighting": "examples",
        "model.k_out": 2,
    },
    # A pull on both sides of the cut, and halves of the adapter that rest in turn.
    "fedprox": {
        "balance.strategy": "fedprox",
        "balance.proximal": 0.5,
        "lora.alternate": True,
    },
    # A head that never leaves, from a start that no server knows, and trunks that are not mixed.
    "private": {
        "model.item_residual": "local",
        "privacy.private_head": True,
        "privacy.secret_start": 0.5,
        "privacy.exchange_trunk": False,
    },
    "local, no trunk": {"balance.strategy": "local", "model.k_out": 2},
    "no round": {"train.rounds": 0},
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_over_messages_is_the_simulation(toys: Toys, tmp_path: Path, case: str) -> None:
    base = toys.lm if case == "bigrec" else toys.bert
    config = toys.recipe({"model.base": str(base), **CASES[case]})
    simulated = train(config, tmp_path / "simulated").path
    with town(config, tmp_path, trunks=0 if "no trunk" in case else 1) as it:
        run = it.conduct()
        check_equal(it, run, simulated)
        if config.train.rounds:
            check_moments(it, simulated, RunStore(simulated).state().round)
        own = [it.folder_of(name) / "ledger.csv" for name in it.names]
        assert sums([run / "ledger.csv", *own]) == sums([simulated / "ledger.csv"])
        reset = case == "hllm"
        stopped = [each.stopped for each in RunStore(run).state().standings.values()]
        assert any(stopped) == reset  # the case shows what it is there for
