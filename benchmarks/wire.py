"""What the wire costs a training step, and how much of that is hidden.

    python benchmarks/wire.py [--quick] [--repeats 12]

An HLLM over MiniLM (32 histories of 50 items, 1,682 items, LoRA rank 16), head and tail in this
process, the trunk's four blocks in `fellrec trunk`, a process of its own, over gRPC with mutual
TLS. Frames are fp32, 9.8 MB a step. Every process computes on one thread. All ways to train step
in turn in one run; medians count. Three figures, each with its target:

1   A step over loopback against the same step with the trunk in this process (the same codec).
2   The same over a link of 100 Mbit/s and 20 ms in each direction (40 ms there and back), emulated
    by `relay.py` in a process of its own. The batch is cut into four micro-batches. With one in
    flight the link adds its time to a step: `added` = (link, 1) - (loopback, 1). With four in
    flight `hidden` = (link, 1) - (link, 4). Target: hidden >= added / 2. As the target is put, a
    client that computes while its trunk does counts as hiding, too; so the line below it compares
    each with its own loopback: what is left of `added` is (link, 4) - (loopback, 4).
3   TCP's payload as the relay counted it, in both directions, against the ledger's bytes.

On two cores client and trunk have one each; the relay and gRPC's threads take their share of both.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: it holds in threads, too
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from transformers.utils import logging

from benchmarks.parts.deployed import ROUND, deployed
from benchmarks.parts.training import client, recipe
from fellrec.federation.client import Client
from fellrec.federation.workspace import trunk_server
from fellrec.split.ledger import Ledger
from fellrec.split.remote import RemoteTrunk
from fellrec.split.transport import InProcessTransport

ROWS, PARTS, WARM_UP = 32, 4, 3
MILLISECONDS, MEGABITS = 20.0, 100.0
RATIO, HIDDEN, COUNTED = 1.3, 0.5, 0.03  # targets
IN_PROCESS, LOOP, LINK = "in process", "loopback", "link"
# How a batch is cut: micro-batches, and how many of them are in flight.
CUTS = {"whole": (1, 1), "4 parts, 1 in flight": (PARTS, 1), "4 parts, 4 in flight": (PARTS, PARTS)}


@dataclass(frozen=True)
class Bytes:
    """up: from clients to the trunk. down: back."""

    up: int
    down: int

    def __sub__(self, other: Bytes) -> Bytes:
        return Bytes(self.up - other.up, self.down - other.down)

    def __str__(self) -> str:
        return f"{self.up:,} up, {self.down:,} down"

    @property
    def both(self) -> int:
        """Both ways."""
        return self.up + self.down


class Contender:
    """One way to train: a client's round in a thread of its own that steps when it is told to."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._go = threading.Semaphore(0)
        self._done: queue.Queue[float | BaseException] = queue.Queue()
        threading.Thread(target=self._train, daemon=True).start()

    def step(self) -> float:
        """Make one step: its seconds."""
        self._go.release()
        taken = self._done.get()
        if isinstance(taken, BaseException):
            raise taken
        return taken

    def _train(self) -> None:
        self._go.acquire()
        start = time.perf_counter()

        def stepped(*_: float) -> None:
            nonlocal start
            self._done.put(time.perf_counter() - start)
            self._go.acquire()
            start = time.perf_counter()

        try:
            self._client.train(ROUND, stepped)
        except BaseException as error:
            self._done.put(error)


class Relay:
    """`relay.py` in a process of its own, and what it has counted."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.port = int(self._read())

    def carried(self) -> Bytes:
        """Bytes that went through."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return Bytes(**json.loads(self._read()))

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


