"""What a trunk's service needs to know, and the files of its TLS."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path

from fellrec.errors import ConfigError


@dataclass(frozen=True)
class TlsFiles:
    """PEM files. certificate, key: this side's. authority: who signs the other side's."""

    certificate: Path
    key: Path
    authority: Path

    def read(self) -> tuple[bytes, bytes, bytes]:
        """Return key, certificate (its chain) and authority.

        Raises ConfigError for a file that is missing, is none of its kind, or a key that is not the
        certificate's.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        for path in (self.certificate, self.key, self.authority):
            try:
                path.open("rb").close()
            except OSError as error:
                raise ConfigError(f"{path}: can't be read ({error.strerror})") from None
        try:
            context.load_cert_chain(self.certificate, self.key, password="")
        except (ssl.SSLError, ValueError, OSError) as error:
            reason = getattr(error, "reason", None) or "not in PEM"
            raise ConfigError(
                f"{self.certificate} and {self.key}: not a certificate and its key ({reason})"
            ) from None
        try:
            context.load_verify_locations(self.authority)
        except (ssl.SSLError, ValueError, OSError):
            raise ConfigError(f"{self.authority}: not a certificate authority in PEM") from None
        return self.key.read_bytes(), self.certificate.read_bytes(), self.authority.read_bytes()


@dataclass(frozen=True)
class Limits:
    """What one trunk server takes upon itself.

    sessions: clients that train or are served at the same time. workers: frames computed at the
    same time. held_bytes: activations that wait for gradients and remembered texts, of all sessions
    together. reply_bytes: stored answers of one session. memory_seconds: how long a frame waits for
    memory before it is refused. idle_seconds: how long a session lives without a frame.
    greeting_seconds: how long a connection may take to greet. grace_seconds: how long running
    rounds may go on once the server is asked to stop.
    """

    sessions: int = 32
    workers: int = 1
    held_bytes: int = 4 << 30
    reply_bytes: int = 512 << 20
    memory_seconds: float = 60.0
    idle_seconds: float = 600.0
    greeting_seconds: float = 20.0
    grace_seconds: float = 30.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value <= 0 and name != "grace_seconds":
                raise ConfigError(f"trunk limits: {name} must be above 0, got {value}")


@dataclass(frozen=True)
class ServiceSettings:
    """Where a trunk listens, whom it trusts, what it holds.

    listen: "HOST:PORT"; port 0 takes a free one. folder: where adapters are kept, one folder per
    run. manifest, agreed: digests of the base's weights and of the settings that both sides share.
    coordinator: common name of the coordinator's certificate. metrics: "HOST:PORT" for Prometheus,
    over plain HTTP, or "". record: a folder in which every message is recorded (`recorder`), None
    for none.
    """

    listen: str
    tls: TlsFiles
    folder: Path
    manifest: str
    agreed: str
    coordinator: str = "coordinator"
    limits: Limits = field(default_factory=Limits)
    metrics: str = ""
    record: Path | None = None


def host_and_port(address: str, key: str) -> tuple[str, int]:
    """Divide "HOST:PORT" ("[::1]:PORT" too); ConfigError names `key`."""
    host, colon, port = address.rpartition(":")
    plain = host.removeprefix("[").removesuffix("]")
    bracketed = host != plain
    if not (colon and plain and port.isascii() and port.isdecimal() and int(port) < 2**16):
        raise ConfigError(f"{key}: write HOST:PORT, got {address!r}")
    if ":" in plain and not bracketed:
        raise ConfigError(f"{key}: write [{plain}]:{port} for an IPv6 address")
    return plain, int(port)
