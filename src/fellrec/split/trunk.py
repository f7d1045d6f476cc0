"""The server's side of the split: one shared frozen trunk, one small adapter per client.

A session belongs to one client and one round. It works on its own copy of the client's adapter and
optimiser over the shared base; what it learned becomes the client's when the coordinator takes
the session's state at its end. Between sessions nothing of a client is in memory.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fellrec.errors import WireError
from fellrec.models.adapters import adapter, write
from fellrec.models.layout import Layout
from fellrec.models.optimiser import Optimiser, OptimiserSettings
from fellrec.models.stages import Stage
from fellrec.split.wire import Frame, FrameKind, decode_frame, encode_frame, error_frame


@dataclass(frozen=True)
class SessionSettings:
    """What both sides agree on before the first frame.

    seed: of dropout masks and of stochastic rounding. micro_batches: most forward passes that may
    wait for their gradient. max_bytes: largest frame taken. max_cache_bytes: most keys and values
    that a session remembers of the texts being written.
    """

    seed: int = 0
    optimiser: OptimiserSettings = field(default_factory=OptimiserSettings)
    micro_batches: int = 1
    max_bytes: int = 256 << 20
    max_cache_bytes: int = 2 << 30


@dataclass
class _Session:
    stage: Stage
    optimiser: Optimiser
    round: int
    step: int = 0
    pending: dict[int, tuple[Tensor, Tensor, Layout]] = field(default_factory=dict)
    expected: int = 0
    seconds: float = 0.0


class TrunkServer:
    """Answers the frames of all clients of one trunk.

    base: the trunk with its initial adapter attached; all sessions share its frozen tensors.
    """

    def __init__(self, base: Stage, settings: SessionSettings) -> None:
        self._base = base
        self._settings = settings
        self._sessions: dict[str, _Session] = {}

    @property
    def base(self) -> Stage:
        """The shared trunk."""
        return self._base

    def initial(self) -> dict[str, Tensor]:
        """The adapter that every client starts from."""
        return {name: p.detach().cpu() for name, p in adapter(self._base).items()}

    def open(
        self,
        client: str,
        round: int,
        factors: Mapping[str, Tensor] | None = None,
        moments: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Begin a client's session, from its adapter (the initial one if None) and optimiser."""
        stage = self._base.replica()
        stage.key.seed, stage.key.client, stage.key.round = self._settings.seed, client, round
        if factors is not None:
            write(adapter(stage), factors)
        optimiser = Optimiser(adapter(stage), self._settings.optimiser)
        if moments is not None:
            optimiser.load(moments)
        self._sessions[client] = _Session(stage, optimiser, round)

    def close(self, client: str) -> tuple[dict[str, Tensor], dict[str, Tensor], float]:
        """End a session: return the adapter, the optimiser's state and the seconds spent."""
        session = self._sessions.pop(client)
        factors = {name: p.detach().cpu() for name, p in adapter(session.stage).items()}
        return factors, session.optimiser.state(), session.seconds

    def drop(self, client: str) -> None:
        """Forget a session and what it learned, if there is one."""
        self._sessions.pop(client, None)

    def handle(self, frame: bytes) -> bytes:
        """Answer one frame; a refused one ends its session and harms no other."""
        start = time.perf_counter()
        client = ""
        try:
            request = decode_frame(frame, max_bytes=self._settings.max_bytes)
            client = request.client
            session = self._sessions.get(client)
            if session is None:
                raise WireError(f"client {client!r} has no open session; begin a round first")
            reply, generator = self._answer(session, request)
            encoded = encode_frame(reply, generator)
        except WireError as error:
            self._sessions.pop(client, None)
            return encode_frame(error_frame(client, str(error)))
        session.seconds += time.perf_counter() - start
        return encoded

    def _answer(self, session: _Session, request: Frame) -> tuple[Frame, torch.Generator | None]:
        if request.round != session.round:
            raise WireError(f"a frame of round {request.round} in a session of {session.round}")
        match request.kind:
            case FrameKind.FORWARD if not request.training:
                return self._reply(request, FrameKind.OUTPUT, self._serve(session, request)), None
            case FrameKind.FORWARD:
                return self._reply(request, FrameKind.OUTPUT, self._train(session, request)), None
            case FrameKind.GRADIENT:
                gradient = self._backward(session, request)
                generator = session.stage.key.generator("wire", "down")
                return self._reply(request, FrameKind.INPUT_GRADIENT, gradient), generator
            case FrameKind.NORM:
                return self._step(session, request), None
        raise WireError(f"a {request.kind.name} frame is not for the server")

    @staticmethod
    def _reply(request: Frame, kind: FrameKind, tensor: Tensor) -> Frame:
        return Frame(
            kind,
            request.client,
            request.round,
            request.step,
            request.micro,
            request.training,
            tensor=tensor,
            codec=request.codec,
        )

    def _layout(self, request: Frame) -> tuple[Layout, Tensor]:
        if request.lengths is None or request.tensor is None:
            raise WireError("a forward frame needs lengths and a tensor")
        if request.tensor.shape[1] != self._base.width:
            raise WireError(
                f"activations of {request.tensor.shape[1]} channels, the trunk has "
                f"{self._base.width}"
            )
        layout = Layout(request.lengths, request.side)
        if layout.width > self._base.context:  # the attention's memory grows with its square
            raise WireError(f"{layout.width} positions, the base has {self._base.context}")
        if 4 * len(layout.lengths) * layout.width * self._base.width > self._settings.max_bytes:
            raise WireError("the padded batch passes split.max_frame_mib; send smaller batches")
        return layout, request.tensor

    def _serve(self, session: _Session, request: Frame) -> Tensor:
        layout, packed = self._layout(request)
        session.stage.eval()
        with torch.no_grad():
            if request.beams is not None:
                return self._extend(session.stage, request, packed)
            session.stage.forget()
            if request.positions is None:
                return layout.pack(session.stage(layout.unpack(packed), layout))
            if not self._base.family.decoder:
                raise WireError("texts to write, but the trunk is an encoder's")
            if request.positions.any() or layout.side != "left":
                raise WireError("prompts start at position 0 and are padded on the left")
            self._check_cache(len(layout.lengths), layout.width)
            return layout.pack(session.stage.prefill(layout.unpack(packed), layout))

    def _extend(self, stage: Stage, request: Frame, packed: Tensor) -> Tensor:
        """Run one more position of each row over what the session remembers."""
        cache, beams = stage.cache, request.beams
        if cache is None or beams is None:
            raise WireError("no prompt is remembered: send it first")
        if len(beams) != len(packed):
            raise WireError(f"{len(packed)} positions for {len(beams)} rows; send one each")
        if int(beams.max()) >= len(cache.lengths):
            raise WireError(f"row {beams.max()} of {len(cache.lengths)} remembered ones")
        if request.positions is None or (request.positions != cache.lengths[beams]).any():
            raise WireError("the positions do not follow those that are remembered")
        if int(request.positions.max()) >= self._base.context:
            raise WireError(f"the text passes the base's {self._base.context} positions")
        self._check_cache(len(beams), cache.columns + 1)
        return stage.extend(packed[:, None], beams)[:, 0]

    def _check_cache(self, rows: int, columns: int) -> None:
        size = rows * columns * self._base.cache_bytes
        if size > self._settings.max_cache_bytes:
            raise WireError(
                f"{rows} rows of {columns} positions to remember take {size >> 20} MiB, the limit "
                f"is {self._settings.max_cache_bytes >> 20} (split.max_cache_mib); write fewer "
                "texts at a time"
            )

    def _train(self, session: _Session, request: Frame) -> Tensor:
        if (request.step, request.micro) != (session.step, session.expected):
            raise WireError(
                f"step {request.step}.{request.micro} came, "
                f"{session.step}.{session.expected} was next"
            )
        if request.micro >= self._settings.micro_batches:
            raise WireError(f"more than {self._settings.micro_batches} micro-batches in a step")
        if request.positions is not None or request.beams is not None:
            raise WireError("a training frame reads whole texts")
        layout, packed = self._layout(request)
        session.stage.forget()
        session.stage.train()
        session.stage.key.step, session.stage.key.micro = request.step, request.micro
        entry = packed.requires_grad_()
        with torch.enable_grad():
            exit_ = layout.pack(session.stage(layout.unpack(entry), layout))
        session.pending[request.micro] = (entry, exit_, layout)
        session.expected += 1
        return exit_.detach()

    def _backward(self, session: _Session, request: Frame) -> Tensor:
        held = session.pending.pop(request.micro, None) if request.step == session.step else None
        if held is None:
            raise WireError(f"a gradient of step {request.step}.{request.micro}, which is not open")
        entry, exit_, _ = held
        if request.tensor is None or request.tensor.shape != exit_.shape:
            raise WireError(f"a gradient that does not fit an output of {tuple(exit_.shape)}")
        session.stage.key.micro = request.micro
        torch.autograd.backward(exit_, request.tensor.to(exit_.device))
        if entry.grad is None:
            raise WireError("the trunk gave no gradient")
        return entry.grad

    def _step(self, session: _Session, request: Frame) -> Frame:
        if request.step != session.step or session.pending or session.expected == 0:
            raise WireError(f"step {request.step} can't end now: gradients are missing")
        own = session.optimiser.squared_norm()
        session.optimiser.step(own + (request.scalar or 0.0))
        session.step, session.expected = session.step + 1, 0
        return Frame(FrameKind.NORM, request.client, request.round, request.step, scalar=own)
