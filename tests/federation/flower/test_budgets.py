"""Clients on machines of their own spend their users' privacy, and stop when it is spent."""

from __future__ import annotations

import json
from pathlib import Path

from fellrec.federation.store import RunStore
from fellrec.privacy.accounting import subsampled_epsilon
from tests.federation.deployment.town import town
from tests.toys import Toys


def test_a_deployment_ends_when_every_budget_is_spent(toys: Toys, tmp_path: Path) -> None:
    """Nine users each, three at a time, two rounds of three steps are within it."""
    budget = 1.0001 * subsampled_epsilon(1.0, 1 / 3, 6, 1e-5)
    config = toys.recipe(
        {
            "privacy.user_noise": 1.0,
            "privacy.epsilon": budget,
            "train.batch_size": 3,
            "train.rounds": 4,
            "train.local_epochs": 1,
        }
    )
    with town(config, tmp_path) as it:
        run = it.conduct()
        state = RunStore(run).state()
        assert state.round == 2 and all(each.stopped for each in state.standings.values())
        summary = json.loads((run / "summary.json").read_text())
        told = summary["privacy"]["uploads"]
        assert set(told["epsilon"].values()) == {subsampled_epsilon(1.0, 1 / 3, 6, 1e-5)}
        for name in it.names:
            assert json.loads((it.folder_of(name) / "contributed.json").read_text()) == 2
