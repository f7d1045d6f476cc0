"""Short-lived tokens: the coordinator's word that a client may come, for one round and purpose.

A token is `base64url(payload).base64url(HMAC-SHA256(key, payload))`, the payload canonical JSON.
The trunk learns the key from the coordinator alone. A token is of no use to a thief: the client's
certificate has to name the same client.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import secrets
from typing import Annotated

from pydantic import Field

from fellrec.errors import WireError
from fellrec.split.service.messages import ClientName, Message, Mode, Round, RunId, read_message

KEY_BYTES = 32


class Claims(Message):
    """What a token says. expires: seconds since the epoch."""

    client: ClientName
    run: RunId
    round: Round
    mode: Mode
    expires: Annotated[int, Field(ge=0)]


def new_key() -> bytes:
    """Draw a key for tokens."""
    return secrets.token_bytes(KEY_BYTES)


def issue(key: bytes, claims: Claims) -> str:
    """Make a token."""
    payload = _canonical(claims)
    return f"{_text(payload)}.{_text(_mac(key, payload))}"


def verify(key: bytes, token: str) -> Claims:
    """Return what a token of this key says, expired or not.

    Raises WireError when it is none, or was made with another key.
    """
    payload_text, _, mac_text = token.partition(".")
    try:
        payload, mac = _bytes(payload_text), _bytes(mac_text)
    except (binascii.Error, ValueError):
        raise WireError("the token can't be read; take a new one from the coordinator") from None
    if not hmac.compare_digest(mac, _mac(key, payload)):
        raise WireError(
            "the token is not of this coordinator; it may have restarted: take a new one"
        )
    claims = read_message(Claims, payload)
    if _canonical(claims) != payload:
        raise WireError("the token is not in its canonical form")
    return claims


def _canonical(claims: Claims) -> bytes:
    return json.dumps(claims.model_dump(), sort_keys=True, separators=(",", ":")).encode()


def _mac(key: bytes, payload: bytes) -> bytes:
    return hmac.digest(key, payload, hashlib.sha256)


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode("ascii")


def _bytes(text: str) -> bytes:
    return base64.b64decode(text, altchars=b"-_", validate=True)
