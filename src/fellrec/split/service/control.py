"""The coordinator's end: its orders to one trunk, each a call."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

import grpc
from torch import Tensor

import fellrec
from fellrec.split.service import messages
from fellrec.split.service.admission import MissingError
from fellrec.split.service.channel import Link, UnreachableError, connect, explained
from fellrec.split.service.messages import SERVICE, Kept, M, Message, Mode, Standing, Trained
from fellrec.split.service.packing import pack_call, unpack_call, unpack_tensors
from fellrec.split.service.tokens import Claims, issue, new_key

_FIRST_PAUSE = 0.1  # seconds; each doubles the one before


class TrunkControl:
    """Gives a trunk its orders, and clients their tokens.

    like: names and shapes of the trunk's adapter. retry_seconds: how long a trunk that can't be
    reached is tried again; every order may be repeated. Every method raises WireError with the
    trunk's own line when it refuses, UnreachableError (a WireError too) when it can't be reached.
    """

    def __init__(
        self,
        link: Link,
        like: Mapping[str, Tensor],
        *,
        call_seconds: float = 120.0,
        retry_seconds: float = 5.0,
    ) -> None:
        self._link = link
        self._like = like
        self._seconds = call_seconds
        self._retry_seconds = retry_seconds
        self._key = new_key()
        self._run = ""
        self._channel: Any = None

    def begin(self, run: str, *, manifest: str, settings: str, key: bytes | None = None) -> None:
        """Take over; rounds that were open end. key: for tokens, so that trunks may share one."""
        self._key = key or self._key
        self._run = run
        order = messages.Begin(
            run=run,
            settings=settings,
            manifest=manifest,
            version=fellrec.__version__,
            key=self._key.hex(),
        )
        self._call("Begin", order, messages.Done)

    def prepare(
        self,
        client: str,
        round: int,
        label: int,
        mode: Mode = "train",
        *,
        best: bool = False,
        adapter: Mapping[str, Tensor] | None = None,
    ) -> bool:
        """Let a client come; False where the trunk has no such adapter: call again with it."""
        order = messages.Prepare(client=client, round=round, label=label, mode=mode, best=best)
        try:
            self._call("Prepare", order, messages.Done, adapter)
        except MissingError:
            return False
        return True

    def token(self, client: str, round: int, mode: Mode, seconds: float) -> str:
        """Make a token that is good for so many seconds."""
        expires = int(time.time() + seconds)
        claims = Claims(client=client, run=self._run, round=round, mode=mode, expires=expires)
        return issue(self._key, claims)

    def collect(self, client: str, round: int) -> tuple[Trained, dict[str, Tensor]]:
        """Return what a client trained: counts, and the adapter."""
        order = messages.Collect(client=client, round=round)
        counted, body = self._call("Collect", order, Trained)
        return counted, unpack_tensors(body, self._like)

    def install(
        self, client: str, label: int, adapter: Mapping[str, Tensor], reset: Iterable[str] = ()
    ) -> None:
        """Give the trunk a client's mixed adapter; moments of the tensors in `reset` start anew."""
        order = messages.Install(client=client, label=label, reset=tuple(reset))
        self._call("Install", order, messages.Done, adapter)

    def commit(self, labels: Mapping[str, Kept]) -> None:
        """Make installed adapters the clients' own. May be repeated."""
        self._call("Commit", messages.Commit(labels=dict(labels)), messages.Done)

    def drop(self, client: str) -> None:
        """Let the trunk forget a client's round."""
        self._call("Drop", messages.Drop(client=client), messages.Done)

    def status(self) -> Standing:
        """Ask how the trunk stands."""
        return self._call("Status", messages.Status(), Standing)[0]

    def close(self) -> None:
        """Hang up."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def _call(
        self,
        method: str,
        order: Message,
        answer: type[M],
        tensors: Mapping[str, Tensor] | None = None,
    ) -> tuple[M, bytes]:
        until, pause = time.monotonic() + self._retry_seconds, _FIRST_PAUSE
        while True:
            try:
                return unpack_call(answer, self._once(method, pack_call(order, tensors)))
            except UnreachableError:
                if time.monotonic() + pause > until:
                    raise
            time.sleep(pause)
            pause *= 2

    def _once(self, method: str, order: bytes) -> bytes:
        if self._channel is None:
            self._channel = connect(self._link)
        call = self._channel.unary_unary(f"/{SERVICE}/{method}")
        try:
            data: bytes = call(order, timeout=self._seconds)
        except grpc.RpcError as error:
            self.close()  # the next call begins with a connection of its own
            if error.code() is grpc.StatusCode.NOT_FOUND:
                raise MissingError(str(error.details())) from None
            raise explained(error, self._link.address) from None
        return data
