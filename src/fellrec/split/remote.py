"""The client's view of a trunk that runs elsewhere: an ordinary module.

`RemoteTrunk` is called like the stage it stands for. Its backward pass sends the gradient at the
second cut and brings back the one at the first (METHOD section 2), so client code cannot tell a
local trunk from a remote one.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fellrec.errors import WireError
from fellrec.models.dropout import StepKey
from fellrec.models.layout import Layout, Side
from fellrec.models.recommender import Crossing, Trunk
from fellrec.split.codecs import Codec
from fellrec.split.ledger import Ledger
from fellrec.split.transport import PipelinedTransport, Transport
from fellrec.split.wire import Frame, FrameKind, decode_frame, encode_frame, frame_parts


class RemoteTrunk(Trunk):
    """Blocks that run on a server.

    key: where training stands; its owner moves it on. Every frame goes into `ledger`. seconds: time
    spent waiting for the server, its computation and both codecs included.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        codec: Codec = Codec.FP32,
        ledger: Ledger | None = None,
        max_bytes: int = 256 << 20,
    ) -> None:
        super().__init__()
        self.key = StepKey()
        self.ledger = ledger if ledger is not None else Ledger()
        self.seconds = 0.0
        self._transport = transport
        self._codec = codec
        self._max_bytes = max_bytes
        self._remembered: npt.NDArray[np.int32] = np.empty(0, np.int32)
        self.overlaps = hasattr(transport, "send")

    def forward(self, hidden: Tensor, layout: Layout) -> Tensor:
        """Send activations across and return what comes back: (batch, width, d) both."""
        if not (self.training and torch.is_grad_enabled()):
            frame = self._forward(layout.pack(hidden), layout.lengths, layout.side)
            return layout.unpack(self._answer(frame)).to(hidden.device)
        if not hidden.requires_grad:
            # The trunk's adapter wants its gradient even where nothing before it is trained.
            hidden = hidden.detach().requires_grad_()
        crossed: Tensor = _Across.apply(hidden, layout, self)  # type: ignore[no-untyped-call]  # torch
        return crossed

    def begin(self, hidden: Tensor, layout: Layout) -> Crossing:
        """Send a micro-batch's activations, and don't wait: `overlaps` has to be true."""
        return RemoteCrossing(self, hidden, layout)

    def prefill(self, hidden: Tensor, layout: Layout) -> Tensor:
        """Send prompts across; the server remembers them until the next ones come."""
        self._remembered = layout.lengths.astype(np.int32)
        nothing = np.zeros(len(layout.lengths), np.int32)
        frame = self._forward(layout.pack(hidden), layout.lengths, layout.side, positions=nothing)
        return layout.unpack(self._answer(frame)).to(hidden.device)

    def extend(self, hidden: Tensor, beams: npt.NDArray[np.int32]) -> Tensor:
        """Send one position of each row across, with the row that it continues."""
        positions = self._remembered[beams]
        ones = np.ones(len(beams), np.int32)
        frame = self._forward(hidden[:, 0], ones, "left", positions=positions, beams=beams)
        self._remembered = positions + np.int32(1)
        return self._answer(frame)[:, None].to(hidden.device)

    def end_step(self, squared_norm: float) -> float:
        """Exchange squared gradient norms, upon which the trunk steps; return the trunk's."""
        key = self.key
        frame = Frame(FrameKind.NORM, key.client, key.round, key.step, scalar=squared_norm)
        reply = self._exchange(frame, FrameKind.NORM)
        if reply.scalar is None:
            raise WireError("the trunk's answer carries no norm")
        return reply.scalar

    def _forward(
        self,
        packed: Tensor,
        lengths: npt.NDArray[np.int32],
        side: Side,
        key: StepKey | None = None,
        *,
        positions: npt.NDArray[np.int32] | None = None,
        beams: npt.NDArray[np.int32] | None = None,
    ) -> Frame:
        """Make a forward frame; of a training step where its key is given."""
        at = key or self.key
        return Frame(
            FrameKind.FORWARD,
            at.client,
            at.round,
            at.step,
            at.micro,
            key is not None,
            side,
            lengths=lengths,
            positions=positions,
            beams=beams,
            tensor=packed.detach().to("cpu"),
            codec=self._codec,
        )

    def _gradient(self, packed: Tensor, side: Side, key: StepKey) -> Frame:
        return Frame(
            FrameKind.GRADIENT,
            key.client,
            key.round,
            key.step,
            key.micro,
            True,
            side,
            tensor=packed.detach().to("cpu"),
            codec=self._codec,
        )

    def _answer(self, frame: Frame, generator: torch.Generator | None = None) -> Tensor:
        """Exchange a frame that carries a tensor for one of the same shape."""
        due, shape = _due(frame)
        return _fitting(self._exchange(frame, due, generator), shape)

    def _exchange(
        self, frame: Frame, answer: FrameKind, generator: torch.Generator | None = None
    ) -> Frame:
        start = time.perf_counter()
        encoded = self._encoded(frame, generator)
        reply = self._read(frame.client, frame.round, self._transport.exchange(encoded), answer)
        self.seconds += time.perf_counter() - start
        return reply

    def _send(self, frame: Frame, generator: torch.Generator | None = None) -> int:
        """Send a frame ahead: a ticket for its answer."""
        start = time.perf_counter()
        transport = cast(PipelinedTransport, self._transport)
        ticket = transport.send(self._encoded(frame, generator))
        self.seconds += time.perf_counter() - start
        return ticket

    def _receive(self, ticket: int, client: str, round: int, answer: FrameKind) -> Frame:
        """Wait for the answer of a frame that was sent ahead."""
        start = time.perf_counter()
        transport = cast(PipelinedTransport, self._transport)
        reply = self._read(client, round, transport.receive(ticket), answer)
        self.seconds += time.perf_counter() - start
        return reply

    def _encoded(self, frame: Frame, generator: torch.Generator | None) -> bytes:
        self.ledger.record_parts(frame.client, frame.round, "up", frame_parts(frame))
        return encode_frame(frame, generator)

    def _read(self, client: str, round: int, data: bytes, answer: FrameKind) -> Frame:
        reply = decode_frame(data, max_bytes=self._max_bytes)
        if reply.kind is FrameKind.ERROR:
            raise WireError(f"the trunk refused: {reply.message}")
        if reply.kind is not answer:
            raise WireError(f"the trunk answered {reply.kind.name}, {answer.name} was due")
        self.ledger.record_parts(client, round, "down", frame_parts(reply))
        return reply


