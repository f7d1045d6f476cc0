"""What a safetensors file says of itself, checked before any of it is used.

The file's own library maps the whole file into memory. Here only the header is read, and then the
bytes of the tensors that are asked for, a block at a time: a digest of a model of any size takes
the memory of one block.

https://github.com/huggingface/safetensors (section "Format")
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

MAX_HEADER = 100_000_000
"""Most bytes of a header: the limit of the file's own library."""
BLOCK = 1 << 20
_MAX_SIZE, _MAX_DIMENSIONS = 1 << 62, 32
_METADATA = "__metadata__"
_BITS = {
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}


@dataclass(frozen=True)
class Span:
    """One tensor of a file.

    Attributes:
        dtype: as the file calls it, such as "F32".
        shape: its sizes.
        start: the first byte, counted from the file's beginning.
        size: bytes.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


@dataclass(frozen=True)
class Header:
    """A file's tensors by name, and the texts that its writer added."""

    tensors: Mapping[str, Span]
    metadata: Mapping[str, str]


def read_header(file: BinaryIO) -> Header:
    """Read the header of a safetensors file that is open for reading.

    The tensors it lists lie one after the other and fill the file, to its last byte.

    Raises:
        ValueError: the header contradicts itself or the file's length; one line says how.
        OSError: the file can't be read.
    """
    total = file.seek(0, os.SEEK_END)
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if total < 8 or length > min(MAX_HEADER, total - 8):
        raise ValueError("the header is longer than the file or its limit")
    try:
        listed = json.loads(file.read(length), object_pairs_hook=_distinct)
    except (ValueError, RecursionError):
        raise ValueError("the header is not JSON") from None
    if not isinstance(listed, dict):
        raise ValueError("the header is not a JSON object")
    metadata = listed.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError("the header's metadata are not texts")
    tensors = {name: _span(name, entry, 8 + length) for name, entry in listed.items()}
    end = 8 + length
    for name, span in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].size)):
        if span.start != end:
            raise ValueError(f"tensor {name!r} overlaps another or leaves a gap")
        end += span.size
    if end != total:
        raise ValueError(f"{total} bytes where the header describes {end}")
    return Header(tensors, metadata)


def read_blocks(file: BinaryIO, span: Span) -> Iterator[memoryview]:
    """Yield a tensor's bytes in blocks; each is overwritten by the next.

    Raises:
        ValueError: the file ends before the tensor does.
        OSError: the file can't be read.
    """
    buffer = memoryview(bytearray(min(BLOCK, span.size)))
    file.seek(span.start)
    left = span.size
    while left:
        got = file.readinto(buffer[: min(len(buffer), left)])  # type: ignore[attr-defined]  # BinaryIO lacks it, files have it
        if not got:
            raise ValueError("the file was cut short while it was read")
        yield buffer[:got]
        left -= got


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a key that occurs twice: readers differ in which they take."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key twice")
    return found


def _span(name: str, entry: object, body: int) -> Span:
    """Check one entry; body: where the tensors begin."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {name!r} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise ValueError(f"tensor {name!r} has an unknown dtype")
    if not _sizes(shape) or not _sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"tensor {name!r} has a shape or offsets that are no sizes")
    start, stop = offsets
    bits = math.prod(shape) * _BITS[dtype]
    if start > stop or bits != 8 * (stop - start):
        raise ValueError(f"tensor {name!r} has offsets that do not fit its shape")
    return Span(dtype, tuple(shape), body + start, stop - start)


def _sizes(values: object) -> bool:
    """Whether this is a short list of whole numbers from 0; True and 1.0 are none."""
    if not isinstance(values, list) or len(values) > _MAX_DIMENSIONS:
        return False
    return all(type(value) is int and 0 <= value < _MAX_SIZE for value in values)
