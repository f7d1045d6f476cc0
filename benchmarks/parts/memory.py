"""How much memory of its own a process takes while it works: mapped files do not count."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_STATUS = Path("/proc/self/status")
_PAUSE = 0.005  # seconds; a block of columns takes longer


@dataclass
class Peak:
    """The most that was seen, in bytes; 0 where the system does not tell."""

    bytes: int = 0


@contextmanager
def own_memory(peak: Peak) -> Iterator[None]:
    """Raise `peak` to what this process's anonymous pages (Linux: RssAnon) reach meanwhile."""
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            peak.bytes = max(peak.bytes, anonymous())
            time.sleep(_PAUSE)

    watcher = threading.Thread(target=watch)
    if _STATUS.exists():
        watcher.start()
    try:
        yield
    finally:
        done.set()
        if watcher.ident:
            watcher.join()


def anonymous() -> int:
    """Return the bytes in memory that belong to no file, the interpreter's and libraries' too."""
    lines = _STATUS.read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
