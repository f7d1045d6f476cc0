"""What the program itself takes on each side: measured, as it depends on the machine's libraries.

A fresh process imports what a trunk server does, then what a client does besides, and tells its
largest resident memory after each. Nothing is loaded or computed in it.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from functools import cache

from fellrec.errors import RunError

_SCRIPT = """
import resource, sys
from importlib import import_module
from pathlib import Path

def peak():
    status = Path("/proc/self/status")  # elsewhere a child inherits its parent's figure
    if status.exists():
        lines = status.read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found if sys.platform == "darwin" else 1024 * found

for modules in sys.argv[1:]:
    for module in modules.split():
        try:
            import_module(module)
        except ImportError:  # the part of the package that deploys is not installed
            import_module("fellrec.federation.workspace")
    print(peak())
"""
_SERVER = ("fellrec.cli", "fellrec.federation.deployment.trunk", "fellrec.split.service.server")
_MODELS = ("transformers.models.bert.modeling_bert", "transformers.models.llama.modeling_llama")
_CLIENT = ("fellrec.federation.flower.client_app",)


@dataclass(frozen=True)
class Program:
    """Bytes that interpreter and libraries take once they are imported."""

    client: int
    server: int


@cache
def program() -> Program:
    """Measure it, once for this process: as long as the imports take, some seconds.

    Raises RunError where no such process can be started.
    """
    words = [" ".join(_SERVER + _MODELS), " ".join(_CLIENT)]
    try:
        done = subprocess.run(
            [sys.executable, "-c", _SCRIPT, *words], capture_output=True, text=True, check=True
        )
        server, client = map(int, done.stdout.split())
    except (OSError, subprocess.CalledProcessError, ValueError) as error:
        raise RunError(f"the program's own memory can't be measured ({error})") from error
    return Program(client, server)
