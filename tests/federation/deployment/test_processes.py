"""Processes that belong together: their logs, and that none is left behind."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fellrec.errors import RunError
from fellrec.federation.deployment import processes as module
from fellrec.federation.deployment.processes import Processes, free_ports
from fellrec.files import alone_in

SHELL = ["/bin/sh", "-c"]


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    with Processes(tmp_path / "logs", os.environ) as it:
        yield it


def gone(pid: int) -> bool:
    """Whether a process is gone, or dead and not yet asked for by its parent."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def test_what_a_process_says_and_why_it_ended(processes: Processes) -> None:
    one = processes.start("one", [*SHELL, "echo begun; echo ready at 7; sleep 60"])
    assert one.wait_for("ready at", 20) == "ready at 7"
    assert one.alive()
    two = processes.start("two", [*SHELL, "echo first; echo it broke; exit 3"])
    with pytest.raises(RunError, match=r"^two ended: it broke \(all in .*two\.log\)$"):
        two.wait_for("ready", 20)
    with pytest.raises(RunError, match=r"^one is not ready: ready at 7"):
        one.wait_for("never", 0.0)
    with pytest.raises(RunError, match=r"^fails failed: it is so$"):
        processes.call("fails", [*SHELL, "echo reasons >&2; echo it  is so >&2; exit 1"])
    assert processes.call("works", [*SHELL, "echo yes"]) == "yes\n"


def test_none_is_left_behind(processes: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither children, nor one that won't go, nor those whose parent was killed."""
    monkeypatch.setattr(module, "_GRACE_SECONDS", 0.5)
    stubborn = "trap '' TERM; echo $$; sleep 60 & echo child $!; wait; sleep 60"
    one = processes.start("one", [*SHELL, stubborn])
    child = int(one.wait_for("child", 20).split()[1])
    other = processes.start("other", [*SHELL, "sleep 60 & echo child $!; wait"])
    orphan = int(other.wait_for("child", 20).split()[1])
    os.kill(other.pid, signal.SIGKILL)
    assert gone(other.pid)
    processes.stop([])
    assert one.alive()
    processes.stop(["other"])
    assert gone(orphan)
    assert one.alive()
    processes.stop()
    assert gone(one.pid)
    assert gone(child)
    assert processes.running == {}


def test_ports_are_free_and_differ() -> None:
    ports = free_ports(5)
    assert len(set(ports)) == 5


def test_a_folder_is_left_to_one_process(processes: Processes, tmp_path: Path) -> None:
    code = (
        "import fcntl, os, sys, time; fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), 2);"
        "print('in', flush=True); time.sleep(60)"
    )
    other = processes.start("other", [sys.executable, "-c", code, str(tmp_path)])
    other.wait_for("in", 20)
    with pytest.raises(RunError, match=f"^{tmp_path}: busy$"), alone_in(tmp_path, "busy"):
        raise AssertionError
    killer = threading.Timer(0.3, os.kill, (other.pid, signal.SIGKILL))
    killer.start()
    with alone_in(tmp_path, "busy", 60):  # waits until the other one is gone, however it goes
        assert gone(other.pid)
    killer.join()
    with alone_in(tmp_path, "busy"):
        pass
