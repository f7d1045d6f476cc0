"""Ctrl-C: noted as it arrives, and raised where the program can bear it.

An exception from a signal handler comes up wherever the program happens to be: below native code
that expects none, or in a callback whose exceptions are dropped. So while a run trains, a first
Ctrl-C waits for the run to say something to its observer; a second one does not wait.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

PATIENCE: Final = 1.0  # seconds after which one is told that the first Ctrl-C was heard
WAITS: Final = "stopping at the end of this step; Ctrl-C once more stops at once"


class Interrupts:
    """What has come of Ctrl-C.

    arrived: how many came. raised: whether KeyboardInterrupt was raised for one of them.
    """

    def __init__(self) -> None:
        self.arrived = 0
        self.raised = False
        self._waits = False

    def arrive(self) -> None:
        """Note one; raise KeyboardInterrupt unless it is the first and is to wait."""
        self.arrived += 1
        if self.arrived > 1 or not self._waits:
            self._raise()

    def heed(self) -> None:
        """Raise KeyboardInterrupt if one has come, also where an earlier one was swallowed."""
        if self.arrived:
            self._raise()

    def wait(self) -> None:
        """From now on the first one waits for `heed`, until the `patient` block ends."""
        self._waits = True

    @contextmanager
    def patient(self, say: Callable[[str], None]) -> Iterator[None]:
        """Lend a block in which one may `wait`; at its end what has come is raised.

        say: tells that one was heard, from another thread, when the program takes its time.
        """
        done = threading.Event()
        teller = threading.Thread(target=self._tell, args=(done, say), daemon=True)
        teller.start()
        try:
            yield
        finally:
            self._waits = False
            done.set()
            teller.join()
        self.heed()

    def _tell(self, done: threading.Event, say: Callable[[str], None]) -> None:
        while not done.wait(PATIENCE):
            if self.arrived:
                say(WAITS)
                return

    def _raise(self) -> None:
        self.raised = True
        raise KeyboardInterrupt


@contextmanager
def noting() -> Iterator[Interrupts]:
    """Note each Ctrl-C of a block.

    Whoever has set another handler, or ignores the signal, is left in peace: then none arrives.
    """
    interrupts = Interrupts()

    def arrive(number: int, frame: FrameType | None) -> None:
        interrupts.arrive()

    usual = signal.getsignal(signal.SIGINT)
    if (
        usual is not signal.default_int_handler
        or threading.current_thread() is not threading.main_thread()
    ):
        yield interrupts
        return
    signal.signal(signal.SIGINT, arrive)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, usual)
