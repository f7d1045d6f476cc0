"""What all messages in JSON are made of: names, digests, tokens, and what a message is."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

from fellrec.federation.deployment.schema.forms import (
    SAFE,
    Key,
    Object,
    Text,
    UndeclaredError,
    hexadecimal,
    one_of,
    whole,
)

CLIENT, TRUNK, COORDINATOR = "client", "trunk", "coordinator"

NAME = Text("a client's name", 64, r"[^\x00-\x1f]+")
RUN = Text("a run's id", 100, r"[A-Za-z0-9][A-Za-z0-9._-]*")
VERSION = Text("a version", 64, r"[A-Za-z0-9.+!-]+")
LINE = Text("a line of text", 4096)
TENSOR = Text("a tensor's name", 256, r"[A-Za-z0-9_.]+")
DIGEST = hexadecimal(64)
COUNT = whole(SAFE)

CLAIMS = Object(
    (
        Key("client", NAME, "for whom the token is"),
        Key("expires", COUNT, "until when, in seconds since 1970"),
        Key("mode", one_of("train", "serve"), "what for"),
        Key("round", whole(), "which round"),
        Key("run", RUN, "which run"),
    )
)
"""What a token says; a MAC of 32 bytes follows."""


def is_token(text: str) -> bool:
    """Whether a text is nothing but a token."""
    payload, _, mac = text.partition(".")
    try:
        said = base64.b64decode(payload, altchars=b"-_", validate=True)
        if len(base64.b64decode(mac, altchars=b"-_", validate=True)) != 32:
            return False
        CLAIMS.check(said.decode(), "token")
    except (binascii.Error, ValueError, UndeclaredError):
        return False
    return True


TOKEN = Text(
    "a token: claims (client, run, round, mode, expires) and a MAC, or nothing",
    1024,
    alone=lambda text: not text or is_token(text),
)


@dataclass(frozen=True)
class Told:
    """A message: who says it to whom, and its keys. tensors: whether an adapter may come along."""

    sender: str
    receiver: str
    tells: str
    keys: tuple[Key, ...]
    tensors: bool = False
