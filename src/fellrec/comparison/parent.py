"""A worker without the process that started it works for nobody: it ends."""

from __future__ import annotations

import os
import signal
import threading
import time

_WATCH_SECONDS = 0.5


def end_with_parent() -> None:
    """End this process soon after its parent, of which a killed one can't tell anybody."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_WATCH_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
