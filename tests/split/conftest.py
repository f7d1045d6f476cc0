"""One authority for all tests of the service, and a trunk that listens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.split.running import Authority, Running, running


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def trunk(tmp_path: Path, authority: Authority) -> Iterator[Running]:
    with running(tmp_path, authority) as it:
        yield it
