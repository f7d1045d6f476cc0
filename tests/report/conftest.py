"""Run folders of made-up numbers, written once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fellrec.report import write_report
from tests.report.made import write_audit, write_run
from tests.toys import Toys

DIVERGED = "client c4: the loss is NaN at step 3; it diverged, lower train.learning_rate"
LONG = ["a very long <b>name</b> of a shop & its branches in the north", "süd", "東京の店"]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a run of every kind that a page has to bear."""
    folder = tmp_path_factory.mktemp("made")
    return {
        "several": write_run(folder / "several", 5, 5, failed={(2, "c4"): DIVERGED}),
        "inactive": write_run(folder / "inactive", 3, 2, spread=0.001),
        "many": write_run(folder / "many", [f"shop-{n:02d}" for n in range(50)], 12),
        "one": write_run(folder / "one", 1, 3),
        "untrained": write_run(folder / "untrained", 3, 0),
        "audited": write_audit(write_run(folder / "audited", 3, 2)),
        "deployment": write_run(folder / "deployment", LONG, 3, kept=False),
    }


@pytest.fixture(scope="session")
def page_files(made: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the page of each, without users."""
    folder = tmp_path_factory.mktemp("pages")
    return {
        name: write_report(run, folder / f"{name}.html", examples=0) for name, run in made.items()
    }


@pytest.fixture(scope="module")
def toys_cache(toys: Toys) -> Iterator[None]:
    """Keep the person's cache out of a whole module's fixtures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FELLREC_CACHE", str(toys.cache))
        yield
