"""Cuts bytes into fields by the schema alone: what one message says, without any other."""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fellrec.federation.deployment.schema.forms import (
    SAFE,
    SIZES,
    Field,
    Many,
    Object,
    UndeclaredError,
    members,
    whole,
)
from fellrec.federation.deployment.schema.messages import Told
from fellrec.federation.deployment.schema.orders import FLOWER, SUBJECTS

FRAMING = "framing"
"""The type of parts that only hold others together: braces, commas, sizes, headers."""
Shapes = dict[str, tuple[int, ...]]

_STRUCTS = {"u8": "<B", "u16": "<H", "u32": "<I", "u64": "<Q"}
_ENTRY = ["record", "form", "key", "dtype", "shape", "stype", "bytes"]


@dataclass(frozen=True)
class Part:
    """One declared field of a message. dtype: a type of the schema's, "json" or "framing".

    shape: in numbers. data: its bytes; a JSON value's text without its key, which is in a part of
    framing. ledger: what the ledger calls it. loose, dimension: as of the schema's keys; "derived"
    for bytes that follow from others.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes
    ledger: str = ""
    loose: str = ""
    dimension: str = ""


@dataclass(frozen=True)
class Explained:
    """A message, split. kind: its name in the schema, a frame's for a step or a reply.

    client: whom it is from or to; the parts' bytes, one after another, are the message.
    """

    client: str
    sender: str
    receiver: str
    kind: str
    parts: tuple[Part, ...]

    def value(self, name: str) -> Any:
        """Return a JSON value or a whole number by its name."""
        part = next(p for p in self.parts if p.name == name and p.dtype != FRAMING)
        if part.dtype == "json":
            return json.loads(part.data)
        return struct.unpack(_STRUCTS[part.dtype], part.data)[0]


def cut_fields(declared: Sequence[Field], data: bytes) -> tuple[dict[str, int], list[Part], bytes]:
    """Cut fields off the front: the numbers read, the parts, and the bytes that are left."""
    values: dict[str, int] = {}
    parts, place = [], 0
    for field in declared:
        if field.flag and not values["flags"] & field.flag:
            continue
        if field.codec is not None and values["codec"] != field.codec:
            continue
        shape = tuple(_extent(size, values) for size in field.shape)
        end = place + SIZES[field.dtype] * math.prod(shape)
        piece = data[place:end]
        if end > len(data):
            raise UndeclaredError(f"it ends within {field.name}")
        if field.fixed and piece != field.fixed:
            raise UndeclaredError(f"{field.name} is {piece!r}, declared is {field.fixed!r}")
        if not shape and field.dtype in _STRUCTS:
            (values[field.name],) = struct.unpack(_STRUCTS[field.dtype], piece)
        loose = "derived" if field.derived else ""
        parts.append(Part(field.name, field.dtype, shape, piece, loose=loose))
        place = end
    return values, parts, data[place:]


def split_object(told: Told, text: str) -> Iterator[Part]:
    """Split a message in JSON."""
    place = 0
    for key, value in Object(told.keys).split(text, "it"):
        key.form.check(value, key.name)
        start = place + len(f'{{"{key.name}":')  # before the first key a brace, then commas
        yield Part(key.name, FRAMING, (), text[place:start].encode())
        yield Part(key.name, "json", (), value.encode(), loose=key.loose, dimension=key.dimension)
        place = start + len(value)
    yield Part("object", FRAMING, (), text[place:].encode())


def split_call(told: Told, data: bytes) -> Iterator[Part]:
    """Split a call or its answer: u32 size, JSON, safetensors or nothing."""
    (size,) = struct.unpack_from("<I", data)
    text, body = data[4 : 4 + size], data[4 + size :]
    if len(text) != size:
        raise UndeclaredError("it is shorter than its header says")
    yield Part("size", FRAMING, (), data[:4])
    yield from split_object(told, text.decode())
    if body and not told.tensors:
        raise UndeclaredError(f"{len(body)} bytes after its header")
    if body:
        yield from split_tensors(body)


def split_tensors(body: bytes) -> Iterator[Part]:
    """Split safetensors: u64 size, JSON padded by spaces to 8 bytes, values without a gap."""
    (size,) = struct.unpack_from("<Q", body)
    text, values = body[8 : 8 + size].decode(), body[8 + size :]
    bare = text.rstrip(" ")
    if len(text.encode()) != size or size % 8 or len(text) - len(bare) > 7:
        raise UndeclaredError("the tensors' header is not of its size")
    yield Part("tensors", FRAMING, (), body[: 8 + size])
    found = []
    for name, entry in members(bare, "the tensors' header"):
        told = dict(members(entry, name))
        if list(told) != ["dtype", "shape", "data_offsets"] or told["dtype"] != '"F32"':
            raise UndeclaredError(f"{name} is described by {entry[:80]}")
        start, stop = _numbers(told["data_offsets"])
        found.append((start, stop, name, _numbers(told["shape"])))
    place = 0
    for start, stop, name, shape in sorted(found):
        if start != place or stop - start != 4 * math.prod(shape):
            raise UndeclaredError(f"{name} is not where the tensor before it ends")
        yield _tensor(name, shape, values[start:stop])
        place = stop
    if place != len(values):
        raise UndeclaredError(f"{len(values) - place} bytes after the last tensor")


def split_letter(payload: bytes) -> tuple[str, str, list[Part]]:
    """Split a message that went through Flower: its kind, its group, its parts.

    The kind is "Error" where Flower answered for a node.
    """
    (size,) = struct.unpack_from("<I", payload)
    text, values = payload[4 : 4 + size].decode(), payload[4 + size :]
    head = json.loads(text)
    keys = ["subject", "group", *(["error"] if "error" in head else []), "fields"]
    plain = json.dumps(head, ensure_ascii=False, separators=(",", ":"))
    if list(head) != keys or plain != text or head["subject"] not in SUBJECTS:
        raise UndeclaredError(f"its envelope is {text[:120]}")
    parts = [Part("envelope", FRAMING, (), payload[: 4 + size])]
    kind = ""
    for entry in head["fields"]:
        if list(entry) != _ENTRY:
            raise UndeclaredError(f"a field is described by {entry}")
        data, values = values[: entry["bytes"]], values[entry["bytes"] :]
        if len(data) != entry["bytes"]:
            raise UndeclaredError(f"it ends within {entry['key']}")
        match [entry[each] for each in _ENTRY[:6]]:
            case ["", "Error", "reason", "str", [], ""] if "error" in head and not kind:
                kind = "Error"
                parts.append(Part("reason", "utf-8", (len(data),), data, loose="random"))
            case ["message", "ConfigRecord", "kind", "str", [], ""] if not kind:
                kind = data.decode()
                if kind not in FLOWER:
                    raise UndeclaredError(f"the kind {kind[:40]!r} is not declared")
                parts.append(Part("kind", "utf-8", (len(data),), data))
            case ["message", "ConfigRecord", "body", "str", [], ""] if len(parts) == 2:
                parts += split_object(FLOWER[kind], data.decode())
            case ["tensors", "ArrayRecord", name, "float32", [*shape], "fellrec.raw"] if (
                len(parts) > 2 and FLOWER[kind].tensors
            ):
                if any(part.name == name and part.dtype == "f32" for part in parts):
                    raise UndeclaredError(f"{name} comes twice")
                parts.append(_tensor(name, tuple(map(int, shape)), data))
            case _:
                what = f"{entry['record']}/{entry['key']} of {entry['dtype']}, {entry['stype']}"
                raise UndeclaredError(f"the field {what} is not declared")
    if values or not kind or (kind != "Error" and len(parts) < 3):
        raise UndeclaredError("it has no kind, no body, or more than its fields")
    return kind, str(head["group"]), parts


def shapes_of(parts: Sequence[Part]) -> Shapes:
    """Return the shapes of the tensors among a message's parts that are adapters'."""
    return {part.name: part.shape for part in parts if part.ledger in ("lora", "dense")}


def module_of(name: str) -> str:
    """Return the path of an adapted layer, the same for all blocks."""
    return re.sub(r"\.\d+\.", ".*.", name)


def _tensor(name: str, shape: tuple[int, ...], data: bytes) -> Part:
    if len(data) != 4 * math.prod(shape):
        raise UndeclaredError(f"{name} has {len(data)} bytes for the shape {shape}")
    return Part(name, "f32", shape, data, "lora" if ".lora_" in name else "dense")


def _numbers(text: str) -> tuple[int, ...]:
    """Read a list of whole numbers, written without a space."""
    Many(whole(SAFE), 8).check(text, "a shape")
    return tuple(json.loads(text))


def _extent(size: str | int, values: Mapping[str, int]) -> int:
    if isinstance(size, int):
        return size
    return -(-values["d"] // 64) if size == "ceil(d/64)" else values[size]
