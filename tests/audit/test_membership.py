"""Who was learned from: a game that a model which learned nothing can't be lost at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fellrec.audit.membership import Halves, game, judged
from fellrec.federation.shares import Quota
from fellrec.serving.run import Run
from tests.audit.test_auditing import made
from tests.toys import Toys

pytestmark = pytest.mark.usefixtures("own_cache")


def test_by_hand() -> None:
    """Of 4 x 4 pairs a loss of 1 … 4 against 3 … 6 loses 1, ties with 2 and wins 13."""
    before = Halves(np.array([9.0, 9, 9, 9]), np.array([9.0, 9, 9, 9]))
    after = Halves(np.array([1.0, 2, 3, 4]), np.array([3.0, 4, 5, 6]))
    loss, gain = judged(before, after)
    assert (loss.attack, gain.attack) == ("loss", "gain")
    assert loss.auc.mean == gain.auc.mean == pytest.approx((13 + 2 / 2) / 16)
    assert loss.auc.low <= loss.auc.mean <= loss.auc.high
    # 95 % of the others lose more than 3.15: losses of 1, 2 and 3 are below.
    assert loss.caught == 3 / 4
    # What was hard before and is hard now says nothing of who was learned from.
    hard = Halves(before.members + np.arange(4), before.others + np.arange(2, 6))
    assert judged(hard, after)[1].auc.mean == 0.5


def _played(run: Run) -> list[Halves]:
    data = run.client("north").client.data
    return game(run.workspace, "north", data, Quota(), seed=0)


def test_what_was_learned_is_told_and_what_was_not_is_not(toys: Toys, tmp_path: Path) -> None:
    before, after = _played(made(toys, tmp_path / "run", {"train.local_epochs": 12}))
    assert len(before.members) == len(after.members) == 5 and len(after.others) == 4
    members, others = (
        float((then - now).mean())
        for then, now in ((before.members, after.members), (before.others, after.others))
    )
    assert members > others and members > 0.5
    still = made(toys, tmp_path / "still", {"train.learning_rate": 1e-12})
    before, after = _played(still)
    assert after.members == pytest.approx(before.members, abs=1e-6)
    assert after.others == pytest.approx(before.others, abs=1e-6)
