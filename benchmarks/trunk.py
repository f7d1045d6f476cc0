"""A trunk service that five clients feed against the bare loop of what it computes.

    python benchmarks/trunk.py [--quick] [--repeats 8]

The frames that five clients send in a few training steps are recorded first (an HLLM over MiniLM,
16 histories of 50 items, LoRA rank 16, fp32). Then, in turn and several times:

bare   in this process: forward, backward and optimiser's step of the trunk's four blocks, on the
       recorded activations and gradients, the five clients in turn, each with its own factors
fed    the recorded frames to `fellrec trunk`, a process of its own, over gRPC with mutual TLS: five
       connections, each of which sends its next frame when the answer to the last one is here

Both compute on one thread, and steps per second are compared; sessions begin before the clock does.
Target: fed >= 0.9 x bare.

What contends: the feeding side has messages ready to send, reads answers and looks at their kind
alone, but its TLS and its copies (4.9 MB a step) run on the same cores as the service's own, and
these beside the thread that computes. With one core for all, all of that shows in the ratio; with
two, what a client's frame costs besides the blocks runs while another's is computed.
"""

from __future__ import annotations

import argparse
import os
import queue
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: it holds in threads, too
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torch import Tensor
from transformers.utils import logging

from benchmarks.parts.deployed import ROUND, Deployed, deployed
from benchmarks.parts.training import client, recipe
from fellrec.config import RunConfig
from fellrec.federation.workspace import trunk_server
from fellrec.models.layout import Layout
from fellrec.split.remote import RemoteTrunk
from fellrec.split.service.channel import connect
from fellrec.split.service.messages import SERVICE, Welcome, read_message, write_message
from fellrec.split.service.packing import frame_digest, pack_step, unpack_reply
from fellrec.split.session import Session
from fellrec.split.transport import InProcessTransport
from fellrec.split.trunk import TrunkServer
from fellrec.split.wire import FrameKind, decode_frame

TARGET = 0.9
CLIENTS = ("north", "south", "east", "west", "middle")
ROWS, STEPS, KIND_AT = 16, 4, 5  # the place of a frame's kind, see `split.wire`


class Recorder(InProcessTransport):
    """Keeps what a client sends."""

    def __init__(self, server: TrunkServer) -> None:
        super().__init__(server)
        self.frames: list[bytes] = []

    def exchange(self, frame: bytes) -> bytes:
        """Return the server's answer."""
        self.frames.append(frame)
        return super().exchange(frame)


@dataclass(frozen=True)
class Step:
    """What the trunk computes in a step: on what, and the client's squared norm at its end."""

    layout: Layout
    activations: Tensor
    gradients: Tensor
    norm: float


def record(config: RunConfig, server: TrunkServer, name: str) -> list[bytes]:
    """Train a client in this process: its frames, three a step."""
    server.open(name, ROUND)
    recorder = Recorder(server)
    client(config, name, RemoteTrunk(recorder), STEPS).train(ROUND)
    server.drop(name)
    return recorder.frames


def steps_of(frames: Sequence[bytes]) -> Iterator[Step]:
    """Read frames back."""
    read = (decode_frame(frame, max_bytes=len(frame) * 2) for frame in frames)
    for forward, gradient, norm in zip(read, read, read, strict=True):
        assert forward.lengths is not None and forward.tensor is not None
        assert gradient.tensor is not None and norm.scalar is not None
        yield Step(Layout(forward.lengths), forward.tensor, gradient.tensor, norm.scalar)


def bare(server: TrunkServer, recorded: Sequence[Sequence[Step]]) -> float:
    """Compute all steps: the seconds that it took."""
    sessions = [server.session(name, ROUND) for name in CLIENTS]
    start = time.perf_counter()
    for number in range(STEPS):
        for session, steps in zip(sessions, recorded, strict=True):
            _compute(session, number, steps[number])
    return time.perf_counter() - start


def _compute(session: Session, number: int, step: Step) -> None:
    stage, optimiser = session.stage, session.optimiser
    stage.train()
    stage.key.step = number
    entry = step.activations.detach().requires_grad_()
    left = step.layout.pack(stage(step.layout.unpack(entry), step.layout))
    torch.autograd.backward(left, step.gradients)
    optimiser.step(optimiser.squared_norm() + step.norm)


def fed(trunk: Deployed, recorded: Sequence[Sequence[bytes]]) -> float:
    """Let all clients send their messages at the same time: the seconds until the last answer."""
    ready = threading.Barrier(len(CLIENTS) + 1)
    with ThreadPoolExecutor(len(CLIENTS)) as pool:
        ends = [
            pool.submit(_feed, trunk, name, messages, ready)
            for name, messages in zip(CLIENTS, recorded, strict=True)
        ]
        ready.wait()
        start = time.perf_counter()
        return max(end.result() for end in ends) - start


def _feed(trunk: Deployed, name: str, messages: Sequence[bytes], ready: threading.Barrier) -> float:
    """Send one client's messages in a new session: when the last answer came."""
    outgoing: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    channel = connect(trunk.link(name))
    call = channel.stream_stream(f"/{SERVICE}/Steps")(iter(outgoing.get, b""))
    outgoing.put(write_message(trunk.call(name)))
    welcome = read_message(Welcome, next(call))
    if not welcome.ok:
        raise SystemExit(f"the trunk refused: {welcome.reason}")
    ready.wait()
    for message in messages:
        outgoing.put(message)
        _, frame = unpack_reply(next(call))
        if frame[KIND_AT] == FrameKind.ERROR:
            raise SystemExit(f"the trunk refused: {decode_frame(frame, max_bytes=1024).message}")
    end = time.perf_counter()
    outgoing.put(b"")
    call.cancel()
    channel.close()
    return end


def messages_of(frames: Sequence[bytes]) -> list[bytes]:
    """Number frames, each sent when the answer to the one before is held."""
    numbered = enumerate(frames, start=1)
    return [pack_step(n, n - 1, frame_digest(frame), frame) for n, frame in numbered]


def main() -> None:
    """Parse the options, record, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--quick", action="store_true", help="two repeats")
    options = parser.parse_args()
    repeats = 2 if options.quick else options.repeats
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    config = recipe(ROWS)
    server = trunk_server(config)
    assert server is not None
    frames = [record(config, server, name) for name in CLIENTS]
    computed = [list(steps_of(own)) for own in frames]
    messages = [messages_of(own) for own in frames]
    with deployed(config, CLIENTS) as trunk:
        bare(server, computed), fed(trunk, messages)
        taken = np.array([(bare(server, computed), fed(trunk, messages)) for _ in range(repeats)])
    steps = len(CLIENTS) * STEPS
    print(f"{len(CLIENTS)} clients, {STEPS} steps each, {ROWS} x 50 positions, {repeats} repeats")
    print(f"{'':<6}{'steps/s':>9}{'least':>8}{'most':>8}")
    for name, column in zip(("bare", "fed"), taken.T, strict=True):
        print(
            f"{name:<6}{steps / np.median(column):>9.2f}{steps / column.max():>8.2f}"
            f"{steps / column.min():>8.2f}"
        )
    ratio = float(np.median(taken[:, 0]) / np.median(taken[:, 1]))
    verdict = "pass" if ratio >= TARGET else "MISSED"
    print(f"fed / bare: {ratio:.3f} (target >= {TARGET}) {verdict}")


if __name__ == "__main__":
    main()
