"""What Prometheus is told about a trunk: work, bytes, waiting, and nothing of any client."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from fellrec.split.wire import Frame, FrameKind

_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


def stage_of(request: Frame) -> str:
    """Name what a request asks for: forward, backward, step or serve."""
    match request.kind:
        case FrameKind.FORWARD:
            return "forward" if request.training else "serve"
        case FrameKind.GRADIENT:
            return "backward"
        case _:
            return "step"


class Metrics:
    """Counters of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._steps = Counter(
            "fellrec_trunk_steps", "Optimiser steps taken.", registry=self.registry
        )
        self._frames = Counter(
            "fellrec_trunk_frames",
            "Frames computed or refused, each once.",
            ("direction", "kind"),
            registry=self.registry,
        )
        self._bytes = Counter(
            "fellrec_trunk_frame_bytes",
            "Bytes of these frames.",
            ("direction", "kind"),
            registry=self.registry,
        )
        self._resent = Counter(
            "fellrec_trunk_resent_frames",
            "Frames that came again and were answered from store.",
            registry=self.registry,
        )
        self._refused = Counter(
            "fellrec_trunk_ended_sessions",
            "Sessions that ended before they had finished.",
            registry=self.registry,
        )
        self._seconds = Histogram(
            "fellrec_trunk_seconds",
            "Time from a frame's arrival at a worker to its answer.",
            ("stage",),
            buckets=_SECONDS,
            registry=self.registry,
        )

    def watch(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Add a gauge that is asked whenever Prometheus comes."""
        Gauge(name, text, registry=self.registry).set_function(value)

    def answered(self, request: Frame, reply: Frame, up: int, down: int, seconds: float) -> None:
        """Count one frame and its answer."""
        for direction, frame, size in (("up", request, up), ("down", reply, down)):
            kind = frame.kind.name.lower()
            self._frames.labels(direction, kind).inc()
            self._bytes.labels(direction, kind).inc(size)
        self._seconds.labels(stage_of(request)).observe(seconds)
        if request.kind is FrameKind.NORM:
            self._steps.inc()

    def resent(self) -> None:
        """Count a frame that was answered from store."""
        self._resent.inc()

    def ended(self) -> None:
        """Count a session that ended before it had finished."""
        self._refused.inc()