class RemoteCrossing(Crossing):
    """A micro-batch whose frames don't wait for each other's answers; see `RemoteTrunk.begin`."""

    def __init__(self, remote: RemoteTrunk, hidden: Tensor, layout: Layout) -> None:
        self._remote, self._layout, self._device = remote, layout, hidden.device
        # A copy: the owner moves the key on before this micro-batch's gradient comes.
        self._key = replace(remote.key)
        frame = remote._forward(layout.pack(hidden), layout.lengths, layout.side, self._key)
        self._shape = _due(frame)[1]
        self._ticket = remote._send(frame)
        self._outputs: Tensor | None = None

    def outputs(self) -> Tensor:
        """Wait for the trunk's outputs."""
        self._outputs = self._take(FrameKind.OUTPUT).requires_grad_()
        return self._outputs

    def send_gradient(self) -> None:
        """Send the gradient that the outputs gathered."""
        if self._outputs is None or self._outputs.grad is None:
            raise RuntimeError("the outputs have gathered no gradient")
        packed = self._layout.pack(self._outputs.grad)
        frame = self._remote._gradient(packed, self._layout.side, self._key)
        self._ticket = self._remote._send(frame, self._key.generator("wire", "up"))
        self._outputs = None

    def input_gradient(self) -> Tensor:
        """Wait for the gradient of what went in."""
        return self._take(FrameKind.INPUT_GRADIENT)

    def _take(self, due: FrameKind) -> Tensor:
        reply = self._remote._receive(self._ticket, self._key.client, self._key.round, due)
        return self._layout.unpack(_fitting(reply, self._shape)).to(self._device)


def _due(frame: Frame) -> tuple[FrameKind, torch.Size | None]:
    """Return the kind and the shape that the answer to a frame with a tensor must have."""
    forward = frame.kind is FrameKind.FORWARD
    kind = FrameKind.OUTPUT if forward else FrameKind.INPUT_GRADIENT
    return kind, frame.tensor.shape if frame.tensor is not None else None


def _fitting(reply: Frame, shape: torch.Size | None) -> Tensor:
    if reply.tensor is None or reply.tensor.shape != shape:
        raise WireError(f"the trunk's answer does not fit activations of {shape}")
    return reply.tensor


class _Across(torch.autograd.Function):
    """Activations out and back; in the backward pass, gradients out and back."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, layout: Layout, remote: RemoteTrunk) -> Tensor:
        ctx.layout, ctx.remote, ctx.device = layout, remote, hidden.device
        # A copy: the owner may move the key on before this micro-batch's gradient comes.
        ctx.key = replace(remote.key)
        frame = remote._forward(layout.pack(hidden), layout.lengths, layout.side, ctx.key)
        return layout.unpack(remote._answer(frame)).to(hidden.device)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        remote, layout = ctx.remote, ctx.layout
        frame = remote._gradient(layout.pack(gradients[0]), layout.side, ctx.key)
        crossed = remote._answer(frame, ctx.key.generator("wire", "up"))
        return layout.unpack(crossed).to(ctx.device), None, None
