"""Frames: what one stage says to the next, as bytes, and the only door through which it comes in.

A frame is a header, then the parts its flags announce, in this order (all little-endian)::

    offset  size  field
    0       4     magic b"FLRC"
    4       1     version
    5       1     kind                  FrameKind
    6       1     codec                 of the tensor: fp32, bf16, fp16, int8
    7       1     flags                 training, side, and which parts follow
    8       12    round, step, micro    3 x uint32
    20      4     b                     rows (histories, prompts or beams); 0 without row parts
    24      8     n, d                  2 x uint32, the tensor's shape; 0, 0 without a tensor
    32      2     message bytes         uint16
    34      1     client bytes          uint8
    35            client (UTF-8)
                  lengths               b x int32
                  positions             b x int32
                  beams                 b x int32
                  scalar                float64
                  message (UTF-8)
                  tensor                `codecs.encoded_size` bytes

The tensor holds the valid positions of all rows one after another, ``n = sum(lengths)``: padding
does not travel (METHOD, section 2).

The reader trusts nothing. It compares the buffer's length with the size that the header announces
before it allocates, and then checks every value; whatever is wrong becomes a `WireError`. Which
frames make sense is said in `frames`.
"""

from __future__ import annotations

import struct

import numpy as np
import torch

from fellrec.split.codecs import Codec, decode, encode, encoded_size
from fellrec.split.frames import (
    MAX_CLIENT_BYTES,
    MAX_MESSAGE_BYTES,
    ROW_PARTS,
    RULES,
    UINT32,
    Frame,
    FrameKind,
    IntRow,
    check_parts,
    check_rows,
    check_scalar,
    check_sizes,
    error_frame,
    parts_of,
    refuse,
    row_count,
    shape_of,
)

__all__ = ["Frame", "FrameKind", "decode_frame", "encode_frame", "error_frame", "frame_parts"]

MAGIC = b"FLRC"
VERSION = 1

_HEADER = struct.Struct("<4sBBBBIIIIIIHB")
_SCALAR = struct.Struct("<d")
_CODECS = (Codec.FP32, Codec.BF16, Codec.FP16, Codec.INT8)  # the index is the number sent
_KINDS = {kind.value: kind for kind in FrameKind}

_TRAINING, _LEFT = 1, 2
_PART_FLAGS = {"lengths": 4, "positions": 8, "beams": 16, "scalar": 32, "tensor": 64}
_KNOWN_FLAGS = _TRAINING | _LEFT | sum(_PART_FLAGS.values())

Buffer = bytes | bytearray | memoryview


def encode_frame(frame: Frame, generator: torch.Generator | None = None) -> bytes:
    """Write a frame.

    Args:
        frame: what to send.
        generator: for int8 gradients, rounds them stochastically (`codecs.encode`).

    Raises:
        WireError: a part is missing, not allowed for this kind, or out of its limits.

    """
    present = parts_of(frame)
    check_parts(frame.kind, present)
    arrays = {part: _int32(part, getattr(frame, part)) for part in ROW_PARTS if part in present}
    rows, (n, d) = row_count(frame), shape_of(frame)
    check_sizes(present, rows, n, d)
    check_rows(arrays, n)
    for name in ("round", "step", "micro"):
        if not 0 <= getattr(frame, name) <= UINT32:
            refuse(f"{name} must lie in 0 ... {UINT32}, got {getattr(frame, name)}")
    if frame.side not in ("left", "right"):
        refuse(f"side must be left or right, got {frame.side!r}")
    client = _text_bytes("client", frame.client, MAX_CLIENT_BYTES)
    message = _text_bytes("message", frame.message, MAX_MESSAGE_BYTES)
    flags = sum(flag for part, flag in _PART_FLAGS.items() if part in present)
    flags |= _TRAINING * bool(frame.training) | _LEFT * (frame.side == "left")
    parts: list[Buffer] = [
        _HEADER.pack(
            MAGIC, VERSION, frame.kind, _CODECS.index(frame.codec), flags,
            frame.round, frame.step, frame.micro, rows, n, d, len(message), len(client),
        ),
        client,
    ]  # fmt: skip
    parts += [array.astype("<i4", copy=False).tobytes() for array in arrays.values()]
    if frame.scalar is not None:
        check_scalar(frame.kind, frame.scalar)
        parts.append(_SCALAR.pack(frame.scalar))
    parts.append(message)
    if frame.tensor is not None:
        parts.append(encode(frame.tensor, frame.codec, generator))
    return b"".join(parts)


