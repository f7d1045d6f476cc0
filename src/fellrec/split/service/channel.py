"""Channels to a trunk: mutual TLS, our own backing off, sizes, and failures in one line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import grpc

from fellrec.errors import WireError
from fellrec.split.service.diagnosis import diagnose
from fellrec.split.service.packing import SLACK_BYTES
from fellrec.split.service.settings import TlsFiles, host_and_port


@dataclass(frozen=True)
class Link:
    """A way to one trunk. address: "HOST:PORT". connect_seconds: to be connected and greeted."""

    address: str
    tls: TlsFiles
    max_bytes: int = 256 << 20
    connect_seconds: float = 20.0


class UnreachableError(WireError):
    """The trunk can't be reached now; it may be later."""


def connect(link: Link) -> Any:
    """Open a channel and wait until it stands.

    Raises ConfigError for files or an address that can't be used, UnreachableError where trying
    again may help, WireError where it can't; the line says what to mend.
    """
    host, port = host_and_port(link.address, "trunk")
    key, certificate, authority = link.tls.read()
    size = link.max_bytes + SLACK_BYTES
    channel = grpc.secure_channel(
        f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
        grpc.ssl_channel_credentials(authority, key, certificate),
        options=[
            ("grpc.max_receive_message_length", size),
            ("grpc.max_send_message_length", size),
            ("grpc.keepalive_time_ms", 20_000),  # notices a trunk whose machine is gone
            ("grpc.keepalive_timeout_ms", 20_000),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.use_local_subchannel_pool", 1),  # a new try is a new connection
            ("grpc.enable_retries", 0),
            ("grpc.enable_http_proxy", 0),
        ],
    )
    broken = grpc.ChannelConnectivity.TRANSIENT_FAILURE
    states: list[Any] = []
    ready = grpc.channel_ready_future(channel)

    def watch(state: Any) -> None:
        states.append(state)
        if state is broken:
            ready.cancel()

    channel.subscribe(watch)
    try:
        ready.result(timeout=link.connect_seconds)
        channel.unsubscribe(watch)
        return channel
    except (grpc.FutureTimeoutError, grpc.FutureCancelledError):
        channel.close()
    found = diagnose(link.address, link.tls, min(5.0, link.connect_seconds))
    if found is None:
        raise UnreachableError(f"the trunk at {link.address} can't be reached; try again")
    raise (WireError if found.lasting else UnreachableError)(found.line)


def explained(error: Any, address: str) -> WireError:
    """Turn a failed call into one line; UnreachableError where trying again may help."""
    code, details = error.code(), " ".join(str(error.details()).split())
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in details:
        return WireError(f"the trunk at {address} refused the size of a message: {details}")
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return WireError(f"what answers at {address} is no trunk of this version: {details}")
    final = (
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.FAILED_PRECONDITION,
    )
    return (WireError if code in final else UnreachableError)(f"the trunk at {address}: {details}")
