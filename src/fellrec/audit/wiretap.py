"""What the server gets while a client scores its users: the frames themselves, decoded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fellrec.config import RunConfig
from fellrec.data.interactions import Ragged
from fellrec.federation.client import Client
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


class Wiretap:
    """Stands before a trunk and keeps every frame that goes to it."""

    def __init__(self, server: FrameHandler, max_bytes: int) -> None:
        self.frames: list[Frame] = []
        self._server = server
        self._max_bytes = max_bytes

    def handle(self, frame: bytes) -> bytes:
        """Keep a frame, and hand it on."""
        self.frames.append(decode_frame(frame, max_bytes=self._max_bytes))
        return self._server.handle(frame)


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
        tap.frames.clear()
        with torch.no_grad():
            recommender.score(client.trunk, batch, 1)
        (frame,) = [each for each in tap.frames if each.kind is FrameKind.FORWARD]
        if frame.tensor is None or frame.lengths is None:
            raise RuntimeError("a forward frame without a tensor")
        parts = torch.split(frame.tensor, frame.lengths.tolist())
        for row, length, inputs, activations in zip(
            batch.rows.tolist(), frame.lengths.tolist(), batch.inputs, parts, strict=True
        ):
            found[row] = Seen(activations, inputs[:length].numpy())
    return [found[row] for row in range(len(histories))]
