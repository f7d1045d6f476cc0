"""The program as a process of its own."""

from __future__ import annotations

import sys

FELLREC = [sys.executable, "-c", "from fellrec.cli import app; app(prog_name='fellrec')"]

HEARING = [
    sys.executable,
    "-c",
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from fellrec.cli import app; app(prog_name='fellrec')",
]
"""The same, and it hears Ctrl-C: a test run that a shell put into the background would hand its
deafness on. The program says so itself and not `preexec_fn`, which forks: in a process that uses
gRPC about one fork in forty ends by SIGABRT."""
