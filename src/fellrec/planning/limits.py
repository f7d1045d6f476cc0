"""What a client's machine and line allow."""

from __future__ import annotations

import math
import re
from contextlib import suppress
from dataclasses import dataclass

from pydantic import ByteSize, TypeAdapter, ValidationError

from fellrec.errors import ConfigError

_SIZE = re.compile(r"\s*\d*\.?\d+\s*[A-Za-z]*\s*")


@dataclass(frozen=True)
class Limits:
    """What may be asked of a client; ConfigError for a number that is none.

    client_memory: bytes that a client's process may take, its libraries included. uplink,
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

    def __post_init__(self) -> None:
        """Refuse what limits nothing."""
        for name in ("latency", "max_recovery", "max_seconds"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                option = f"--{name.replace('_', '-')}"
                raise ConfigError(f"{option} {value}: give a number, or leave it out")


def bytes_of(text: str, option: str) -> int:
    """Read "2GB", "512MiB" or, a second, "20Mbit" as bytes; ConfigError names the option."""
    found = 0
    if _SIZE.fullmatch(text):  # pydantic reads what a text begins with: "2,5GB" as 2
        with suppress(ValidationError):
            found = int(TypeAdapter(ByteSize).validate_python(text))
    if found < 1:
        raise ConfigError(f"{option} {text}: give a size such as 2GB, 512MiB or 20Mbit")
    return found
