"""Messages of the trunk's service as bytes; nothing in them is trusted.

``/fellrec.Trunk/Steps``, a stream in both directions. The client begins with a `Greeting`, the
server answers with a `Welcome`, both as JSON. Then (all little-endian)::

    client:  u64 number (from 1, +1 each)   u64 highest number whose reply it holds
             16 bytes blake2b of the frame  the frame (`split.wire`); empty: "I have finished"
    server:  u64 number                     the frame that answers it; empty to an empty one

All other methods are the coordinator's: one call, one answer, each a `pack_call`: u32 size of the
header, the header as JSON, then tensors as safetensors or nothing.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from fellrec.errors import WireError
from fellrec.split.service.messages import (
    MAX_HEADER_BYTES,
    M,
    Message,
    read_message,
    write_message,
)

SLACK_BYTES = 2 << 20
"""What a message may take beyond the frame or the tensors it carries: numbers, headers."""
DIGEST_BYTES = 16

_STEP = struct.Struct(f"<QQ{DIGEST_BYTES}s")
_REPLY = struct.Struct("<Q")
_SIZE = struct.Struct("<I")


def frame_digest(frame: bytes) -> bytes:
    """Return the digest under which a frame may be sent again."""
    return hashlib.blake2b(frame, digest_size=DIGEST_BYTES).digest()


def pack_step(number: int, held: int, digest: bytes, frame: bytes) -> bytes:
    """Write a client's message."""
    return _STEP.pack(number, held, digest) + frame


def unpack_step(message: bytes) -> tuple[int, int, bytes, bytes]:
    """Read a client's message: number, highest reply held, digest, frame."""
    if len(message) < _STEP.size:
        raise WireError(f"a message of {len(message)} bytes, its numbers alone take {_STEP.size}")
    number, held, digest = _STEP.unpack_from(message)
    return number, held, digest, message[_STEP.size :]


def pack_reply(number: int, frame: bytes) -> bytes:
    """Write a server's message."""
    return _REPLY.pack(number) + frame


def unpack_reply(message: bytes) -> tuple[int, bytes]:
    """Read a server's message: number, frame."""
    if len(message) < _REPLY.size:
        raise WireError(f"a reply of {len(message)} bytes, its number alone takes {_REPLY.size}")
    return _REPLY.unpack_from(message)[0], message[_REPLY.size :]


def pack_call(header: Message, tensors: Mapping[str, Tensor] | None = None) -> bytes:
    """Write a call of the coordinator, or its answer."""
    text = write_message(header)
    body = b""
    if tensors is not None:
        body = safetensors.torch.save({n: t.contiguous() for n, t in tensors.items()})
    return _SIZE.pack(len(text)) + text + body


def unpack_call(kind: type[M], data: bytes) -> tuple[M, bytes]:
    """Read a call: its header, and the bytes of its tensors."""
    if len(data) < _SIZE.size:
        raise WireError(f"{kind.__name__} refused: {len(data)} bytes, no header")
    (size,) = _SIZE.unpack_from(data)
    if size > min(MAX_HEADER_BYTES, len(data) - _SIZE.size):
        raise WireError(f"{kind.__name__} refused: a header of {size} bytes")
    text, body = data[_SIZE.size : _SIZE.size + size], data[_SIZE.size + size :]
    return read_message(kind, text), body


def unpack_tensors(body: bytes, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read an adapter: finite float32 tensors of the names and shapes of `like`.

    Raises WireError for the first that differs.
    """
    announced = _announced(body)
    odd = sorted(announced.keys() ^ like.keys())
    if odd:
        raise WireError(f"the adapter's tensors do not fit the trunk, first difference: {odd[0]}")
    for name, (dtype, shape) in announced.items():
        expected = list(like[name].shape)
        if dtype != "F32" or shape != expected:
            raise WireError(f"{name} is {dtype} of shape {shape}, expected F32 of {expected}")
    try:
        tensors = safetensors.torch.load(body)
    except (SafetensorError, ValueError) as error:
        raise WireError(f"the adapter can't be read ({error})") from None
    check_finite(tensors)
    return tensors


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raise WireError for a tensor with a value that is NaN or infinite."""
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise WireError(f"{name} holds a value that is NaN or infinite")


def _announced(body: bytes) -> dict[str, tuple[Any, Any]]:
    """Read dtype and shape of each tensor from the header, before any is made."""
    try:
        (size,) = struct.unpack_from("<Q", body)
        if size > min(MAX_HEADER_BYTES, len(body) - 8):
            raise ValueError("its header is too long")
        header = json.loads(body[8 : 8 + size])
        return {
            str(name): (entry["dtype"], entry["shape"])
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (struct.error, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise WireError(f"the adapter can't be read ({error})") from None
