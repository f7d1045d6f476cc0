"""The client's end of the trunk's stream: frames out, answers in, through cut connections.

A thread of its own keeps the connection. Frames wait in a queue until their answer is here, so a
new connection begins with its greeting and sends again whatever was not answered; the server
computes none of them twice.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

import grpc

import fellrec
from fellrec.errors import FellrecError, WireError
from fellrec.split.service.channel import Link, UnreachableError, connect, explained
from fellrec.split.service.messages import (
    PROTOCOL,
    SERVICE,
    Greeting,
    Welcome,
    read_message,
    write_message,
)
from fellrec.split.service.packing import frame_digest, pack_step, unpack_reply
from fellrec.split.wire import decode_frame

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0  # seconds between tries; each doubles the one before


class GrpcTransport:
    """Carries frames to a trunk (`split.transport.Transport`), several at a time if asked to.

    greeting: as `greet` makes it. retry_seconds: how long the trunk may be out of reach before it
    is given up; a connection that it accepts ends that time. reply_seconds: how long one answer
    may take, whatever becomes of connections meanwhile. One thread may send while another
    receives; a ticket is received once.
    """

    def __init__(
        self,
        link: Link,
        greeting: Greeting,
        *,
        retry_seconds: float = 60.0,
        reply_seconds: float = 600.0,
    ) -> None:
        self.reconnections = 0
        self._link = link
        self._greeting = greeting
        self._retry_seconds = retry_seconds
        self._reply_seconds = reply_seconds
        self._changed = threading.Condition()
        self._unanswered: dict[int, tuple[bytes, bytes]] = {}
        self._replies: dict[int, bytes] = {}
        self._sent = 0
        self._held = 0
        self._welcome: Welcome | None = None
        self._failure: FellrecError | None = None
        self._closed = False
        self._wanted = False
        self._connection = 0
        self._accepted = 0
        self._call: Any = None
        self._keeper = threading.Thread(target=self._keep, daemon=True, name="trunk-connection")
        self._keeper.start()

    def open(self) -> int:
        """Connect and greet, if that has not been done; return the round that frames have to name.

        Raises WireError with the trunk's own line when it refuses.
        """
        with self._changed:
            self._wanted = True
            self._changed.notify_all()
            self._wait(lambda: self._welcome is not None)
            return self._welcome.round if self._welcome is not None else 0

    def exchange(self, frame: bytes) -> bytes:
        """Send one frame and wait for its answer."""
        return self.receive(self.send(frame))

    def send(self, frame: bytes) -> int:
        """Send a frame and return a ticket for its answer.

        Waits while as many frames are on their way as the trunk allows: its micro-batches + 1.

        Raises WireError for a frame that is too large, a trunk that refused or was given up.
        """
        if len(frame) > self._link.max_bytes:
            raise WireError(
                f"a frame of {len(frame)} bytes, the limit is {self._link.max_bytes} "
                "(split.max_frame_mib); send smaller micro-batches"
            )
        self.open()
        digest = frame_digest(frame)
        with self._changed:
            self._wait(lambda: len(self._unanswered) < self._window())
            self._sent += 1
            self._unanswered[self._sent] = (digest, frame)
            self._changed.notify_all()
            return self._sent

    def receive(self, ticket: int) -> bytes:
        """Wait for the answer of a frame that was sent; WireError if it never comes."""
        with self._changed:
            if ticket not in self._unanswered and ticket not in self._replies:
                raise WireError(f"no answer is due for ticket {ticket}")
            self._wait(lambda: ticket in self._replies)
            return self._replies.pop(ticket)

    def finish(self) -> None:
        """Tell the trunk that the session is complete, wait until it is stored there, and close.

        Raises WireError with the trunk's reason when it could not end the session.
        """
        try:
            answer = self.exchange(b"")
        finally:
            self.close()
        if answer:
            refusal = decode_frame(answer, max_bytes=self._link.max_bytes)
            reason = refusal.message or f"it answered with {refusal.kind.name}"
            raise WireError(f"the trunk could not end the session: {reason}")

    def close(self) -> None:
        """Hang up. What was trained is kept by the trunk for a while, but is not complete."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            call = self._call
        if call is not None:
            call.cancel()
        if threading.current_thread() is not self._keeper:
            self._keeper.join()

    def _window(self) -> int:
        return self._welcome.window if self._welcome is not None else 0

    def _wait(self, done: Callable[[], bool]) -> None:
        """Wait with the lock held; an answer that is here is given even after a failure."""
        until = time.monotonic() + self._reply_seconds
        while not done():
            if self._failure is not None:
                raise self._failure
            if self._closed:
                raise WireError("the connection to the trunk was closed")
            left = until - time.monotonic()
            if left <= 0:
                raise WireError(
                    f"the trunk at {self._link.address} did not answer for "
                    f"{self._reply_seconds:.0f} s; it may be overloaded"
                )
            self._changed.wait(left)

    # --- the thread that keeps the connection ------------------------------------------------

    def _keep(self) -> None:
        """Connect whenever there is something to send, again and again within the budget.

        An outage begins with the first try, and anew when a connection that the trunk had accepted
        ends: for how long an answer was due says nothing of whether the trunk is out of reach.
        """
        # The longest pause leaves room for several tries, also after an outage that was long.
        longest = min(_LONGEST_PAUSE, self._retry_seconds / 4)
        pause, since = _FIRST_PAUSE, None
        while self._needed():
            since = time.monotonic() if since is None else since
            accepted, answered = self._accepted, self._held
            try:
                self._talk()
                lost = f"the trunk at {self._link.address} cut the connection"
            except UnreachableError as error:
                lost = str(error)
            except FellrecError as error:
                self._fail(error)
                return
            except Exception as error:  # a dead thread would let everybody wait for nothing
                reason = (str(error) or type(error).__name__).splitlines()[0]
                failure = WireError(
                    f"the connection to the trunk at {self._link.address} failed ({reason}); "
                    "mend that and come again"
                )
                failure.__cause__ = error
                self._fail(failure)
                return
            if self._held != answered:  # it moves on
                pause, since = _FIRST_PAUSE, None
                continue
            out = time.monotonic() - since
            if self._accepted != accepted:
                since = None
            elif out + pause > self._retry_seconds:
                self._fail(WireError(f"{lost}; given up after {out:.0f} s"))
                return
            with self._changed:
                self._changed.wait_for(lambda: self._closed, pause * random.uniform(0.8, 1.2))
            pause = min(2 * pause, longest)

    def _needed(self) -> bool:
        """Wait until a connection is wanted; False once it never will be."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or self._unanswered or (self._wanted and self._welcome is None)
            )
            return not self._closed

    def _fail(self, error: FellrecError) -> None:
        with self._changed:
            self._failure = error
            self._changed.notify_all()

    def _talk(self) -> None:
        """Keep one connection until it ends; raises as `connect` does."""
        channel = connect(self._link)
        try:
            stream = channel.stream_stream(f"/{SERVICE}/Steps")
            with self._changed:
                self._connection += 1
                call = self._call = stream(self._messages(self._connection))
                if self._closed:
                    call.cancel()
            patience = threading.Timer(self._link.connect_seconds, call.cancel)
            patience.start()
            try:
                first = next(call, None)
            finally:
                patience.cancel()
            if first is None:
                return
            self._accept(read_message(Welcome, first))
            for message in call:
                self._take(*unpack_reply(message))
        except grpc.RpcError as error:
            raise explained(error, self._link.address) from None
        finally:
            with self._changed:
                self._connection += 1  # ends the generator of this connection's messages
                self._call = None
                self._changed.notify_all()
            channel.close()

    def _accept(self, welcome: Welcome) -> None:
        if not welcome.ok:
            raise WireError(f"the trunk refused: {welcome.reason}")
        with self._changed:
            before = self._welcome
            if before is not None:
                if welcome.session != before.session or not (
                    self._held <= welcome.last <= self._sent
                ):
                    raise WireError("the trunk answers for another session than this one")
                self.reconnections += 1
            self._welcome = welcome
            self._accepted = self._connection
            self._changed.notify_all()

    def _take(self, number: int, frame: bytes) -> None:
        with self._changed:
            if number != self._held + 1 or number not in self._unanswered:
                raise WireError(f"the trunk answered frame {number}, {self._held + 1} was due")
            del self._unanswered[number]
            self._replies[number] = frame
            self._held = number
            self._changed.notify_all()

    def _messages(self, connection: int) -> Iterator[bytes]:
        """Yield what one connection sends: the greeting, once accepted all unanswered frames."""
        with self._changed:
            resume = self._welcome.session if self._welcome is not None else ""
        yield write_message(self._greeting.model_copy(update={"resume": resume}))
        sent = 0
        while (frame := self._next(connection, sent)) is not None:
            sent, message = frame
            yield message

    def _next(self, connection: int, sent: int) -> tuple[int, bytes] | None:
        """Wait for the frame after the last one sent on a connection; None once that ended."""

        def ready() -> bool:
            greeted = self._accepted == connection
            return greeted and self._sent > max(sent, self._held)

        with self._changed:
            self._changed.wait_for(lambda: self._connection != connection or ready())
            if self._connection != connection:
                return None
            number = max(sent, self._held) + 1
            digest, frame = self._unanswered[number]
            return number, pack_step(number, self._held, digest, frame)


def greet(
    *,
    manifest: str,
    settings: str,
    token: str = "",
    run: str = "",
    adapter: Literal["best", "last"] = "best",
) -> Greeting:
    """Make a client's greeting: with the coordinator's token, or to be served by a run's adapter.

    manifest, settings: digests of the base's weights, and of what both sides agreed on.
    """
    return Greeting(
        protocol=PROTOCOL,
        version=fellrec.__version__,
        token=token,
        manifest=manifest,
        settings=settings,
        run=run,
        adapter=adapter,
    )
