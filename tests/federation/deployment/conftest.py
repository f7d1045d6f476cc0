"""One recorded deployment for all tests of what crosses."""

from __future__ import annotations

import pytest

from tests.federation.deployment.planting import SMALL, recorded
from tests.federation.deployment.town import Town
from tests.toys import Toys


@pytest.fixture(scope="session")
def plain(toys: Toys, tmp_path_factory: pytest.TempPathFactory) -> Town:
    """Two clients, one round, a residual that stays local; it has ended."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FELLREC_CACHE", str(toys.cache))
        return recorded(toys.recipe(SMALL), tmp_path_factory.mktemp("plain") / "plain")
