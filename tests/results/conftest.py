"""Every test here runs in a cache of its own; runs are made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from fellrec.federation.runs import train
from fellrec.results.plan import untrained
from tests.toys import Toys

SAMPLE = {"name": "sampled", "evaluation.test_users": 12}


@pytest.fixture(autouse=True)
def use_own_cache(own_cache: None) -> None:
    """Take the shared fixture for all tests of this folder."""


@pytest.fixture(scope="session")
def finished_runs(
    toys: Toys, undisturbed: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Return four finished runs: all users and a sample of 12, each trained and untrained."""
    folder = tmp_path_factory.mktemp("finished")
    sample = toys.recipe(SAMPLE)
    whole = untrained(toys.recipe())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FELLREC_CACHE", str(toys.cache))
        made = {
            config.name: train(config, folder / config.name).path
            for config in (whole, sample, untrained(sample))
        }
    return {"toys": undisturbed, **made}
