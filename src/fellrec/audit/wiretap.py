"""What the server gets while a client scores its users or trains: the frames, decoded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from fellrec.config import RunConfig
from fellrec.data.interactions import Ragged
from fellrec.federation.client import Client
from fellrec.models.layout import Layout
from fellrec.models.recommender import Batch, Entered, Trunk
from fellrec.privacy import Cover
from fellrec.split.codecs import Codec, decode, encode
from fellrec.split.remote import RemoteTrunk
from fellrec.split.transport import FrameHandler, InProcessTransport
from fellrec.split.wire import Frame, FrameKind, decode_frame

Items = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Seen:
    """One history on its way through the first cut.

    activations: (length, d) float32, as the server decoded them. inputs: (length,) or (length, n)
    int64, what the client's head read; no attacker sees it, it is what a guess is scored by.
    """

    activations: Tensor
    inputs: Tensor


@dataclass(frozen=True)
class Step:
    """A training micro-batch at both cuts.

    activations: (total, d) float32, what the client sent; outputs: (total, d), what the server
    answered; gradient: (total, d), what came back at the second cut. layout: of all three. step,
    micro: where in the round it was. batch: what the client read and was to predict; no attacker
    sees it.
    """

    activations: Tensor
    outputs: Tensor
    gradient: Tensor
    layout: Layout
    step: int
    micro: int
    batch: Batch


class _Enough(Exception):
    """What was to be heard has been heard."""


class Wiretap:
    """Stands before a trunk and keeps every frame that goes to it, with the answer.

    last: hang up after so many frames since the last `clear`, by raising; None listens on.
    """

    def __init__(self, server: FrameHandler, max_bytes: int) -> None:
        self.exchanges: list[tuple[Frame, Frame]] = []
        self.last: int | None = None
        self._server = server
        self._max_bytes = max_bytes

    def clear(self, last: int | None = None) -> None:
        """Forget what was heard, and say after how many frames to hang up."""
        self.exchanges, self.last = [], last

    def handle(self, frame: bytes) -> bytes:
        """Hand a frame on, and keep both what it said and what was said to it."""
        answer = self._server.handle(frame)
        said, back = (decode_frame(each, max_bytes=self._max_bytes) for each in (frame, answer))
        self.exchanges.append((said, back))
        if len(self.exchanges) == self.last:
            raise _Enough
        return answer


@contextmanager
def tapped(
    client: Client, server: FrameHandler, config: RunConfig, cover: Cover
) -> Iterator[Wiretap]:
    """Lead a client's frames through a wiretap, with the codec and the limits of its run.

    cover: what the client draws over them before.
    """
    limit = config.split.max_frame_mib << 20
    tap = Wiretap(server, limit)
    line = RemoteTrunk(InProcessTransport(tap), codec=Codec(config.split.codec), max_bytes=limit)
    line.key = client.trunk.key
    with led(client, cover.over(line)):
        yield tap


@contextmanager
def led(client: Client, trunk: Trunk) -> Iterator[None]:
    """Lead all that a client sends to another trunk for a while."""
    usual, client.trunk = client.trunk, trunk
    try:
        yield
    finally:
        client.trunk = usual


def across(activations: Tensor, codec: Codec, cover: Cover) -> Tensor:
    """Return what of activations, (length, d), is left behind a veil and the wire, in order."""
    sent = activations.detach().cpu()
    if cover.veil is not None:
        sent = cover.veil.over(sent, cover.noise)
    length, width = sent.shape
    return decode(encode(sent, codec), length, width, codec)


def histories_seen(client: Client, tap: Wiretap, histories: Ragged) -> list[Seen]:
    """Let a client score histories, and return what of each went to the server, in their order.

    The client's turn lasts, and its frames go through the tap. A batch's first frame has all
    positions of its histories, so the rest of its scoring is not waited for.
    """
    found: dict[int, Seen] = {}
    client.begin_serving()
    recommender, size = client.recommender, client.settings.evaluation_batch
    for batch in recommender.serving_batches(histories, size):
        tap.clear(last=1)
        with suppress(_Enough):
            recommender.score(client.trunk, batch, 1)
        ((frame, _),) = tap.exchanges
        if frame.tensor is None or frame.lengths is None:
            raise RuntimeError("a forward frame without a tensor")
        lengths = frame.lengths.tolist()
        packed = batch.inputs.flatten(0, 1)[batch.layout.index]
        for row, activations, inputs in zip(
            batch.rows.tolist(), frame.tensor.split(lengths), packed.split(lengths), strict=True
        ):
            found[row] = Seen(activations, inputs)
    tap.clear()
    return [found[row] for row in range(len(histories))]


def steps_seen(client: Client, tap: Wiretap, users: int) -> list[Step]:
    """Let a client begin the round that it is in, and return its first micro-batches.

    As many as hold so many rows, or the round has. The client's turn lasts; what it learns of it is
    not complete, and is to be dropped with the turn.
    """

    def watch(done: int, total: int, loss: float) -> None:
        if sum(len(part.rows) for part in parts.values()) >= users:
            raise _Enough

    tap.clear()
    with _entering(client) as parts, suppress(_Enough):
        client.train(client.trunk.key.round, watch)
    sent: dict[tuple[int, int], tuple[Tensor | None, Tensor | None]] = {}
    found = []
    for said, back in tap.exchanges:
        at = said.step, said.micro
        if said.kind is FrameKind.FORWARD and said.training:
            sent[at] = said.tensor, back.tensor
        elif said.kind is FrameKind.GRADIENT:
            part, (activations, outputs), gradient = parts[at], sent[at], said.tensor
            if activations is None or outputs is None or gradient is None:
                raise RuntimeError("a frame of training without a tensor")
            found.append(Step(activations, outputs, gradient, part.layout, *at, part))
    return found


@contextmanager
def _entering(client: Client) -> Iterator[dict[tuple[int, int], Batch]]:
    """Note what a client runs its head over in training, by step and micro-batch.

    Who is drawn for a private step nobody could tell beforehand.
    """
    found: dict[tuple[int, int], Batch] = {}
    recommender, key = client.recommender, client.trunk.key
    enter = recommender.enter

    def noting(batch: Batch) -> Entered:
        found[key.step, key.micro] = batch
        return enter(batch)

    recommender.enter = noting  # type: ignore[method-assign]  # of this one, and for a while
    try:
        yield found
    finally:
        del recommender.enter
