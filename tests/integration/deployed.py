"""A rehearsal whose processes a test may kill, and the simulation that it has to end as."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from fellrec.config import RunConfig
from fellrec.errors import RunError, WireError
from fellrec.federation import runs
from fellrec.federation.deployment.collect import Part, collect
from fellrec.federation.deployment.grounds import Grounds
from fellrec.federation.deployment.processes import Processes, running
from fellrec.federation.flower.network import environment
from fellrec.federation.flower.rehearse import Rehearsal
from fellrec.federation.members import Trained
from fellrec.federation.observer import Observer
from fellrec.federation.shares import share_data
from fellrec.federation.simulation import Simulation
from fellrec.files import read_json, read_tensors
from fellrec.split.service.channel import Link
from fellrec.split.service.control import TrunkControl
from fellrec.split.service.settings import TlsFiles

SECONDS = 300.0
MEASURED = {"seconds", "waiting_seconds", "server_seconds"}


@contextmanager
def started(config: RunConfig, folder: Path, *, trunks: int = 1) -> Iterator[Rehearsal]:
    """Start all parties of a rehearsal, without a run."""
    grounds = Grounds.prepare(folder / "parties", config, share_data(config))
    with Processes(grounds.folder / "logs", environment(grounds.folder / "flwr")) as processes:
        rehearsal = Rehearsal(config, grounds, processes, trunks=trunks)
        rehearsal.start()
        yield rehearsal


def until(happens: Callable[[], bool], what: str) -> None:
    """Wait for something; how long it takes is not tested, that it comes is."""
    end = time.monotonic() + SECONDS
    while not happens():
        assert time.monotonic() < end, f"it never came: {what}"
        time.sleep(0.02)


def wait_for_step(rehearsal: Rehearsal, client: str, round: int, steps: int = 5) -> int:
    """Wait until a client is in the middle of a round's training; return its trunk's number."""
    keys = rehearsal.grounds.keys
    own = keys.coordinator
    tls = TlsFiles(own.certificate, own.key, keys.authority)
    controls = [TrunkControl(Link(address, tls), {}) for address in rehearsal.addresses]
    found: list[int] = []

    def there() -> bool:
        for number, control in enumerate(controls):
            found.extend(
                number
                for session in control.status().sessions
                if session.client == client and session.round == round and session.steps >= steps
                if session.mode == "train" and session.state == "open"
            )
        return bool(found)

    until(there, f"client {client} at step {steps} of round {round}")
    for control in controls:
        control.close()
    return found[0]


def kill(pid: int) -> None:
    """Kill a process that can't do anything about it, and see it gone."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    until(lambda: not running(pid), f"the end of process {pid}")


def client_app(rehearsal: Rehearsal, client: str) -> int:
    """Return the process in which a client is at work."""
    for process in rehearsal.processes.running[f"client-{client}"].family():
        alive = running(process.pid)
        if alive and any("flwr-clientapp" in word for word in process.cmdline()):
            return int(process.pid)
    raise AssertionError(f"client {client} has no process at work")


def server_app(rehearsal: Rehearsal) -> int:
    """Return the coordinator's process."""
    return int(events(rehearsal, "begun")[-1]["pid"])


def events(rehearsal: Rehearsal, kind: str) -> list[dict[str, Any]]:
    """Return what the coordinator told of one kind."""
    if not rehearsal.events.exists():
        return []
    lines = map(json.loads, rehearsal.events.read_text().splitlines())
    return [line for line in lines if line["event"] == kind]


def collected(rehearsal: Rehearsal, out: Path) -> Path:
    """Put the parts of a finished rehearsal together."""
    grounds = rehearsal.grounds
    run = str(read_json(grounds.coordinator / "deployment.json")["run"])
    collect(out, grounds.coordinator, [Part(n, grounds.place(n).run(run)) for n in grounds.names])
    return out


def simulated(config: RunConfig, out: Path, lost: Collection[tuple[int, str]] = ()) -> Path:
    """Return the simulation in which some clients are lost in the training of some rounds."""

    class Losing(Simulation):
        def learn(self, t: int, name: str) -> Trained:
            trained = super().learn(t, name)
            if (t, name) in lost:
                raise WireError("lost")
            return trained

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "Simulation", Losing)
        return runs.train(config, out).path


def metrics(run: Path) -> dict[tuple[int, str], list[dict[str, Any]]]:
    """Return the lines of metrics.jsonl by round and client, without seconds and reasons."""
    found: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for text in (run / "metrics.jsonl").read_text().splitlines():
        line = {key: value for key, value in json.loads(text).items() if key not in MEASURED}
        if "failed" in line:
            line["failed"] = True
        found.setdefault((line["round"], line["client"]), []).append(line)
    return found


def same(run: Path, other: Path) -> None:
    """Assert that two runs ended alike: adapters to 1e-5, scores, losses, and what crossed."""
    files = [path.relative_to(other) for path in sorted(other.glob("*/*/*.safetensors"))]
    assert files
    assert files == [path.relative_to(run) for path in sorted(run.glob("*/*/*.safetensors"))]
    for file in files:
        one, two = read_tensors(run / file), read_tensors(other / file)
        assert one.keys() == two.keys(), file
        for name in one:
            assert (one[name] - two[name]).abs().max().item() <= 1e-5, (file, name)
    assert _close(metrics(run), metrics(other))
    first, second = (read_json(path / "summary.json") for path in (run, other))
    for key in ("overall", "valid", "balance", "clients", "rounds"):
        assert _close(first[key], second[key]), key


def _close(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal, numbers to 1e-6."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_close(one[k], other[k]) for k in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_close, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return one == pytest.approx(other, abs=1e-6)
    return bool(one == other)


def failure(rehearsal: Rehearsal) -> str:
    """Wait for the end of a run that fails; return the coordinator's line."""
    with pytest.raises(RunError) as caught:
        rehearsal.follow(Observer())
    return str(caught.value)
