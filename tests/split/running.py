"""Certificates, a running trunk, and a relay that can be cut: for tests over real sockets."""

from __future__ import annotations

import datetime
import ipaddress
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fellrec.models.adapters import LoraSettings, adapter
from fellrec.models.optimiser import OptimiserSettings
from fellrec.split.service.channel import Link
from fellrec.split.service.control import TrunkControl
from fellrec.split.service.messages import Mode
from fellrec.split.service.server import TrunkService
from fellrec.split.service.settings import Limits, ServiceSettings, TlsFiles
from fellrec.split.service.transport import GrpcTransport, greet
from fellrec.split.trunk import SessionSettings, TrunkServer
from fellrec.split.wire import Frame, FrameKind, decode_frame, encode_frame
from tests.builders import install, layout_of, random_factors, random_hidden, stage_of, tiny

MANIFEST, AGREED, RUN = "base-1", "settings-1", "run-1"
LIMIT, ROUND = 1 << 16, 4
LORA = LoraSettings(rank=4, alpha=8, dropout=0.2)


class Authority:
    """Signs certificates into a folder."""

    def __init__(self, folder: Path, name: str = "test authority") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._made: dict[str, TlsFiles] = {}
        self.path = folder / "authority.pem"
        basic = x509.BasicConstraints(ca=True, path_length=None)
        made = self._sign(self._name, self._key.public_key(), [(basic, True)])
        self.path.write_bytes(made.public_bytes(serialization.Encoding.PEM))

    def files(
        self, name: str, *, hosts: Sequence[str] = ("localhost", "127.0.0.1"), days: int = 1
    ) -> TlsFiles:
        """Return a certificate and key of this common name, made once."""
        if name not in self._made:
            key = ec.generate_private_key(ec.SECP256R1())
            subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
            names = [_alternative(host) for host in hosts]
            alternatives = x509.SubjectAlternativeName(names)
            made = self._sign(subject, key.public_key(), [(alternatives, False)], days)
            base = self._folder / str(len(self._made))
            base.with_suffix(".crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))
            base.with_suffix(".key").write_bytes(
                key.private_bytes(
                    serialization.Encoding.PEM,
                    serialization.PrivateFormat.PKCS8,
                    serialization.NoEncryption(),
                )
            )
            self._made[name] = TlsFiles(
                base.with_suffix(".crt"), base.with_suffix(".key"), self.path
            )
        return self._made[name]

    def _sign(
        self, subject: x509.Name, public: Any, extensions: Sequence[Any], days: int = 1
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=2))
            .not_valid_after(now + datetime.timedelta(days=days))
        )
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        return builder.sign(self._key, hashes.SHA256())


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def trunk_server(micro_batches: int = 2, max_bytes: int = LIMIT, kind: str = "bert") -> TrunkServer:
    """Return a tiny trunk with random factors and dropout, the same each time."""
    stage = stage_of(tiny(kind, 3), "trunk", 1, 1, dropout=0.2, lora=LORA)
    install(stage, random_factors(adapter(stage)))
    settings = SessionSettings(
        seed=3,
        optimiser=OptimiserSettings(0.01),
        micro_batches=micro_batches,
        max_bytes=max_bytes,
    )
    return TrunkServer(stage, settings)


@dataclass
class Running:
    """A trunk that listens, its coordinator, and what clients need to reach it."""

    service: TrunkService
    control: TrunkControl
    authority: Authority
    settings: ServiceSettings
    closing: ExitStack = field(default_factory=ExitStack)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.service.port}"

    def link(self, name: str, address: str = "", connect_seconds: float = 20.0) -> Link:
        return Link(address or self.address, self.authority.files(name), LIMIT, connect_seconds)

    def token(self, client: str, round: int = 4, mode: Mode = "train", seconds: float = 60) -> str:
        return self.control.token(client, round, mode, seconds)

    def prepare(self, client: str, round: int = 4, label: int = 0, mode: Mode = "train") -> None:
        assert self.control.prepare(client, round, label, mode)

    def client(
        self,
        name: str,
        *,
        round: int = 4,
        mode: Mode = "train",
        address: str = "",
        token: str | None = None,
        retry_seconds: float = 20.0,
    ) -> GrpcTransport:
        """Return a client's transport, closed at the end of the test."""
        token = self.token(name, round, mode) if token is None else token
        greeting = greet(manifest=MANIFEST, settings=AGREED, token=token)
        transport = GrpcTransport(
            self.link(name, address), greeting, retry_seconds=retry_seconds, reply_seconds=60
        )
        self.closing.callback(transport.close)
        return transport

    def guest(self, name: str, adapter: Any = "best", run: str = RUN) -> GrpcTransport:
        """Return a client's transport without any token."""
        greeting = greet(manifest=MANIFEST, settings=AGREED, run=run, adapter=adapter)
        transport = GrpcTransport(self.link(name), greeting, retry_seconds=5, reply_seconds=60)
        self.closing.callback(transport.close)
        return transport


