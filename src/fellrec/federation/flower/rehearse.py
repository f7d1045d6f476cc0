"""A deployment in small: every party a process of its own on this machine, over TLS.

What is started is what several machines would start: Flower's SuperLink, a SuperNode for each
client, a trunk server. Each process is given its own party's files and no others.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from fellrec.config import RunConfig
from fellrec.errors import RunError
from fellrec.federation.decisions import check_deployable
from fellrec.federation.deployment.collect import collect_all
from fellrec.federation.deployment.dispatch import trunk_outline
from fellrec.federation.deployment.grounds import Grounds, parties_of
from fellrec.federation.deployment.processes import Process, Processes, running
from fellrec.federation.deployment.trunk_process import start_trunk, trunk_address
from fellrec.federation.flower.events import replay
from fellrec.federation.flower.network import Network, environment
from fellrec.federation.observer import Observer
from fellrec.federation.runs import RunResult

_POLL_SECONDS = 0.25
_ASK_SECONDS = 5.0  # between questions to the SuperLink, each of which is a process of its own


class Rehearsal:
    """All parties of a rehearsal.

    grounds: their files. processes: what runs. events: the file that the coordinator writes to.
    trunks: how many trunk servers there are; addresses: where they listen, once started.
    recording: the folder in which all servers record what they see, None for none. number: the
    run's, once it is submitted.
    """

    def __init__(
        self,
        config: RunConfig,
        grounds: Grounds,
        processes: Processes,
        *,
        trunks: int = 1,
        recording: Path | None = None,
    ) -> None:
        self.config = config
        self.grounds = grounds
        self.processes = processes
        self.recording = recording
        self.network = Network(grounds, processes)
        self.events = grounds.folder / "events.jsonl"
        self.trunks = trunks if trunk_outline(config).blocks else 0
        self.addresses: list[str] = []
        self.number = 0

    def start(self) -> None:
        """Start everything but the run; RunError for a party that does not get ready."""
        started = [self.start_trunk(number) for number in range(self.trunks)]
        self.network.start_link()
        for name in self.grounds.names:
            self.network.start_node(name)
        self.addresses = [trunk_address(trunk) for trunk in started]

    def start_trunk(self, number: int = 0, listen: str = "127.0.0.1:0") -> Process:
        """Start one of the trunk servers."""
        record = ["--record", str(self.recording)] if self.recording is not None else []
        return start_trunk(self.processes, self.grounds, number, listen, *record)

    def run(self, *, resume: bool, wait_seconds: float = 600.0) -> int:
        """Submit the run to Flower and return its number there."""
        self.events.unlink(missing_ok=True)
        self.number = self.network.run(
            {
                "out": str(self.grounds.coordinator.resolve()),
                "resume": resume,
                "trunk": ",".join(self.addresses),
                "wait-seconds": wait_seconds,
                "events": str(self.events.resolve()),
                "record": str(self.recording.resolve()) if self.recording is not None else "",
            }
        )
        return self.number

    def follow(self, observer: Observer) -> None:
        """Wait for the end of the run, and tell what happens.

        Raises RunError with the coordinator's line when the run failed, or that it is gone.
        """
        link = self.processes.running["superlink"]
        done, pid, asked = 0, 0, time.monotonic()
        status, why = "", ""
        while True:
            gone = bool(pid) and not running(pid)
            if not pid and link.alive() and time.monotonic() - asked > _ASK_SECONDS:
                # A coordinator that has not said which process it is perhaps never will.
                status, why = self.network.status(self.number)
                asked = time.monotonic()
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
            if not link.alive():
                raise RunError(f"the SuperLink ended: {link.last()}")
            if gone:
                raise RunError(f"the coordinator's process ended: {link.last()}")
            if status.startswith("finished") and not pid:
                raise RunError(f"the coordinator ended before it began ({status}): {why}")
            time.sleep(_POLL_SECONDS)


def rehearse(
    config: RunConfig,
    out: Path | None = None,
    *,
    resume: bool = False,
    trunks: int = 1,
    record: bool = False,
    observer: Observer | None = None,
) -> RunResult:
    """Run a recipe over real processes on this machine, and leave a run directory.

    out: the directory, `runs/<name>` unless given. Beside it, in `<out>.parties`, every party's own
    folder stays, from which an interrupted rehearsal goes on (`resume`). trunks: how many trunk
    servers share the clients. record: keep every message that the servers receive or send, in
    `<out>.parties/recording`.

    Raises a FellrecError of the kind that fits. Whatever was started is stopped.
    """
    observer = observer or Observer()
    path = out if out is not None else Path("runs") / config.name
    if path.exists():
        raise RunError(f"{path} exists already; choose another --out")
    check_deployable(config)
    parties = parties_of(path)
    observer.note("loading data and weights")
    grounds = Grounds.at(parties, config) if resume else Grounds.made(parties, config)
    begun = resume and grounds.coordinator.exists()
    with Processes(parties / "logs", environment(parties / "flwr")) as processes:
        recording = parties / "recording" if record else None
        rehearsal = Rehearsal(config, grounds, processes, trunks=trunks, recording=recording)
        observer.note("starting a SuperLink, SuperNodes and a trunk server")
        rehearsal.start()
        rehearsal.run(resume=begun)
        rehearsal.follow(observer)
    observer.note("collecting the run directory")
    return RunResult(path, collect_all(path, grounds))
