"""How frames get from a client to its trunk: an interface, and its twin inside one process."""

from __future__ import annotations

from typing import Protocol


class Transport(Protocol):
    """Carries one frame to the trunk server and brings the answer back."""

    def exchange(self, frame: bytes) -> bytes:
        """Send one frame, wait for the reply; an answer that never comes raises WireError."""
        ...


class PipelinedTransport(Transport, Protocol):
    """Carries several frames at a time; answers come in the order of the frames."""

    def send(self, frame: bytes) -> int:
        """Send one frame and return a ticket for its answer."""
        ...

    def receive(self, ticket: int) -> bytes:
        """Wait for an answer, once; one that never comes raises WireError."""
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
        self._sent = 0
        self._answers: dict[int, bytes] = {}

    def exchange(self, frame: bytes) -> bytes:
        """Return the server's answer."""
        return self._server.handle(frame)

    def send(self, frame: bytes) -> int:
        """Let the server answer at once, and keep the answer until it is asked for."""
        self._sent += 1
        self._answers[self._sent] = self._server.handle(frame)
        return self._sent

    def receive(self, ticket: int) -> bytes:
        """Return the answer of a frame that was sent."""
        return self._answers.pop(ticket)
