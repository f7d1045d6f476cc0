"""A deployment in small: every party a process of its own on this machine, over TLS.

What is started is what several machines would start: Flower's SuperLink, a SuperNode for each
client, a trunk server. Each process is given its own party's files and no others.
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path

import psutil

from fellrec.config import RunConfig
from fellrec.data.sources import fetch_model
from fellrec.errors import RunError
from fellrec.federation.deployment.collect import Part, collect
from fellrec.federation.deployment.dispatch import trunk_outline
from fellrec.federation.deployment.grounds import Grounds
from fellrec.federation.deployment.processes import Process, Processes
from fellrec.federation.flower.events import replay
from fellrec.federation.flower.network import Network, environment
from fellrec.federation.observer import Observer
from fellrec.federation.runs import RunResult
from fellrec.federation.workspace import share_data
from fellrec.files import read_json
from fellrec.models import manifest

_READY_SECONDS = 300.0
_POLL_SECONDS = 0.25
_LISTENS = re.compile(r" on (\S+:\d+)$")


class Rehearsal:
    """All parties of a rehearsal.

    grounds: their files. processes: what runs. events: the file that the coordinator writes to.
    """

    def __init__(self, config: RunConfig, grounds: Grounds, processes: Processes) -> None:
        self.config = config
        self.grounds = grounds
        self.processes = processes
        self.network = Network(grounds, processes)
        self.events = grounds.folder / "events.jsonl"
        self.trunk_address = ""

    def start(self) -> None:
        """Start everything but the run; RunError for a party that does not get ready."""
        trunk = self.start_trunk() if trunk_outline(self.config).blocks else None
        self.network.start_link()
        for name in self.grounds.names:
            self.network.start_node(name)
        if trunk is not None:
            self.trunk_address = _address(trunk)

    def start_trunk(self, listen: str = "127.0.0.1:0") -> Process:
        """Start the trunk server."""
        keys = self.grounds.keys
        return self.processes.start(
            "trunk",
            [
                *(sys.executable, "-m", "fellrec", "trunk"),
                *("--config", str(self.grounds.recipe), "--listen", listen),
                *("--tls-cert", str(keys.trunk.certificate), "--tls-key", str(keys.trunk.key)),
                *("--client-ca", str(keys.authority), "--folder", str(self.grounds.trunk)),
            ],
        )

    def run(self, *, resume: bool, wait_seconds: float = 600.0) -> int:
        """Submit the run to Flower and return its number there."""
        self.events.unlink(missing_ok=True)
        return self.network.run(
            {
                "out": str(self.grounds.coordinator.resolve()),
                "resume": resume,
                "trunk": self.trunk_address,
                "wait-seconds": wait_seconds,
                "events": str(self.events.resolve()),
            }
        )

    def follow(self, observer: Observer) -> None:
        """Wait for the end of the run, and tell what happens.

        Raises RunError with the coordinator's line when the run failed, or that it is gone.
        """
        done, pid = 0, 0
        while True:
            gone = bool(pid) and not psutil.pid_exists(pid)
            lines = self.events.read_text("utf-8").splitlines() if self.events.exists() else []
            for line in lines[done:]:
                told = json.loads(line)
                pid = told.get("pid", pid)
                replay(line, observer)
                if told["event"] == "finished":
                    return
                if told["event"] == "failed":
                    raise RunError(told["reason"])
            done = len(lines)
            link = self.processes.running["superlink"]
            if not link.alive():
                raise RunError(f"the SuperLink ended: {link.last()}")
            if gone:
                raise RunError(f"the coordinator's process ended: {link.last()}")
            time.sleep(_POLL_SECONDS)


def rehearse(
    config: RunConfig,
    out: Path | None = None,
    *,
    resume: bool = False,
    observer: Observer | None = None,
) -> RunResult:
    """Run a recipe over real processes on this machine, and leave a run directory.

    out: the directory, `runs/<name>` unless given. Beside it, in `<out>.parties`, every party's own
    folder stays, from which an interrupted rehearsal goes on (`resume`).

    Raises a FellrecError of the kind that fits. Whatever was started is stopped.
    """
    observer = observer or Observer()
    path = out if out is not None else Path("runs") / config.name
    if path.exists():
        raise RunError(f"{path} exists already; choose another --out")
    parties = path.with_name(f"{path.name}.parties")
    if resume:
        grounds = Grounds.at(parties, config)
    else:
        observer.note("loading data and weights")
        manifest.digest(fetch_model(config.model.base))  # made once, before many look for it
        grounds = Grounds.prepare(parties, config, share_data(config))
    begun = resume and grounds.coordinator.exists()
    with Processes(parties / "logs", environment(parties / "flwr")) as processes:
        rehearsal = Rehearsal(config, grounds, processes)
        observer.note("starting a SuperLink, SuperNodes and a trunk server")
        rehearsal.start()
        rehearsal.run(resume=begun)
        rehearsal.follow(observer)
    observer.note("collecting the run directory")
    run = str(read_json(grounds.coordinator / "deployment.json")["run"])
    parts = [Part(name, grounds.place(name).run(run)) for name in grounds.names]
    return RunResult(path, collect(path, grounds.coordinator, parts))


def _address(trunk: Process) -> str:
    found = _LISTENS.search(trunk.wait_for(" on ", _READY_SECONDS).strip())
    if found is None:
        raise RunError(f"the trunk did not say where it listens: {trunk.last()}")
    return found[1]