def decode_frame(buffer: Buffer, *, max_bytes: int) -> Frame:
    """Read a frame that may say anything.

    Args:
        buffer: one whole frame and nothing else.
        max_bytes: the most that the frame, and the float32 tensor it decodes to, may take.

    Returns:
        The frame; its arrays and its tensor are copies, writable.

    Raises:
        WireError: the first thing found wrong, named. Nothing else is ever raised.

    """
    view = memoryview(buffer).cast("B")
    if len(view) > max_bytes:
        refuse(f"{len(view)} bytes, the limit is {max_bytes} (split.max_frame_mib)")
    if len(view) < _HEADER.size:
        refuse(f"{len(view)} bytes, a header alone takes {_HEADER.size}")
    (
        magic, version, kind_number, codec_number, flags,
        round_, step, micro, rows, n, d, message_bytes, client_bytes,
    ) = _HEADER.unpack_from(view)  # fmt: skip
    if magic != MAGIC:
        refuse(f"it starts with {magic!r}, not {MAGIC!r}")
    if version != VERSION:
        refuse(f"it is of version {version}, this program speaks {VERSION}; update the older side")
    if kind_number not in _KINDS:
        refuse(f"unknown kind {kind_number}")
    if codec_number >= len(_CODECS):
        refuse(f"unknown codec {codec_number}")
    if flags & ~_KNOWN_FLAGS:
        refuse(f"unknown flags {flags & ~_KNOWN_FLAGS:#x}")
    kind, codec = _KINDS[kind_number], _CODECS[codec_number]
    present = {part for part, flag in _PART_FLAGS.items() if flags & flag}
    if message_bytes:
        present.add("message")
    check_parts(kind, present)
    check_sizes(present, rows, n, d)
    if client_bytes > MAX_CLIENT_BYTES or message_bytes > MAX_MESSAGE_BYTES:
        refuse(f"a client of {client_bytes} bytes, a message of {message_bytes}: too long")
    if 4 * n * d > max_bytes:
        refuse(f"{n} x {d} values take {4 * n * d} bytes, the limit is {max_bytes}")
    sizes = _part_sizes(present, client_bytes, rows, message_bytes, n, d, codec)
    if sum(sizes.values()) != len(view):
        refuse(f"its header announces {sum(sizes.values())} bytes, it has {len(view)}")

    pieces: dict[str, memoryview] = {}
    start = 0
    for part, size in sizes.items():
        pieces[part] = view[start : start + size]
        start += size
    arrays = {
        part: np.frombuffer(pieces[part], "<i4").astype(np.int32)
        for part in ROW_PARTS
        if part in present
    }
    check_rows(arrays, n)
    scalar: float | None = None
    if "scalar" in present:
        (scalar,) = _SCALAR.unpack(pieces["scalar"])
        check_scalar(kind, scalar)
    return Frame(
        kind=kind,
        client=_text("client", pieces["client"]),
        round=round_,
        step=step,
        micro=micro,
        training=bool(flags & _TRAINING),
        side="left" if flags & _LEFT else "right",
        lengths=arrays.get("lengths"),
        positions=arrays.get("positions"),
        beams=arrays.get("beams"),
        tensor=decode(pieces["tensor"], n, d, codec) if "tensor" in present else None,
        scalar=scalar,
        codec=codec,
        message=_text("message", pieces["message"]) if message_bytes else "",
    )


def frame_parts(frame: Frame) -> dict[str, int]:
    """Return how a frame's bytes divide into the ledger's kinds; they sum to the frame's length.

    "activation" or "gradient" is the tensor, "scalar" the scalar, "layout" all the rest: header,
    client, lengths, positions, beams, message.
    """
    n, d = shape_of(frame)
    sizes = _part_sizes(
        parts_of(frame),
        len(frame.client.encode()),
        row_count(frame),
        len(frame.message.encode()),
        n,
        d,
        frame.codec,
    )
    parts = {"layout": 0}
    for part, size in sizes.items():
        kind = {"tensor": RULES[frame.kind].tensor_kind, "scalar": "scalar"}.get(part, "layout")
        parts[kind] = parts.get(kind, 0) + size
    return parts


def _part_sizes(
    present: set[str], client: int, rows: int, message: int, n: int, d: int, codec: Codec
) -> dict[str, int]:
    """Bytes of each part that is present, as sent, in Python integers: nothing overflows."""
    sizes = {"header": _HEADER.size, "client": client}
    sizes |= {part: 4 * rows for part in ROW_PARTS if part in present}
    if "scalar" in present:
        sizes["scalar"] = _SCALAR.size
    if "message" in present:
        sizes["message"] = message
    if "tensor" in present:
        sizes["tensor"] = encoded_size(n, d, codec)
    return sizes


def _int32(name: str, array: IntRow) -> IntRow:
    if array.ndim != 1 or array.dtype != np.int32:
        refuse(f"{name} must be int32 of shape (b,), got {array.dtype} of shape {array.shape}")
    return array


def _text_bytes(name: str, text: str, limit: int) -> bytes:
    if not text.isprintable():  # so that a peer can't forge lines of our log
        refuse(f"{name} {text!r} holds unprintable characters")
    data = text.encode()
    if len(data) > limit:
        refuse(f"{name} takes {len(data)} bytes, the limit is {limit}")
    return data


def _text(name: str, data: memoryview) -> str:
    try:
        text = bytes(data).decode()
    except UnicodeDecodeError:
        refuse(f"{name} is not UTF-8")
    if not text.isprintable():
        refuse(f"{name} {text!r} holds unprintable characters")
    return text
