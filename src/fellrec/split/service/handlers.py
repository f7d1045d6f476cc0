"""The trunk's methods as gRPC sees them: raw bytes in and out, who may call what, status codes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from fellrec.errors import FellrecError, WireError
from fellrec.split.service import messages
from fellrec.split.service.admission import BusyError, MissingError
from fellrec.split.service.messages import (
    MAX_GREETING_BYTES,
    SERVICE,
    Greeting,
    Welcome,
    read_message,
    write_message,
)
from fellrec.split.service.packing import pack_call, unpack_call
from fellrec.split.service.registry import Registry


def common_name(context: Any) -> str:
    """Return the common name of the caller's certificate, "" where it has none or several."""
    names = context.auth_context().get("x509_common_name", [])
    return names[0].decode(errors="replace") if len(names) == 1 else ""


class Steps:
    """The clients' stream. `expire` hangs up on those who connect and say nothing."""

    def __init__(self, registry: Registry, greeting_seconds: float) -> None:
        self._registry = registry
        self._patience = greeting_seconds
        self._strangers: dict[object, tuple[float, Callable[[], object]]] = {}
        self._lock = threading.Lock()

    def expire(self) -> None:
        """Hang up on connections that did not greet in time."""
        with self._lock:
            late = [
                hang_up
                for since, hang_up in self._strangers.values()
                if time.monotonic() - since > self._patience
            ]
        for hang_up in late:
            hang_up()

    def __call__(self, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        """Serve one connection: a greeting, then frames."""
        first = self._greeting(requests, context)
        if first is None:
            return
        try:
            greeting = read_message(Greeting, first, MAX_GREETING_BYTES)
            seat = self._registry.join(greeting, common_name(context))
        except BusyError as error:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
        except FellrecError as error:
            yield write_message(Welcome(ok=False, reason=str(error)))
            return
        yield write_message(seat.attach(context.cancel))
        for message in requests:
            reply, more = seat.answer(message)
            yield reply
            if not more:
                return

    def _greeting(self, requests: Iterator[bytes], context: Any) -> bytes | None:
        with self._lock:
            self._strangers[context] = (time.monotonic(), context.cancel)
        try:
            return next(requests, None)
        finally:
            with self._lock:
                del self._strangers[context]


class Control:
    """The coordinator's methods."""

    def __init__(self, registry: Registry, coordinator: str) -> None:
        self._registry = registry
        self._coordinator = coordinator

    def handlers(self) -> dict[str, Any]:
        """Return a handler for each method."""
        return {
            "Begin": self._method(messages.Begin, self._begin),
            "Prepare": self._method(messages.Prepare, self._prepare),
            "Collect": self._method(messages.Collect, self._collect),
            "Install": self._method(messages.Install, self._install),
            "Commit": self._method(messages.Commit, self._commit),
            "Drop": self._method(messages.Drop, self._drop),
            "Status": self._method(messages.Status, self._status),
        }

    def _method(self, kind: type[messages.M], act: Callable[[messages.M, bytes], bytes]) -> Any:
        def handle(request: bytes, context: Any) -> bytes:
            name = common_name(context)
            if name != self._coordinator:
                context.abort(
                    grpc.StatusCode.PERMISSION_DENIED,
                    f"{kind.__name__} is for the coordinator: its certificate is named "
                    f"{self._coordinator!r}, this one {name!r}",
                )
            try:
                order, body = unpack_call(kind, request)
            except WireError as error:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            try:
                return act(order, body)
            except BusyError as error:
                context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
            except MissingError as error:
                context.abort(grpc.StatusCode.NOT_FOUND, str(error))
            except FellrecError as error:
                context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
            raise AssertionError("abort raises")

        return grpc.unary_unary_rpc_method_handler(handle)

    def _begin(self, order: messages.Begin, _: bytes) -> bytes:
        self._registry.begin(order)
        return pack_call(messages.Done())

    def _prepare(self, order: messages.Prepare, body: bytes) -> bytes:
        self._registry.prepare(order, body)
        return pack_call(messages.Done())

    def _collect(self, order: messages.Collect, _: bytes) -> bytes:
        return pack_call(*self._registry.collect(order))

    def _install(self, order: messages.Install, body: bytes) -> bytes:
        self._registry.install(order, body)
        return pack_call(messages.Done())

    def _commit(self, order: messages.Commit, _: bytes) -> bytes:
        self._registry.commit(order)
        return pack_call(messages.Done())

    def _drop(self, order: messages.Drop, _: bytes) -> bytes:
        self._registry.drop(order)
        return pack_call(messages.Done())

    def _status(self, _: messages.Status, __: bytes) -> bytes:
        return pack_call(self._registry.status())


def service(steps: Steps, control: Control) -> Any:
    """Return all methods as one generic handler."""
    stream = grpc.stream_stream_rpc_method_handler(steps)
    return grpc.method_handlers_generic_handler(SERVICE, {"Steps": stream, **control.handlers()})
