"""What the server gets while a client scores its users or trains: the frames, decoded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fellrec.config import RunConfig
from fellrec.data.interactions import Ragged
from fellrec.federation.client import Client
from fellrec.models.layout import Layout
from fellrec.split.codecs import Codec
from fellrec.split.remote import RemoteTrunk
from fellrec.split.transport import FrameHandler, InProcessTransport
from fellrec.split.wire import Frame, FrameKind, decode_frame

Items = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Seen:
    """One history on its way through the first cut.

    activations: (length, d) float32, as the server decoded them. items: (length,) int64, what the
    client read, oldest first; no attacker sees them, they are what a guess is scored by.
    """

    activations: Tensor
    items: Items


@dataclass(frozen=True)
class Step:
    """A training micro-batch at the second cut.

    outputs: (total, d) float32, what the server sent. gradient: (total, d), what came back. layout:
    of both. step, micro: where in the round it was. labels: (rows,) int64, each row's last target,
    which is no input of it; no attacker sees them.
    """

    outputs: Tensor
    gradient: Tensor
    layout: Layout
    step: int
    micro: int
    labels: Items


class Wiretap:
    """Stands before a trunk and keeps every frame that goes to it, with the answer."""

    def __init__(self, server: FrameHandler, max_bytes: int) -> None:
        self.exchanges: list[tuple[Frame, Frame]] = []
        self._server = server
        self._max_bytes = max_bytes

    def handle(self, frame: bytes) -> bytes:
        """Hand a frame on, and keep both what it said and what was said to it."""
        answer = self._server.handle(frame)
        said, back = (decode_frame(each, max_bytes=self._max_bytes) for each in (frame, answer))
        self.exchanges.append((said, back))
        return answer


@contextmanager
def tapped(client: Client, server: FrameHandler, config: RunConfig) -> Iterator[Wiretap]:
    """Lead a client's frames through a wiretap, with the codec and the limits of its run."""
    usual, limit = client.trunk, config.split.max_frame_mib << 20
    tap = Wiretap(server, limit)
    codec = Codec(config.split.codec)
    client.trunk = RemoteTrunk(InProcessTransport(tap), codec=codec, max_bytes=limit)
    client.trunk.key = usual.key
    try:
        yield tap
    finally:
        client.trunk = usual


def histories_seen(client: Client, tap: Wiretap, histories: Ragged) -> list[Seen]:
    """Let a client score histories, and return what of each went to the server, in their order.

    The client's turn lasts, and its frames go through the tap. For recommenders whose positions
    are items.
    """
    found: dict[int, Seen] = {}
    client.begin_serving()
    recommender, size = client.recommender, client.settings.evaluation_batch
    for batch in recommender.serving_batches(histories, size):
        tap.exchanges.clear()
        with torch.no_grad():
            recommender.score(client.trunk, batch, 1)
        (frame,) = [said for said, _ in tap.exchanges if said.kind is FrameKind.FORWARD]
        if frame.tensor is None or frame.lengths is None:
            raise RuntimeError("a forward frame without a tensor")
        parts = torch.split(frame.tensor, frame.lengths.tolist())
        for row, length, inputs, activations in zip(
            batch.rows.tolist(), frame.lengths.tolist(), batch.inputs, parts, strict=True
        ):
            found[row] = Seen(activations, inputs[:length].numpy())
    return [found[row] for row in range(len(histories))]


class _Enough(Exception):
    """Training has gone on for as long as it is watched."""


def steps_seen(client: Client, tap: Wiretap, users: int) -> list[Step]:
    """Let a client begin the round that it is in, and return its first micro-batches.

    As many as hold the last targets of so many users. The client's turn lasts; what it learns of it
    is not complete, and is to be dropped with the turn.
    """
    round = client.trunk.key.round
    batches = client.epoch(round, 0)
    rows = np.cumsum([len(batch.rows) for batch in batches])
    count = int(np.searchsorted(rows, users)) + 1

    def watch(done: int, total: int, loss: float) -> None:
        if done >= count:
            raise _Enough

    tap.exchanges.clear()
    with suppress(_Enough):
        client.train(round, watch)
    parts = {
        (step, micro): part
        for step, batch in enumerate(batches[:count])
        for micro, part in enumerate(batch.micro(client.settings.micro_batches))
    }
    sent = {}
    found = []
    for said, back in tap.exchanges:
        at = said.step, said.micro
        if said.kind is FrameKind.FORWARD and said.training:
            sent[at] = back.tensor
        elif said.kind is FrameKind.GRADIENT:
            part, outputs, gradient = parts[at], sent[at], said.tensor
            if outputs is None or gradient is None:
                raise RuntimeError("a frame of training without a tensor")
            labels = part.targets.numpy()[np.cumsum(part.counts) - 1]
            found.append(Step(outputs, gradient, part.layout, *at, labels))
    return found
