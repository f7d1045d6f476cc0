"""What a client's machine and line allow."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import ByteSize, TypeAdapter, ValidationError

from fellrec.errors import ConfigError


@dataclass(frozen=True)
class Limits:
    """client_memory: bytes that a client's process may take, its libraries included. uplink,
    downlink: bytes a second. latency: seconds there and back. max_recovery: largest share of a
    history's items that a server may read back. max_seconds: longest that a step may take. What is
    None is not limited.
    """

    client_memory: int | None = None
    uplink: int | None = None
    downlink: int | None = None
    latency: float = 0.02
    max_recovery: float | None = None
    max_seconds: float | None = None


def bytes_of(text: str, option: str) -> int:
    """Read "2GB", "512MiB" or, a second, "20Mbit" as bytes; ConfigError names the option."""
    try:
        found = int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        found = 0
    if found < 1:
        raise ConfigError(f"{option} {text}: give a size such as 2GB, 512MiB or 20Mbit")
    return found
