"""A client's place at the trunk: one session, the order of its frames, answers it may ask again.

A seat outlives its connections. Every frame has a number and a digest; the number after the last
one is computed, an unacknowledged number with the same digest gets the stored answer, and whatever
else comes (a gap, a replay, a damaged frame) ends the seat and harms no other.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from fellrec.errors import FellrecError, WireError
from fellrec.split.service.budget import Budget
from fellrec.split.service.messages import Mode, SessionState, State, Trained, Welcome
from fellrec.split.service.metrics import Metrics
from fellrec.split.service.packing import frame_digest, pack_reply, unpack_step
from fellrec.split.session import Session
from fellrec.split.wire import (
    Frame,
    FrameKind,
    decode_frame,
    encode_frame,
    error_frame,
    frame_parts,
)


@dataclass(frozen=True)
class Workshop:
    """What all seats share. max_bytes: of a frame. window: frames that may wait for an answer."""

    budget: Budget
    metrics: Metrics
    max_bytes: int
    window: int
    reply_bytes: int


@dataclass(frozen=True)
class _Answer:
    digest: bytes
    reply: bytes


class Seat:
    """One client's session. All methods may be called from any thread.

    make: makes the working copy when the client comes. keep: stores what a training session
    learned, when it has finished.
    """

    def __init__(
        self,
        client: str,
        round: int,
        mode: Mode,
        workshop: Workshop,
        make: Callable[[], Session],
        keep: Callable[[Session, Trained], None],
    ) -> None:
        self.name = secrets.token_hex(16)
        self.client = client
        self.round = round
        self.mode: Mode = mode
        self.state: State = "awaited"
        self.reason = ""
        self.answered = 0
        self.steps = 0
        self._shop = workshop
        self._make = make
        self._keep = keep
        self._session: Session | None = None
        self._stored: dict[int, _Answer] = {}
        self._bytes: dict[str, int] = {}
        self._lock = threading.RLock()
        self._touched = time.monotonic()
        self._hang_up: Callable[[], object] = lambda: None

    def open(self) -> None:
        """Make the working copy, unless it was made already."""
        with self._lock:
            if self.state == "awaited":
                self._session = self._make()
                self.state = "open"
            self._touched = time.monotonic()

    def attach(self, hang_up: Callable[[], object]) -> Welcome:
        """Take over the seat for a new connection; the one before is hung up."""
        before, self._hang_up = self._hang_up, hang_up
        before()
        with self._lock:  # after this the connection before has had its last answer
            self._touched = time.monotonic()
            return Welcome(
                ok=True,
                session=self.name,
                last=self.answered,
                window=self._shop.window,
                round=self.round,
            )

    def answer(self, message: bytes) -> tuple[bytes, bool]:
        """Answer one message of the stream; also return whether more may follow."""
        with self._lock:
            number = 0
            try:
                number, held, digest, frame = unpack_step(message)
                stored = self._in_order(number, held, digest, frame)
                if stored is None:
                    stored = self._finish() if not frame else self._compute(frame)
                    self._store(number, digest, stored)
                    self.answered = number
                else:
                    self._shop.metrics.resent()
            except FellrecError as error:
                self.end(str(error))
                return pack_reply(number, encode_frame(error_frame(self.client, str(error)))), False
            except Exception as error:
                self.end(f"the trunk failed ({type(error).__name__}); see its log")
                raise
            finally:
                self._touched = time.monotonic()
            return pack_reply(number, stored), self.state == "open"

    def finish(self) -> None:
        """Store what the session learned, if it has not been yet; WireError amid a step."""
        with self._lock:
            if self.state == "open":
                self._finish()

    def end(self, reason: str) -> None:
        """End the seat with all that it learned, for this reason."""
        if self.state in ("ended", "finished"):
            return
        self.reason = self.reason or reason
        self._shop.budget.wake()
        with self._lock:
            if self.state == "finished":
                self.reason = ""
                return
            if self.state == "open":
                self._shop.metrics.ended()
            self.state = "ended"
            self._touched = time.monotonic()
            self._free()

    def standing(self) -> SessionState:
        """Tell how the seat stands."""
        return SessionState(
            client=self.client,
            round=self.round,
            mode=self.mode,
            state=self.state,
            steps=self.steps,
            reason=self.reason,
        )

    def hang_up(self) -> None:
        """Cut the connection; the client learns the reason when it comes back."""
        self._hang_up()

    def idle(self) -> float:
        """Seconds since the last frame; 0 while one is being answered."""
        if not self._lock.acquire(blocking=False):
            return 0.0
        try:
            return time.monotonic() - self._touched
        finally:
            self._lock.release()

    def _in_order(self, number: int, held: int, digest: bytes, frame: bytes) -> bytes | None:
        """Check a message's numbers; return the stored answer of one that came before."""
        if self.reason:
            raise WireError(self.reason)
        if frame_digest(frame) != digest:
            raise WireError(f"frame {number} does not match its digest: it was damaged on the way")
        if held >= number or held > self.answered:
            raise WireError(f"frame {number} acknowledges answer {held}, which was not given")
        for old in [old for old in self._stored if old <= held]:
            del self._stored[old]
        if number <= self.answered:
            stored = self._stored.get(number)
            if stored is None or stored.digest != digest:
                raise WireError(f"frame {number} came again and is not the one answered: a replay")
            return stored.reply
        if number != self.answered + 1:
            raise WireError(
                f"frame {number} came, {self.answered + 1} was next: frames were lost or reordered"
            )
        if number - held > self._shop.window:
            raise WireError(f"more than {self._shop.window} frames without an answer held")
        if self.state != "open":
            raise WireError("the session has finished; begin another round first")
        return None

    def _store(self, number: int, digest: bytes, reply: bytes) -> None:
        self._stored[number] = _Answer(digest, reply)
        size = sum(len(answer.reply) for answer in self._stored.values())
        if size > self._shop.reply_bytes:
            raise WireError(
                f"{size >> 20} MiB of answers wait to be acknowledged, the limit is "
                f"{self._shop.reply_bytes >> 20}; send smaller micro-batches"
            )

    def _compute(self, data: bytes) -> bytes:
        session, shop = self._session, self._shop
        if session is None:
            raise WireError("the session is over")
        request = decode_frame(data, max_bytes=shop.max_bytes)
        if request.client != self.client:
            raise WireError(f"a frame of client {request.client!r} in a session of {self.client!r}")
        if self.mode == "serve" and (request.training or request.kind is not FrameKind.FORWARD):
            raise WireError("this session is read-only: it takes forward frames without training")
        shop.budget.reserve(self, session.demand(request), lambda: self.reason)
        with shop.budget.worker():
            if self.reason:
                raise WireError(self.reason)
            start = time.perf_counter()
            with session.lock:
                reply, generator = session.answer(request)
                encoded = encode_frame(reply, generator)
            seconds = time.perf_counter() - start
        session.seconds += seconds
        self.steps = session.step
        shop.budget.reserve(self, session.held_bytes(), lambda: self.reason)
        self._count("up", request)
        self._count("down", reply)
        shop.metrics.answered(request, reply, len(data), len(encoded), seconds)
        return encoded

    def _count(self, direction: str, frame: Frame) -> None:
        for kind, size in frame_parts(frame).items():
            key = f"{direction}/{kind}"
            self._bytes[key] = self._bytes.get(key, 0) + size

    def _finish(self) -> bytes:
        session = self._session
        if session is not None and self.mode == "train":
            if not session.between_steps:
                raise WireError(f"the session ends amid step {session.step}")
            counted = Trained(
                steps=session.step,
                positions=session.positions,
                seconds=session.seconds,
                bytes=self._bytes,
            )
            self._keep(session, counted)
        self.state = "finished"
        self._free()
        return b""

    def _free(self) -> None:
        """Let go of the working copy; stored answers stay with a seat that has finished."""
        self._session = None
        self._shop.budget.release(self)
        if self.state == "ended":
            self._stored.clear()
