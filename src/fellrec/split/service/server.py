"""The trunk as a process: a gRPC server over mutual TLS, its health, its metrics, its end."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from types import FrameType
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from prometheus_client import start_http_server

from fellrec.errors import ConfigError
from fellrec.files import alone_in
from fellrec.split.service.handlers import Control, Steps, service
from fellrec.split.service.messages import SERVICE
from fellrec.split.service.metrics import Metrics
from fellrec.split.service.packing import SLACK_BYTES
from fellrec.split.service.recorder import Note, Recorder, unrecorded
from fellrec.split.service.registry import Registry
from fellrec.split.service.settings import ServiceSettings, host_and_port
from fellrec.split.trunk import TrunkServer

_SPARE_THREADS = 8  # for the coordinator, health checks, and connections that are refused
_LAST_SECONDS = 2.0  # for answers that are on their way when the server stops


class TrunkService:
    """One running trunk.

    port, metrics_port: where it listens, 0 without metrics.

    Raises ConfigError for TLS files that can't be used or an address that can't be had, RunError
    when another process works in the folder or nothing can be recorded.
    """

    def __init__(
        self,
        trunk: TrunkServer,
        settings: ServiceSettings,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self.metrics = Metrics()
        self.registry = Registry(trunk, settings, self.metrics, clock)
        self._health = health.HealthServicer()
        self._stopped = threading.Event()
        self._ending = threading.Lock()
        self._deadline = math.inf
        self._closing = ExitStack()
        with ExitStack() as stack:
            settings.folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(
                alone_in(settings.folder, "another trunk works in this folder; give each its own")
            )
            self._watch()
            record: Note = unrecorded
            if settings.record is not None:
                record = stack.enter_context(Recorder(settings.record, "trunk"))
            self._steps = Steps(self.registry, settings.limits.greeting_seconds, record)
            self._server = self._build(trunk.settings.max_bytes, record)
            self.port = self._listen()
            self.metrics_port = self._expose(stack)
            self._server.start()
            stack.callback(self._server.stop, None)
            self._closing = stack.pop_all()
        self._set_health(health_pb2.HealthCheckResponse.SERVING)
        self._sweeper = threading.Thread(target=self._sweep, daemon=True, name="trunk-sweeper")
        self._sweeper.start()

    def stop(self, grace: float | None = None) -> None:
        """Take no new sessions, let running rounds go on for `grace` seconds, and end.

        grace: None takes the settings'. A round is over when the coordinator commits or drops it;
        until then a client that trained may still come to be scored.
        """
        self.registry.draining = True
        self._health.enter_graceful_shutdown()
        wanted = self._settings.limits.grace_seconds if grace is None else grace
        self._deadline = min(self._deadline, time.monotonic() + wanted)
        with self._ending:  # who calls again, with less patience, hastens the first
            if self._stopped.is_set():
                return
            while self.registry.busy() and time.monotonic() < self._deadline:
                time.sleep(0.05)
            self._stopped.set()
            self.registry.close()
            self._server.stop(_LAST_SECONDS).wait()
            self._closing.close()
            self._sweeper.join()

    def _build(self, max_frame: int, record: Note) -> Any:
        limits = self._settings.limits
        # A stream takes a thread for its whole life; there are more threads than sessions, so that
        # a client too many is told so.
        threads = 2 * limits.sessions + _SPARE_THREADS
        server = grpc.server(
            ThreadPoolExecutor(threads, thread_name_prefix="trunk"),
            maximum_concurrent_rpcs=threads,
            options=[
                # Up to twice the limit a frame is refused by name; beyond that by gRPC.
                ("grpc.max_receive_message_length", 2 * max_frame + SLACK_BYTES),
                ("grpc.max_send_message_length", 2 * max_frame + SLACK_BYTES),
                ("grpc.so_reuseport", 0),  # else a second server takes half of the connections
                ("grpc.keepalive_time_ms", 30_000),  # notices a client whose machine is gone
                ("grpc.keepalive_timeout_ms", 20_000),
                ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
                ("grpc.http2.max_ping_strikes", 0),
                ("grpc.keepalive_permit_without_calls", 1),
            ],
        )
        control = Control(self.registry, self._settings.coordinator, record)
        server.add_generic_rpc_handlers((service(self._steps, control),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        return server

    def _listen(self) -> int:
        host, port = host_and_port(self._settings.listen, "listen")
        key, certificate, authority = self._settings.tls.read()
        credentials = grpc.ssl_server_credentials(
            [(key, certificate)], authority, require_client_auth=True
        )
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            bound: int = self._server.add_secure_port(address, credentials)
        except RuntimeError:
            bound = 0
        if not bound:
            raise ConfigError(f"can't listen on {address}: it is in use, or not of this machine")
        return bound

    def _expose(self, stack: ExitStack) -> int:
        if not self._settings.metrics:
            return 0
        host, port = host_and_port(self._settings.metrics, "metrics")
        try:
            server, thread = start_http_server(port, host, self.metrics.registry)
        except OSError as error:
            raise ConfigError(f"can't serve metrics on {host}:{port}: {error.strerror}") from None
        stack.callback(thread.join)
        stack.callback(server.server_close)
        stack.callback(server.shutdown)
        return int(server.server_port)

    def _watch(self) -> None:
        registry, watch = self.registry, self.metrics.watch
        watch("fellrec_trunk_sessions", "Open sessions.", registry.open_sessions)
        watch(
            "fellrec_trunk_queue", "Frames waiting for memory or a worker.",
            lambda: registry.budget.queue,
        )  # fmt: skip
        watch(
            "fellrec_trunk_held_bytes", "Activations and caches held.", lambda: registry.budget.held
        )
        watch("fellrec_trunk_draining", "1 once it is about to stop.", lambda: registry.draining)

    def _set_health(self, status: Any) -> None:
        for name in ("", SERVICE):
            self._health.set(name, status)

    def _sweep(self) -> None:
        limits = self._settings.limits
        pause = min(1.0, limits.idle_seconds / 4, limits.greeting_seconds / 4)
        while not self._stopped.wait(pause):
            self._steps.expire()
            self.registry.expire()


def serve(
    trunk: TrunkServer,
    settings: ServiceSettings,
    ready: Callable[[TrunkService], None] = lambda running: None,
) -> None:
    """Run a trunk until SIGTERM or SIGINT, then let running rounds end. For the main thread.

    ready: called once it listens. Raises as `TrunkService` does.
    """
    asked = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        asked.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        service = TrunkService(trunk, settings)
        try:
            ready(service)
            asked.wait()
            asked.clear()
            stopping = threading.Thread(target=service.stop)
            stopping.start()
            while stopping.is_alive():
                if asked.wait(0.1):  # asked twice: the rounds are not waited for
                    service.stop(0.0)
            stopping.join()
        finally:
            service.stop(0.0)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