@contextmanager
def running(
    folder: Path,
    authority: Authority,
    *,
    limits: Limits | None = None,
    trunk: TrunkServer | None = None,
    metrics: str = "",
    begin: bool = True,
    record: Path | None = None,
) -> Iterator[Running]:
    """Start a trunk on a free port of loopback, with a run begun."""
    settings = ServiceSettings(
        listen="127.0.0.1:0",
        tls=authority.files("trunk"),
        folder=folder,
        manifest=MANIFEST,
        agreed=AGREED,
        limits=limits or Limits(),
        metrics=metrics,
        record=record,
    )
    trunk = trunk or trunk_server()
    with ExitStack() as stack:
        service = TrunkService(trunk, settings)
        stack.callback(service.stop, 0.0)
        link = Link(f"127.0.0.1:{service.port}", authority.files("coordinator"), LIMIT)
        control = TrunkControl(link, adapter(trunk.base))
        stack.callback(control.close)
        if begin:
            control.begin(RUN, manifest=MANIFEST, settings=AGREED)
        yield Running(service, control, authority, settings, stack)


def frames_of(client: str, steps: int = 3, round: int = ROUND, micro: int = 2) -> list[bytes]:
    """Return what a client sends in some steps of two micro-batches."""
    layout = layout_of([3, 2])
    frames: list[Frame] = []
    for step in range(steps):
        for kind in (FrameKind.FORWARD, FrameKind.GRADIENT):
            for part in range(micro):
                seed = sum(client.encode()) + 10 * step + part + 100 * kind
                frames.append(
                    Frame(
                        kind,
                        client,
                        round,
                        step,
                        part,
                        True,
                        lengths=layout.lengths if kind is FrameKind.FORWARD else None,
                        tensor=layout.pack(random_hidden(layout, seed)),
                    )
                )
        frames.append(Frame(FrameKind.NORM, client, round, step, scalar=1.0))
    return [encode_frame(frame) for frame in frames]


def serving(client: str = "a", round: int = ROUND) -> bytes:
    layout = layout_of([4])
    tensor = layout.pack(random_hidden(layout, 8))
    frame = Frame(FrameKind.FORWARD, client, round, lengths=layout.lengths, tensor=tensor)
    return encode_frame(frame)


def refusal(reply: bytes) -> str:
    frame = decode_frame(reply, max_bytes=LIMIT)
    assert frame.kind is FrameKind.ERROR
    return frame.message


class Relay:
    """Passes TCP on to a trunk; `cut` ends all connections, at once or after so many bytes."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._open: list[socket.socket] = []
        self._lock = threading.Lock()
        self.connections = 0
        self.cuts = 0
        self._left: dict[str, int] = {}
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Cut all connections now; new ones are taken."""
        with self._lock:
            for end in self._open:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            self._open.clear()
            self.cuts += 1

    def cut_after(self, direction: str, size: int) -> None:
        """Cut once so many bytes went "up" or "down" from now on; the last ones do not arrive."""
        with self._lock:
            self._left[direction] = size

    def close(self) -> None:
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
                with self._lock:
                    self._open += [near, far]
                    self.connections += 1
                for source, sink, way in ((near, far, "up"), (far, near, "down")):
                    threading.Thread(
                        target=self._pump, args=(source, sink, way), daemon=True
                    ).start()

    def _pump(self, source: socket.socket, sink: socket.socket, direction: str) -> None:
        with suppress(OSError):
            while data := source.recv(4096):
                with self._lock:
                    if direction in self._left:
                        self._left[direction] -= len(data)
                    over = self._left.get(direction, 1) <= 0
                    if over:
                        del self._left[direction]
                if over:
                    self.cut()
                    return
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether two adapters are the same, bit by bit."""
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)
