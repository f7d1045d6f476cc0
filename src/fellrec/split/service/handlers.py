"""The trunk's methods as gRPC sees them: raw bytes in and out, who may call what, status codes."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import grpc

from fellrec.errors import FellrecError, WireError
from fellrec.split.service import messages
from fellrec.split.service.admission import BusyError, MissingError
from fellrec.split.service.messages import (
    MAX_GREETING_BYTES,
    SERVICE,
    Greeting,
    Message,
    Welcome,
    read_message,
    write_message,
)
from fellrec.split.service.packing import pack_call, unpack_call
from fellrec.split.service.recorder import Note, unrecorded
from fellrec.split.service.registry import Registry


def common_name(context: Any) -> str:
    """Return the common name of the caller's certificate, "" where it has none or several."""
    names = context.auth_context().get("x509_common_name", [])
    return names[0].decode(errors="replace") if len(names) == 1 else ""


def refuse(context: Any, record: Note, code: grpc.StatusCode, line: str) -> NoReturn:
    """End a call with a status; a recording has it as JSON."""
    told = {"code": code.name, "details": line}
    text = json.dumps(told, ensure_ascii=False, separators=(",", ":"))
    record("sent", common_name(context), "Refusal", text.encode(errors="replace"))
    context.abort(code, line)
    raise AssertionError("abort raises")


class Steps:
    """The clients' stream. `expire` hangs up on those who connect and say nothing.

    record: takes note of every message.
    """

    def __init__(
        self, registry: Registry, greeting_seconds: float, record: Note = unrecorded
    ) -> None:
        self._registry = registry
        self._record = record
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
        first, name = self._greeting(requests, context), common_name(context)
        if first is None:
            return
        self._record("received", name, "Greeting", first)
        try:
            greeting = read_message(Greeting, first, MAX_GREETING_BYTES)
            seat = self._registry.join(greeting, name)
        except BusyError as error:
            refuse(context, self._record, grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
        except FellrecError as error:
            yield self._sent(name, "Welcome", write_message(Welcome(ok=False, reason=str(error))))
            return
        yield self._sent(name, "Welcome", write_message(seat.attach(context.cancel)))
        for message in requests:
            self._record("received", name, "Step", message)
            reply, more = seat.answer(message)
            yield self._sent(name, "Reply", reply)
            if not more:
                return

    def _sent(self, name: str, kind: str, message: bytes) -> bytes:
        self._record("sent", name, kind, message)
        return message

    def _greeting(self, requests: Iterator[bytes], context: Any) -> bytes | None:
        with self._lock:
            self._strangers[context] = (time.monotonic(), context.cancel)
        try:
            return next(requests, None)
        finally:
            with self._lock:
                del self._strangers[context]


_ANSWERS: dict[type[Message], type[Message]] = {
    messages.Collect: messages.Trained,
    messages.Status: messages.Standing,
}  # what is answered with something else than `Done`


class Control:
    """The coordinator's methods. record: takes note of every call and its answer."""

    def __init__(self, registry: Registry, coordinator: str, record: Note = unrecorded) -> None:
        self._registry = registry
        self._coordinator = coordinator
        self._record = record

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
            name, record = common_name(context), self._record
            record("received", name, kind.__name__, without_key(kind, request))
            if name != self._coordinator:
                refuse(
                    context,
                    record,
                    grpc.StatusCode.PERMISSION_DENIED,
                    f"{kind.__name__} is for the coordinator: its certificate is named "
                    f"{self._coordinator!r}, this one {name!r}",
                )
            try:
                order, body = unpack_call(kind, request)
            except WireError as error:
                refuse(context, record, grpc.StatusCode.INVALID_ARGUMENT, str(error))
            try:
                answer = act(order, body)
            except BusyError as error:
                refuse(context, record, grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
            except MissingError as error:
                refuse(context, record, grpc.StatusCode.NOT_FOUND, str(error))
            except FellrecError as error:
                refuse(context, record, grpc.StatusCode.FAILED_PRECONDITION, str(error))
            record("sent", name, _ANSWERS.get(kind, messages.Done).__name__, answer)
            return answer

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


def without_key(kind: type[Message], request: bytes) -> bytes:
    """Return what is recorded of a call: all of it, but zeros for the key of a `Begin`.

    Who has the key can make tokens; it is the coordinator's and the trunk's secret. Of a `Begin`
    whose key is not found where it should be, nothing is recorded.
    """
    if kind is not messages.Begin:
        return request
    try:
        key = unpack_call(messages.Begin, request)[0].key.encode()
    except WireError:
        return b""
    blank = b"0" * len(key)
    return request.replace(key, blank) if key in request else b""


def service(steps: Steps, control: Control) -> Any:
    """Return all methods as one generic handler."""
    stream = grpc.stream_stream_rpc_method_handler(steps)
    return grpc.method_handlers_generic_handler(SERVICE, {"Steps": stream, **control.handlers()})
