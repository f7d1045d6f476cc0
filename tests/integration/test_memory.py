"""The memory that a dry run foresees, against the largest that real processes have taken."""

from __future__ import annotations

import sys

import pytest

from benchmarks.parts.peaks import measure
from fellrec.config import RunConfig
from fellrec.federation.dryrun import dry_run

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(sys.platform != "linux", reason="/proc tells the largest memory"),
]

# Batches so large that the program is well below all of it, and few of them.
SETTINGS = {
    "data.max_users": 64,
    "clients.partition": "random",
    "clients.count": 1,
    "train.local_epochs": 1,
    "train.batch_size": 64,
    "train.threads": 1,
    "evaluation.before_mixing": False,
}


def test_it_is_what_the_two_sides_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    config = RunConfig.from_toml("demo", SETTINGS)
    foreseen, found = dry_run(config)["memory"], measure(config, tested=False)
    for side, measured in (("client", found.client), ("server", found.server)):
        terms = foreseen[side]
        assert terms["activations"] + terms["scores"] + terms["frames"] > terms["scoring"]
        assert terms["total"] == pytest.approx(measured, rel=0.1), (side, terms)
        assert terms["total"] > 1.4 * terms["program"]
