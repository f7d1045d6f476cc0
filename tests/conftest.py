"""Settings of the whole test suite, and what the tests of whole small runs share."""

from __future__ import annotations

import gc
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from fellrec.federation.runs import train
from tests.toys import Toys, build

# No deadline for a single example: how long one takes depends on what else the machine is doing.
settings.register_profile("fellrec", deadline=None)
settings.load_profile("fellrec")

_LONG = {
    "test_auditing.py",
    "test_cli.py",
    "test_conformance.py",
    "test_malicious.py",
    "test_recommenders.py",
    "test_remote.py",
    "test_resume.py",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with tests of real processes, which wait a lot, and with the longest files.

    A file's tests run in one process, so that what they share is made once.
    """

    def place(item: pytest.Item) -> int:
        return 0 if "integration" in item.path.parts else 1 if item.path.name in _LONG else 2

    items.sort(key=place)


def pytest_collection_finish() -> None:
    """Spare the collector what stays: the libraries and the tests themselves."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


@pytest.fixture(autouse=True)
def heard() -> None:
    """Undo what a command of an earlier test, in this process, did to the library's remarks."""
    logging.getLogger("fellrec").setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Toys:
    """The data and models, written once."""
    return build(tmp_path_factory.mktemp("toys"))


@pytest.fixture
def own_cache(toys: Toys, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keep the person's cache out of it, and the number of threads as it was."""
    monkeypatch.setenv("FELLREC_CACHE", str(toys.cache))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def undisturbed(toys: Toys, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run of the plain recipe; copy it before you change it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FELLREC_CACHE", str(toys.cache))
        return train(toys.recipe(), tmp_path_factory.mktemp("runs") / "run").path


@pytest.fixture
def finished_run(undisturbed: Path, tmp_path: Path) -> Path:
    """Return a copy of a finished run that a test may damage."""
    return Path(shutil.copytree(undisturbed, tmp_path / "run"))


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Return a folder for runs."""
    return tmp_path
