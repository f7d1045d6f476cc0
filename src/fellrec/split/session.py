"""One client's working copy of the trunk's adapter, and the frames that train or use it.

A session works on a replica over the shared frozen base: its own factors, its own optimiser. It
answers one frame at a time, in the order of training; several sessions may answer at the same time,
each in a thread of its own.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fellrec.errors import WireError
from fellrec.models.adapters import adapter
from fellrec.models.cache import laid_out
from fellrec.models.layout import Layout
from fellrec.models.optimiser import Optimiser, OptimiserSettings
from fellrec.models.stages import Stage
from fellrec.split.wire import Frame, FrameKind

# Floats that training keeps per position and block until the gradient comes, in multiples of the
# block's width and of its feed-forward width, and with windows of heads x window: what torch saves
# for the families of `models.families`, counted, and rounded up to one number for all.
_KEPT_WIDTHS, _KEPT_INNER, _KEPT_WINDOWS = 11, 4, 7


@dataclass(frozen=True)
class SessionSettings:
    """What both sides agree on before the first frame.

    seed: of dropout masks and of stochastic rounding. micro_batches: most forward passes that may
    wait for their gradient. max_bytes: largest frame taken. max_cache_bytes: most keys and values
    that a session remembers of the texts being written. alternate: rounds train B and A in turn.
    """

    seed: int = 0
    optimiser: OptimiserSettings = field(default_factory=OptimiserSettings)
    micro_batches: int = 1
    max_bytes: int = 256 << 20
    max_cache_bytes: int = 2 << 30
    alternate: bool = False


class Session:
    """The working copy of one client in one round.

    step: optimiser steps taken. positions: valid positions trained on, summed. seconds: spent on
    its frames, which whoever calls `answer` adds up. lock: held by whoever calls `answer`.
    """

    def __init__(
        self, stage: Stage, optimiser: Optimiser, round: int, settings: SessionSettings
    ) -> None:
        self.stage = stage
        self.optimiser = optimiser
        self.round = round
        self.step = 0
        self.positions = 0
        self.seconds = 0.0
        self.lock = threading.Lock()
        self._settings = settings
        self.pending: dict[int, tuple[Tensor, Tensor, Layout]] = {}
        self.expected = 0

    def answer(self, request: Frame) -> tuple[Frame, torch.Generator | None]:
        """Answer one frame; the generator rounds the answer's gradients (`wire.encode_frame`).

        Raises WireError where the frame does not fit the session; it can't go on then.
        """
        if request.round != self.round:
            raise WireError(f"a frame of round {request.round} in a session of {self.round}")
        match request.kind:
            case FrameKind.FORWARD if not request.training:
                return self._reply(request, FrameKind.OUTPUT, self._serve(request)), None
            case FrameKind.FORWARD:
                return self._reply(request, FrameKind.OUTPUT, self._train(request)), None
            case FrameKind.GRADIENT:
                gradient = self._backward(request)
                generator = self.stage.key.generator("wire", "down")
                return self._reply(request, FrameKind.INPUT_GRADIENT, gradient), generator
            case FrameKind.NORM:
                return self._step(request), None
        raise WireError(f"a {request.kind.name} frame is not for the server")

    @property
    def between_steps(self) -> bool:
        """Whether no step is open: what was learned is then complete."""
        return not self.pending and self.expected == 0

    def result(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the adapter and the optimiser's state, on the CPU."""
        factors = {name: p.detach().cpu() for name, p in adapter(self.stage).items()}
        return factors, self.optimiser.state()

    def held_bytes(self) -> int:
        """Estimate the memory of what waits for a gradient and of what is remembered."""
        waiting = (self._kept(layout) for _, _, layout in self.pending.values())
        cache = self.stage.cache
        remembered = 0 if cache is None else len(cache.lengths) * cache.room
        return sum(waiting) + remembered * self.stage.cache_bytes

    def demand(self, request: Frame) -> int:
        """Estimate `held_bytes` after a request, before anything of it is computed."""
        held = self.held_bytes()
        if request.kind is not FrameKind.FORWARD or request.lengths is None:
            return held
        if request.training:
            return held + self._kept(Layout(request.lengths, request.side))
        cache = self.stage.cache
        if request.beams is not None:
            room = 0 if cache is None else laid_out(cache.columns + 1, cache.room)
            return max(held, len(request.beams) * room * self.stage.cache_bytes)
        if request.positions is not None:
            room = laid_out(Layout(request.lengths, request.side).width)
            return max(held, len(request.lengths) * room * self.stage.cache_bytes)
        return held

    def _kept(self, layout: Layout) -> int:
        """Bytes that training on a batch keeps: inputs of what has to be differentiated."""
        config, width, window = self.stage.body.config, self.stage.width, self.stage.window
        inner = int(getattr(config, "intermediate_size", 4 * width))
        floats = _KEPT_WIDTHS * width + _KEPT_INNER * inner
        floats += _KEPT_WINDOWS * window * int(config.num_attention_heads)
        columns = layout.width + (-layout.width % window if window else 0)
        return 4 * len(layout.lengths) * columns * (self.stage.blocks * floats + 2 * width)

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
        width, limit = self.stage.width, self._settings.max_bytes
        if request.tensor.shape[1] != width:
            raise WireError(
                f"activations of {request.tensor.shape[1]} channels, the trunk has {width}"
            )
        layout = Layout(request.lengths, request.side)
        if layout.width > self.stage.context:  # the attention's memory grows with its square
            raise WireError(f"{layout.width} positions, the base has {self.stage.context}")
        if 4 * len(layout.lengths) * layout.width * width > limit:
            raise WireError("the padded batch passes split.max_frame_mib; send smaller batches")
        return layout, request.tensor

    def _serve(self, request: Frame) -> Tensor:
        layout, packed = self._layout(request)
        stage = self.stage
        stage.eval()
        with torch.no_grad():
            if request.beams is not None:
                return self._extend(request, packed)
            stage.forget()
            if request.positions is None:
                return layout.pack(stage(layout.unpack(packed), layout))
            if not stage.family.decoder:
                raise WireError("texts to write, but the trunk is an encoder's")
            if request.positions.any() or layout.side != "left":
                raise WireError("prompts start at position 0 and are padded on the left")
            self._check_cache(len(layout.lengths), laid_out(layout.width))
            return layout.pack(stage.prefill(layout.unpack(packed), layout))

    def _extend(self, request: Frame, packed: Tensor) -> Tensor:
        """Run one more position of each row over what the session remembers."""
        cache, beams = self.stage.cache, request.beams
        if cache is None or beams is None:
            raise WireError("no prompt is remembered: send it first")
        if len(beams) != len(packed):
            raise WireError(f"{len(packed)} positions for {len(beams)} rows; send one each")
        if int(beams.max()) >= len(cache.lengths):
            raise WireError(f"row {beams.max()} of {len(cache.lengths)} remembered ones")
        if request.positions is None or (request.positions != cache.lengths[beams]).any():
            raise WireError("the positions do not follow those that are remembered")
        if int(request.positions.max()) >= self.stage.context:
            raise WireError(f"the text passes the base's {self.stage.context} positions")
        self._check_cache(len(beams), laid_out(cache.columns + 1, cache.room))
        return self.stage.extend(packed[:, None], beams)[:, 0]

    def _check_cache(self, rows: int, room: int) -> None:
        size = rows * room * self.stage.cache_bytes
        if size > self._settings.max_cache_bytes:
            raise WireError(
                f"{rows} rows with room for {room} positions to remember take {size >> 20} MiB, "
                f"the limit is {self._settings.max_cache_bytes >> 20} (split.max_cache_mib); "
                "write fewer texts at a time"
            )

    def _train(self, request: Frame) -> Tensor:
        if (request.step, request.micro) != (self.step, self.expected):
            raise WireError(
                f"step {request.step}.{request.micro} came, {self.step}.{self.expected} was next"
            )
        if request.micro >= self._settings.micro_batches:
            raise WireError(f"more than {self._settings.micro_batches} micro-batches in a step")
        if request.positions is not None or request.beams is not None:
            raise WireError("a training frame reads whole texts")
        layout, packed = self._layout(request)
        self.stage.forget()
        self.stage.train()
        self.stage.key.step, self.stage.key.micro = request.step, request.micro
        entry = packed.requires_grad_()
        with torch.enable_grad():
            exit_ = layout.pack(self.stage(layout.unpack(entry), layout))
        self.pending[request.micro] = (entry, exit_, layout)
        self.expected += 1
        self.positions += len(packed)
        return exit_.detach()

    def _backward(self, request: Frame) -> Tensor:
        held = self.pending.pop(request.micro, None) if request.step == self.step else None
        if held is None:
            raise WireError(f"a gradient of step {request.step}.{request.micro}, which is not open")
        entry, exit_, _ = held
        if request.tensor is None or request.tensor.shape != exit_.shape:
            raise WireError(f"a gradient that does not fit an output of {tuple(exit_.shape)}")
        self.stage.key.micro = request.micro
        torch.autograd.backward(exit_, request.tensor.to(exit_.device))
        if entry.grad is None:
            raise WireError("the trunk gave no gradient")
        return entry.grad

    def _step(self, request: Frame) -> Frame:
        if request.step != self.step or self.pending or self.expected == 0:
            raise WireError(f"step {request.step} can't end now: gradients are missing")
        self.optimiser.pull()
        own = self.optimiser.squared_norm()
        self.optimiser.step(own + (request.scalar or 0.0))
        self.step, self.expected = self.step + 1, 0
        return Frame(FrameKind.NORM, request.client, request.round, request.step, scalar=own)
