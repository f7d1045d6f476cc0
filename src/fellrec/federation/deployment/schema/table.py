"""The schema as Markdown, for docs/crossing.md."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from fellrec.federation.deployment.schema.forms import SIZES, Field, Key, rows
from fellrec.federation.deployment.schema.frames import FRAME, FRAMES, REPLY, STEP, TENSORS
from fellrec.federation.deployment.schema.messages import CLAIMS, Told
from fellrec.federation.deployment.schema.orders import ERROR, FLOWER
from fellrec.federation.deployment.schema.service import CALLS, STREAM
from fellrec.files import write_bytes

BEGIN, END = "<!-- the schema begins -->", "<!-- the schema ends -->"


def render() -> str:
    """Return every declared field, as tables."""
    return re.sub("\n{3,}", "\n\n", "\n".join(_lines())) + "\n"


def update(path: str | os.PathLike[str]) -> None:
    """Replace the tables of a page that has both marks."""
    page = Path(path).read_text("utf-8")
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    write_bytes(Path(path), f"{before}{BEGIN}\n\n{render()}\n{END}{after}".encode())


def _lines() -> Iterator[str]:
    yield "## Client and trunk: frames"
    yield ""
    yield "Before each frame, client to trunk:"
    yield from _fields(STEP)
    yield "Before each frame, trunk to client:"
    yield from _fields(REPLY)
    yield "A frame:"
    yield from _fields(FRAME)
    yield "Its kinds:"
    yield ""
    yield "| kind | goes | bits of `flags` it must have | may have | what it is |"
    yield "|---|---|---|---|---|"
    for number, rule in FRAMES.items():
        ways = {"Step": "client → trunk", "Reply": "trunk → client"}
        way = ", ".join(ways[each] for each in rule.sent)
        yield (
            f"| {number} {rule.name} | {way} | {_bits(rule.must)} | {_bits(rule.may)} "
            f"| {rule.tells} |"
        )
    yield ""
    yield "## Client and trunk: a connection's beginning"
    yield from _messages(STREAM)
    yield ""
    yield "### A token"
    yield ""
    yield "base64 of these keys as JSON, a dot, base64 of an HMAC-SHA256 (32 bytes)."
    yield from _keys(CLAIMS.keys)
    yield "## Coordinator and trunk"
    yield from _messages(CALLS)
    yield ""
    yield "## Coordinator and client, through Flower"
    yield from _messages({**FLOWER, "Error": ERROR})
    yield ""
    yield "## Tensors of adapters"
    yield ""
    yield "float32, 4 bytes for each value."
    yield ""
    yield "| name | shape | also at the trunk | what it is |"
    yield "|---|---|---|---|"
    for tensor in TENSORS:
        trunk = "yes" if tensor.trunk else "no"
        yield f"| `{tensor.name}` | {_shape(tensor.shape)} | {trunk} | {tensor.tells} |"


def _fields(fields: Sequence[Field]) -> Iterator[str]:
    yield ""
    yield "| field | type | shape | bytes | where | what it tells |"
    yield "|---|---|---|---|---|---|"
    for field in fields:
        factors = [str(each) for each in field.shape]
        size = SIZES[field.dtype]
        if size > 1 or not factors:
            factors = [str(size), *factors]
        where = f"bit {field.flag}" if field.flag else "always"
        where += f", codec {field.codec}" if field.codec is not None else ""
        yield (
            f"| `{field.name}` | {field.dtype} | {_shape(field.shape)} | {' × '.join(factors)} "
            f"| {where} | {field.tells} |"
        )
    yield ""


def _messages(messages: Mapping[str, Told]) -> Iterator[str]:
    for name, told in messages.items():
        yield ""
        yield f"### {name}: {told.sender} → {told.receiver}"
        yield ""
        tensors = " Tensors of an adapter may follow." if told.tensors else ""
        yield f"{told.tells[0].upper()}{told.tells[1:]}.{tensors}"
        yield from _keys(told.keys)


def _keys(keys: Sequence[Key]) -> Iterator[str]:
    yield ""
    if not keys:
        yield "No keys."
        yield ""
        return
    yield "| key | value | bytes | what it tells |"
    yield "|---|---|---|---|"
    for path, key in rows(keys):
        yield f"| `{path}` | {key.form.words} | {key.form.size} | {key.tells} |"
    yield ""


def _shape(shape: Sequence[str | int]) -> str:
    return f"({', '.join(map(str, shape))})" if shape else "one"


def _bits(flags: int) -> str:
    return " + ".join(str(1 << bit) for bit in range(8) if flags >> bit & 1) or "none"
