"""The server's side of the split: one shared frozen trunk, one small adapter per client.

A session belongs to one client and one round. It works on its own copy of the client's adapter and
optimiser over the shared base; what it learned becomes the client's when the coordinator takes
the session's state at its end. Between sessions nothing of a client is in memory.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from torch import Tensor

from fellrec.errors import WireError
from fellrec.models.adapters import adapter, take_turns, write
from fellrec.models.optimiser import Optimiser
from fellrec.models.stages import Stage
from fellrec.split.session import Session, SessionSettings
from fellrec.split.wire import decode_frame, encode_frame, error_frame

__all__ = ["Session", "SessionSettings", "TrunkServer"]


class TrunkServer:
    """Answers the frames of all clients of one trunk, from any number of threads.

    base: the trunk with its initial adapter attached; all sessions share its frozen tensors.
    """

    def __init__(self, base: Stage, settings: SessionSettings) -> None:
        self._base = base
        self._settings = settings
        self._sessions: dict[str, Session] = {}

    @property
    def base(self) -> Stage:
        """The shared trunk."""
        return self._base

    @property
    def settings(self) -> SessionSettings:
        """What every session agrees on."""
        return self._settings

    def initial(self) -> dict[str, Tensor]:
        """The adapter that every client starts from."""
        return {name: p.detach().cpu() for name, p in adapter(self._base).items()}

    def session(
        self,
        client: str,
        round: int,
        factors: Mapping[str, Tensor] | None = None,
        moments: Mapping[str, Tensor] | None = None,
        anchors: Mapping[str, Tensor] | None = None,
    ) -> Session:
        """Make a working copy of a client's adapter (the initial one if None) and optimiser.

        anchors: what a proximal term pulls it towards; None: what it starts from. The session is
        the caller's: `handle` does not know it.
        """
        stage = self._base.replica()
        stage.key.seed, stage.key.client, stage.key.round = self._settings.seed, client, round
        if factors is not None:
            write(adapter(stage), factors)
        own = adapter(stage)
        if self._settings.alternate:
            take_turns(own, round)
        anchors = own if anchors is None else anchors
        optimiser = Optimiser(own, self._settings.optimiser, anchors)
        if moments is not None:
            optimiser.load(moments)
        return Session(stage, optimiser, round, self._settings)

    def open(
        self,
        client: str,
        round: int,
        factors: Mapping[str, Tensor] | None = None,
        moments: Mapping[str, Tensor] | None = None,
        anchors: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Begin a client's session; see `session`."""
        self._sessions[client] = self.session(client, round, factors, moments, anchors)

    def close(self, client: str) -> tuple[dict[str, Tensor], dict[str, Tensor], float]:
        """End a session: return the adapter, the optimiser's state and the seconds spent."""
        session = self._sessions.pop(client)
        with session.lock:
            return *session.result(), session.seconds

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
            with session.lock:
                reply, generator = session.answer(request)
                encoded = encode_frame(reply, generator)
                session.seconds += time.perf_counter() - start
        except WireError as error:
            self._sessions.pop(client, None)
            return encode_frame(error_frame(client, str(error)))
        return encoded
