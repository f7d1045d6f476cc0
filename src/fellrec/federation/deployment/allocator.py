"""How the C library hands memory out in the processes of a deployment.

By default glibc keeps what was freed. Its threshold for large blocks grows with the first one that
is freed, up to 32 MiB, and from then on activations of ever other sizes leave holes between them,
in the trunk server in an arena for each thread. With a fixed threshold a large block goes back to
the system as soon as it is freed. A process then takes what it holds: `docs/runs.md` has both
figures, and what it costs in processor time.
"""

from __future__ import annotations

import ctypes
import os

LARGE_BYTES = 128 << 10
"""Blocks from this size on are given back at once: glibc's own threshold before it grows."""
_M_MMAP_THRESHOLD = -3  # malloc.h
_BY_HAND = "MALLOC_MMAP_THRESHOLD_"


def give_back_what_is_freed() -> bool:
    """Fix the threshold for the rest of this process; return whether that was done.

    It is not where the environment has one (MALLOC_MMAP_THRESHOLD_), nor with a C library that
    has no `mallopt`.
    """
    if _BY_HAND in os.environ:
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # TypeError: Windows wants a name
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES))