@contextmanager
def relay(port: int) -> Iterator[Relay]:
    """Start a relay to `port`."""
    script = Path(__file__).with_name("relay.py")
    options = ["--target", port, "--ms", MILLISECONDS, "--mbit", MEGABITS]
    with subprocess.Popen(
        [sys.executable, str(script), *map(str, options)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield Relay(process)
        finally:
            process.terminate()


def report(seconds: dict[str, list[float]], carried: Bytes, counted: Bytes) -> None:
    """Print all medians, then each figure beside its target."""
    print(f"{'a step':<32}{'median s':>9}{'least':>8}{'most':>8}")
    for name, taken in seconds.items():
        print(f"{name:<32}{np.median(taken):>9.3f}{min(taken):>8.3f}{max(taken):>8.3f}")
    at = {name: float(np.median(taken)) for name, taken in seconds.items()}
    whole, one, four = CUTS
    ratio = at[f"{LOOP}, {whole}"] / at[IN_PROCESS]
    added = at[f"{LINK}, {one}"] - at[f"{LOOP}, {one}"]
    hidden = at[f"{LINK}, {one}"] - at[f"{LINK}, {four}"]
    added_whole = at[f"{LINK}, {whole}"] - at[f"{LOOP}, {whole}"]
    left = at[f"{LINK}, {four}"] - at[f"{LOOP}, {four}"]
    odd = abs(carried.both / counted.both - 1)
    print(
        f"\nthe link adds to a step: whole {added_whole:.3f} s, "
        f"four parts one after another {added:.3f} s, four in flight {left:.3f} s;\n"
        f"four in flight over the link take {hidden:.3f} s less than one after another\n"
        f"bytes of these steps: relay {carried}; ledgers {counted}\n"
    )
    print(f"{'':<48}{'figure':>8}{'target':>9}")
    for what, figure, target, met in (
        ("1  loopback / in process", ratio, f"<= {RATIO}", ratio <= RATIO),
        ("2  hidden / added", hidden / added, f">= {HIDDEN}", hidden >= HIDDEN * added),
        ("   1 - left / added", 1 - left / added, "", None),
        ("3  |relay / ledgers - 1|", odd, f"<= {COUNTED}", odd <= COUNTED),
    ):
        verdict = {True: "  pass", False: "  MISSED", None: ""}[met]
        print(f"{what:<48}{figure:>8.3f}{target:>9}{verdict}")


def main() -> None:
    """Parse the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--quick", action="store_true", help="three repeats")
    options = parser.parse_args()
    repeats = 3 if options.quick else options.repeats
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    steps = WARM_UP + repeats
    names = [f"{via}-{number}" for via in (LOOP, LINK) for number in range(len(CUTS))]
    with deployed(recipe(ROWS, PARTS), names) as trunk, relay(trunk.port) as link:
        server = trunk_server(trunk.config)
        assert server is not None
        server.open("here", ROUND)
        remote = RemoteTrunk(InProcessTransport(server))
        ways = {IN_PROCESS: Contender(client(recipe(ROWS), "here", remote, steps))}
        ledgers: list[Ledger] = []
        cut_ways = itertools.product(((LOOP, trunk.port), (LINK, link.port)), CUTS.items())
        for name, ((via, port), (said, (parts, in_flight))) in zip(names, cut_ways, strict=True):
            remote = RemoteTrunk(trunk.transport(name, port))
            trained = client(recipe(ROWS, parts, in_flight), name, remote, steps)
            ways[f"{via}, {said}"] = Contender(trained)
            if via == LINK:
                ledgers.append(remote.ledger)
        for way in ways.values():
            for _ in range(WARM_UP):
                way.step()
        carried, counted = link.carried(), _recorded(ledgers)
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(repeats):
            for name, way in ways.items():
                seconds[name].append(way.step())
        report(seconds, link.carried() - carried, _recorded(ledgers) - counted)


def _recorded(ledgers: list[Ledger]) -> Bytes:
    totals = [ledger.totals() for ledger in ledgers]
    return Bytes(sum(t["bytes_up"] for t in totals), sum(t["bytes_down"] for t in totals))


if __name__ == "__main__":
    main()
