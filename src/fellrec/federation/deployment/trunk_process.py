"""The trunk server as a process beside others on this machine."""

from __future__ import annotations

import re
import sys

from fellrec.errors import RunError
from fellrec.federation.deployment.grounds import Grounds
from fellrec.federation.deployment.processes import Process, Processes

_READY_SECONDS = 300.0
_LISTENS = re.compile(r" on (\S+:\d+)$")


def start_trunk(
    processes: Processes,
    grounds: Grounds,
    number: int = 0,
    listen: str = "127.0.0.1:0",
    *more: str,
) -> Process:
    """Start `fellrec trunk` with its party's files.

    number: of this server; each has a folder of its own. more: further words of the command.
    """
    keys = grounds.keys
    return processes.start(
        trunk_name(number),
        [
            *(sys.executable, "-m", "fellrec", "trunk"),
            *("--config", str(grounds.recipe), "--listen", listen),
            *("--tls-cert", str(keys.trunk.certificate), "--tls-key", str(keys.trunk.key)),
            *("--client-ca", str(keys.authority), "--folder", str(grounds.trunk_of(number))),
            *more,
        ],
    )


def trunk_name(number: int) -> str:
    """Return what the process of a trunk server is called."""
    return f"trunk-{number}"


def trunk_address(trunk: Process) -> str:
    """Wait until it listens; return its "HOST:PORT". RunError where it does not."""
    found = _LISTENS.search(trunk.wait_for(" on ", _READY_SECONDS).strip())
    if found is None:
        raise RunError(f"the trunk did not say where it listens: {trunk.last()}")
    return found[1]
