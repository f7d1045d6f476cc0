"""Settings of the whole test suite."""

from __future__ import annotations

from hypothesis import settings

# No deadline for a single example: how long one takes depends on what else the machine is doing.
settings.register_profile("fellrec", deadline=None)
settings.load_profile("fellrec")
