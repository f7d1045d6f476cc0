"""The client's view of a trunk that runs elsewhere: an ordinary module.

`RemoteTrunk` is called like the stage it stands for. Its backward pass sends the gradient at the
second cut and brings back the one at the first (METHOD section 2), so client code cannot tell a
local trunk from a remote one.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fellrec.errors import WireError
from fellrec.models.dropout import StepKey
from fellrec.models.layout import Layout, Side
from fellrec.models.recommender import Trunk
from fellrec.split.codecs import Codec
from fellrec.split.ledger import Ledger
from fellrec.split.transport import Transport
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

    def forward(self, hidden: Tensor, layout: Layout) -> Tensor:
        """Send activations across and return what comes back: (batch, width, d) both."""
        if not (self.training and torch.is_grad_enabled()):
            frame = self._forward(layout.pack(hidden), layout.lengths, layout.side)
            return layout.unpack(self._answer(frame)).to(hidden.device)
        if not hidden.requires_grad:
            # The trunk's adapter wants its gradient even where nothing before it is trained.
            hidden = hidden.detach().requires_grad_()
        crossed: Tensor = _Crossing.apply(hidden, layout, self)  # type: ignore[no-untyped-call]  # torch
        return crossed

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
        forward = frame.kind is FrameKind.FORWARD
        due = FrameKind.OUTPUT if forward else FrameKind.INPUT_GRADIENT
        reply = self._exchange(frame, due, generator)
        sent = frame.tensor.shape if frame.tensor is not None else None
        if reply.tensor is None or reply.tensor.shape != sent:
            raise WireError(f"the trunk's answer does not fit activations of {sent}")
        return reply.tensor

    def _exchange(
        self, frame: Frame, answer: FrameKind, generator: torch.Generator | None = None
    ) -> Frame:
        start = time.perf_counter()
        self.ledger.record_parts(frame.client, frame.round, "up", frame_parts(frame))
        reply = decode_frame(
            self._transport.exchange(encode_frame(frame, generator)), max_bytes=self._max_bytes
        )
        if reply.kind is FrameKind.ERROR:
            raise WireError(f"the trunk refused: {reply.message}")
        if reply.kind is not answer:
            raise WireError(f"the trunk answered {reply.kind.name}, {answer.name} was due")
        self.ledger.record_parts(frame.client, frame.round, "down", frame_parts(reply))
        self.seconds += time.perf_counter() - start
        return reply


class _Crossing(torch.autograd.Function):
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
