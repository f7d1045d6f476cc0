"""Processes that belong together: each with a log of its own, and none left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from fellrec.errors import RunError

_GRACE_SECONDS = 5.0
_POLL_SECONDS = 0.1


@dataclass
class Process:
    """One process that was started. log: what it prints."""

    name: str
    log: Path
    popen: subprocess.Popen[bytes] = field(repr=False)

    @property
    def pid(self) -> int:
        """Its number."""
        return self.popen.pid

    def alive(self) -> bool:
        """Whether it runs."""
        return self.popen.poll() is None

    def family(self) -> list[psutil.Process]:
        """Return it and all that it started, children of children too, where they still run.

        Those whose parent died are known by the session, which each process here begins.
        """
        found = [one for one in psutil.process_iter() if _session(one.pid) == self.pid]
        try:
            own = psutil.Process(self.pid)
            found += [own, *own.children(recursive=True)]
        except psutil.NoSuchProcess:
            pass
        return list({one.pid: one for one in found}.values())

    def said(self) -> str:
        """Return what it printed so far."""
        return self.log.read_text("utf-8", errors="replace") if self.log.exists() else ""

    def wait_for(self, text: str, seconds: float) -> str:
        """Wait until it prints a line with `text`; return the line.

        Raises RunError when it ends before, or after `seconds`; the last line of its log says why.
        """
        until = time.monotonic() + seconds
        while True:
            ended = not self.alive()
            for line in self.said().splitlines():
                if text in line:
                    return line
            if ended or time.monotonic() > until:
                raise RunError(f"{self.name} {'ended' if ended else 'is not ready'}: {self.last()}")
            time.sleep(_POLL_SECONDS)

    def last(self) -> str:
        """Return the last line that it printed, and where the rest is."""
        lines = [line for line in self.said().splitlines() if line.strip()]
        return f"{lines[-1].strip() if lines else 'it said nothing'} (all in {self.log})"


class Processes:
    """Starts processes, and stops them all, with their children, when the block is left.

    folder: for their logs. environment: of all of them.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._folder = folder
        self._environment = dict(environment)
        self.running: dict[str, Process] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self, name: str, command: Sequence[str], cwd: Path | None = None) -> Process:
        """Start a process in a session of its own, so that Ctrl-C reaches only us."""
        log = self._folder / f"{name}.log"
        with log.open("ab") as file:
            popen = subprocess.Popen(
                [str(word) for word in command],
                env=self._environment,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.running[name] = Process(name, log, popen)
        return self.running[name]

    def call(self, name: str, command: Sequence[str], cwd: Path | None = None) -> str:
        """Run a command to its end and return what it printed; RunError when it fails."""
        done = subprocess.run(
            [str(word) for word in command],
            env=self._environment,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            lines = (done.stderr.strip() or done.stdout.strip() or "no reason").splitlines()
            raise RunError(f"{name} failed: {' '.join(lines[-1].split())}")
        return done.stdout

    def stop(self, names: Iterable[str] | None = None) -> None:
        """End processes, all of them if none are named, with all that they started: politely, then
        not.
        """
        wanted = [self.running.pop(n) for n in list(self.running if names is None else names)]
        family = [one for process in wanted for one in process.family()]
        for one in family:
            _signal(one, signal.SIGTERM)
        _, alive = psutil.wait_procs(family, _GRACE_SECONDS)
        for one in alive:
            _signal(one, signal.SIGKILL)
        psutil.wait_procs(alive, _GRACE_SECONDS)
        for process in wanted:
            process.popen.wait()


def running(pid: int) -> bool:
    """Whether a process is there, and not a dead one that its parent has not asked for."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return None


def _signal(process: psutil.Process, number: int) -> None:
    try:
        os.kill(process.pid, number)
    except ProcessLookupError:
        return


def free_ports(count: int) -> list[int]:
    """Return TCP ports of the loopback that nobody listens on at the moment."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()
