"""How frames get from a client to its trunk: an interface, and its twin inside one process."""

from __future__ import annotations

from typing import Protocol


class Transport(Protocol):
    """Carries one frame to the trunk server and brings the answer back."""

    def exchange(self, frame: bytes) -> bytes:
        """Send one frame, wait for the reply; an answer that never comes raises WireError."""
        ...


class FrameHandler(Protocol):
    """What answers frames: the trunk server."""

    def handle(self, frame: bytes) -> bytes:
        """Answer one frame with one frame, of kind ERROR where it is refused."""
        ...


class InProcessTransport:
    """Hands the bytes of each frame straight to a server in this process.

    The same bytes as on a network, so a simulation has a deployment's precision and byte counts.
    """

    def __init__(self, server: FrameHandler) -> None:
        self._server = server

    def exchange(self, frame: bytes) -> bytes:
        """Return the server's answer."""
        return self._server.handle(frame)
