"""The client's view of a trunk that runs elsewhere: an ordinary module.

`RemoteTrunk` is called like the stage it stands for. Its backward pass sends the gradient at the
second cut and brings back the one at the first (METHOD section 2), so client code cannot tell a
local trunk from a remote one.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fellrec.errors import WireError
from fellrec.models.dropout import StepKey
from fellrec.models.layout import Layout
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

    def forward(self, hidden: Tensor, layout: Layout) -> Tensor:
        """Send activations across and return what comes back: (batch, width, d) both."""
        if not (self.training and torch.is_grad_enabled()):
            packed = self._cross(FrameKind.FORWARD, layout.pack(hidden), layout, self.key)
            return layout.unpack(packed).to(hidden.device)
        if not hidden.requires_grad:
            # The trunk's adapter wants its gradient even where nothing before it is trained.
            hidden = hidden.detach().requires_grad_()
        crossed: Tensor = _Crossing.apply(hidden, layout, self)  # type: ignore[no-untyped-call]  # torch
        return crossed

    def end_step(self, squared_norm: float) -> float:
        """Exchange squared gradient norms, upon which the trunk steps; return the trunk's."""
        key = self.key
        frame = Frame(FrameKind.NORM, key.client, key.round, key.step, scalar=squared_norm)
        reply = self._exchange(frame, FrameKind.NORM)
        if reply.scalar is None:
            raise WireError("the trunk's answer carries no norm")
        return reply.scalar

    def _cross(
        self,
        kind: FrameKind,
        packed: Tensor,
        layout: Layout,
        key: StepKey,
        *,
        train: bool = False,
    ) -> Tensor:
        frame = Frame(
            kind,
            key.client,
            key.round,
            key.step,
            key.micro,
            train,
            layout.side,
            lengths=layout.lengths if kind is FrameKind.FORWARD else None,
            tensor=packed.detach().to("cpu"),
            codec=self._codec,
        )
        generator = None
        answer = FrameKind.OUTPUT
        if kind is FrameKind.GRADIENT:
            answer, generator = FrameKind.INPUT_GRADIENT, key.generator("wire", "up")
        reply = self._exchange(frame, answer, generator)
        if reply.tensor is None or reply.tensor.shape != packed.shape:
            raise WireError(f"the trunk's answer does not fit {tuple(packed.shape)} activations")
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
        packed = remote._cross(FrameKind.FORWARD, layout.pack(hidden), layout, ctx.key, train=True)
        return layout.unpack(packed).to(hidden.device)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        packed = ctx.layout.pack(gradients[0])
        crossed = ctx.remote._cross(FrameKind.GRADIENT, packed, ctx.layout, ctx.key, train=True)
        return ctx.layout.unpack(crossed).to(ctx.device), None, None
