"""Every test here runs in a cache of its own."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def use_own_cache(own_cache: None) -> None:
    """Take the shared fixture for all tests of this folder."""
