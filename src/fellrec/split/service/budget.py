"""Memory and workers that all sessions of a trunk share.

A frame that would pass the memory waits for others to give some back; its stream is not read on
meanwhile, which is the client's back-pressure. Sessions that all wait for each other end by time:
the first to have waited too long is refused, and what it held is free.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fellrec.errors import WireError


class Budget:
    """Counts bytes per session and lets so many frames be computed at a time."""

    def __init__(self, held_bytes: int, workers: int, patience: float) -> None:
        self._limit = held_bytes
        self._patience = patience
        self._held: dict[object, int] = {}
        self._changed = threading.Condition()
        self._free = workers
        self._queue = 0

    @property
    def held(self) -> int:
        """Bytes held by all sessions."""
        with self._changed:
            return sum(self._held.values())

    @property
    def queue(self) -> int:
        """Frames that wait for memory or for a worker."""
        return self._queue

    def reserve(self, owner: object, size: int, gone: Callable[[], str]) -> None:
        """Let a session hold `size` bytes in all, waiting for others if need be.

        gone: why the session ended meanwhile, "" while it lives; `wake` makes it asked again.

        Raises WireError when it would pass the limit alone, or waited too long.
        """
        if size > self._limit:
            raise WireError(
                f"the trunk would have to hold {size >> 20} MiB for one client, its limit is "
                f"{self._limit >> 20} MiB; send smaller micro-batches"
            )
        with self._changed:
            if size > self._held.get(owner, 0):
                self._wait(lambda: self._others(owner) + size <= self._limit, gone)
            self._held[owner] = size
            self._changed.notify_all()

    def release(self, owner: object) -> None:
        """Take back all that a session held."""
        with self._changed:
            self._held.pop(owner, None)
            self._changed.notify_all()

    def wake(self) -> None:
        """Let all that wait look again whether their session still lives."""
        with self._changed:
            self._changed.notify_all()

    @contextmanager
    def worker(self) -> Iterator[None]:
        """Wait for one of the workers, and give it back."""
        with self._changed:
            self._queue += 1
            self._changed.wait_for(lambda: self._free > 0)
            self._queue -= 1
            self._free -= 1
        try:
            yield
        finally:
            with self._changed:
                self._free += 1
                self._changed.notify_all()

    def _others(self, owner: object) -> int:
        return sum(size for other, size in self._held.items() if other is not owner)

    def _wait(self, fits: Callable[[], bool], gone: Callable[[], str]) -> None:
        until = time.monotonic() + self._patience
        self._queue += 1
        try:
            while not fits():
                if reason := gone():
                    raise WireError(reason)
                left = until - time.monotonic()
                if left <= 0:
                    raise WireError(
                        f"the trunk had no memory for this client for {self._patience:.0f} s; "
                        "let fewer clients train at a time, or give the trunk more memory"
                    )
                self._changed.wait(left)
        finally:
            self._queue -= 1
