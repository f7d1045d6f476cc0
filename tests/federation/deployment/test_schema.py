"""The schema against what is recorded, against the encoders, and against its page."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fellrec.federation.deployment.schema import Explainer, UndeclaredError
from fellrec.federation.deployment.schema.frames import FRAMES
from fellrec.federation.deployment.schema.orders import FLOWER
from fellrec.federation.deployment.schema.service import CALLS, STREAM
from fellrec.federation.deployment.schema.table import BEGIN, END, render
from fellrec.federation.flower.records import KINDS
from fellrec.split.codecs import Codec
from fellrec.split.service import messages
from fellrec.split.service.messages import Message
from fellrec.split.service.packing import frame_digest, pack_step
from fellrec.split.service.recorder import SUFFIX, Record, read_records
from fellrec.split.wire import Frame, FrameKind, encode_frame, frame_parts
from tests.federation.deployment.town import Town

PAGE = Path(__file__).parents[3] / "docs" / "crossing.md"


@pytest.fixture(scope="module")
def records(plain: Town) -> list[Record]:
    """Everything that was recorded of a deployment, the coordinator's first."""
    paths = [plain.folder / "recording" / f"{name}-0{SUFFIX}" for name in ("coordinator", "trunk")]
    return [record for path in paths for record in read_records(path)]


def step(record: Record, frame: bytes) -> Record:
    """Put another frame into a step, with its digest."""
    return replace(record, payload=record.payload[:16] + frame_digest(frame) + frame)


def with_flags(frame: bytes, flags: int) -> bytes:
    return frame[:7] + bytes([frame[7] | flags]) + frame[8:]


def rows(frame: bytes, count: int) -> bytes:
    return frame[:20] + struct.pack("<I", count) + frame[24:]


def envelope(record: Record, change: Callable[[dict[str, Any]], bytes]) -> Record:
    """Change what a letter says of itself; what is returned comes after its last field."""
    (size,) = struct.unpack_from("<I", record.payload)
    head = json.loads(record.payload[4 : 4 + size])
    more = change(head)
    text = json.dumps(head, ensure_ascii=False, separators=(",", ":")).encode()
    values = record.payload[4 + size :] + more
    return replace(record, payload=struct.pack("<I", len(text)) + text + values)


def field(head: dict[str, Any], data: bytes, **changes: Any) -> bytes:
    """Add a field to a letter, like its last one but for some changes."""
    head["fields"].append({**head["fields"][-1], "bytes": len(data), **changes})
    return data


def metadata(payload: bytes) -> bytes:
    """Hide a word in the header of a call's tensors."""
    (size,) = struct.unpack_from("<I", payload)
    start = 4 + size
    (header,) = struct.unpack_from("<Q", payload, start)
    text = payload[start + 8 : start + 8 + header].rstrip()
    text = b'{"__metadata__":{"item":"312"},' + text[1:]
    text += b" " * (-len(text) % 8)
    rest = payload[start + 8 + header :]
    return payload[:start] + struct.pack("<Q", len(text)) + text + rest


def spoken(record: Record, old: bytes, new: bytes) -> Record:
    """Replace words once; sizes that are told before them stay true."""
    assert old in record.payload
    payload, more = record.payload.replace(old, new, 1), len(new) - len(old)
    if record.kind in ("Trained", "Commit"):
        (size,) = struct.unpack_from("<I", payload)
        payload = struct.pack("<I", size + more) + payload[4:]
    changed = replace(record, payload=payload)
    if record.kind == "Letter":
        return envelope(changed, lambda head: lengthen(head, more))
    return changed


def lengthen(head: dict[str, Any], more: int) -> bytes:
    (body,) = (each for each in head["fields"] if each["key"] == "body")
    body["bytes"] += more
    return b""


def shortened(record: Record) -> Record:
    """Leave the last position out of an answer."""
    data = record.payload
    n, d = struct.unpack_from("<II", data, 32)
    payload = data[:32] + struct.pack("<I", n - 1) + data[36 : -4 * d]
    return replace(record, payload=payload)


def posted(record: Record) -> Record:
    """Make a step of an answer."""
    frame = record.payload[8:]
    payload = pack_step(1, 0, frame_digest(frame), frame)
    return replace(record, kind="Step", direction="received", payload=payload)


def says(**words: object) -> Callable[[dict[str, Any]], bytes]:
    """Return a change of an envelope's own words."""

    def change(head: dict[str, Any]) -> bytes:
        fields = head.pop("fields")
        head.update(words, fields=fields)
        return b""

    return change


def adds(data: bytes, **changes: Any) -> Callable[[Record], Record]:
    """Return a change that adds a field to a letter."""
    return lambda record: envelope(record, lambda head: field(head, data, **changes))


TENSOR = {"record": "tensors", "form": "ArrayRecord", "dtype": "float32", "stype": "fellrec.raw"}
METRIC = {"record": "metrics", "form": "MetricRecord", "dtype": "int"}
LAYER = "encoder.layer.312.attention.self.query.lora_A.weight"
Slip = tuple[str, Callable[[Record], Record], str]
SLIPS: Mapping[str, Slip] = {
    "bytes after a frame": (
        "FORWARD", lambda r: step(r, r.payload[32:] + b"\x38\1\0\0"), "goes on for 4 bytes"
    ),
    "a digest": ("NORM", lambda r: replace(r, payload=r.payload[:-1] + b"\1"), "digest"),
    "lengths of a gradient": (
        "GRADIENT", lambda r: step(r, with_flags(rows(r.payload[32:], 1), 4) + bytes(4)), "flags"
    ),
    "rows of a norm": ("NORM", lambda r: step(r, rows(r.payload[32:], 312)), "counts b"),
    "a flag": ("FORWARD", lambda r: step(r, with_flags(r.payload[32:], 128)), "flags 0xc5"),
    "a client": ("NORM", lambda r: replace(r, client="somebody"), "names client 'c0'"),
    "a frame of a server": ("OUTPUT", posted, "a frame of kind 2"),
    "an answer's size": ("OUTPUT", shortened, "positions answers FORWARD of"),
    "a reply to nothing": (
        "OUTPUT", lambda r: replace(r, payload=b"\xff" * 8 + r.payload[8:]), "answers nothing"
    ),
    "bytes after the end": ("end", lambda r: step(r, b"\x38"), "ends within magic"),
    "a key": (
        "Greeting", lambda r: spoken(r, b'"resume"', b'"item":312,"resume"'), "has the keys"
    ),
    "a key twice": (
        "Welcome", lambda r: spoken(r, b'"ok":true', b'"ok":true,"ok":true'), "a key twice"
    ),
    "a space": ("Welcome", lambda r: spoken(r, b'"ok":true', b'"ok": true'), "a space"),
    "digits": ("Welcome", lambda r: spoken(r, b'"round":0', b'"round":0.312'), "round is '0.312'"),
    "a token": (
        "Greeting", lambda r: spoken(r, b'"token":"', b'"token":"eyJpdGVtIjozMTJ9.'), "token is"
    ),
    "a nested key": (
        "Commit", lambda r: spoken(r, b'"label"', b'"item":312,"label"'), "labels.c0 has the keys"
    ),
    "a map's key": (
        "Trained", lambda r: spoken(r, b'"up/layout"', b'"up/item312"'), "bytes's key is"
    ),
    "bytes after tensors": (
        "Trained", lambda r: replace(r, payload=r.payload + bytes(4)), "4 bytes after the last"
    ),
    "metadata": (
        "Trained", lambda r: replace(r, payload=metadata(r.payload)), "__metadata__ is described"
    ),
    "a message": ("Status", lambda r: replace(r, kind="Histories"), "is not declared"),
    "a way": ("Status", lambda r: replace(r, direction="sent"), "the wrong way"),
    "a letter's key": (
        "Introduction", lambda r: spoken(r, b'"users":', b'"item":312,"users":'), "has the keys"
    ),
    "a subject": ("Report", lambda r: envelope(r, says(subject="312")), "envelope is"),
    "a group": ("Train", lambda r: envelope(r, says(group="312")), "of the group '312'"),
    "an envelope": ("Report", lambda r: envelope(r, says(item=312)), "envelope is"),
    "a letter's rest": ("Report", lambda r: envelope(r, lambda head: b"312"), "more than its"),
    "a tensor": ("Report", adds(bytes(4), key="x", shape=[1]), "the adapter has x"),
    "a layer": ("Report", adds(bytes(256), key=LAYER, shape=[2, 32]), "the first one had not"),
    "a shape": ("Report", adds(bytes(4), key="y", shape=[2]), "4 bytes for the shape"),
    "a dtype": ("Report", adds(bytes(8), key="y", dtype="int64", shape=[]), "of int64"),
    "a tensor twice": ("Report", adds(bytes(4), key="scale", shape=[]), "comes twice"),
    "a record": ("Score", adds(b"312", key="item", **METRIC), "metrics/item of int"),
    "a text": ("Score", adds(b"312", key="item"), "message/item of str"),
    "a score's tensor": ("Score", adds(bytes(4), key="scale", **TENSOR), "tensors/scale"),
}  # fmt: skip


@pytest.mark.parametrize("slip", SLIPS)
def test_what_is_not_declared_is_refused(records: list[Record], slip: str) -> None:
    kind, change, line = SLIPS[slip]
    explainer = Explainer()
    for record in records:
        if explainer.explain(record).kind == kind:
            with pytest.raises(UndeclaredError, match=re.escape(line)):
                explainer.explain(change(record))
            return
    raise AssertionError(f"no {kind} was recorded")


def test_whatever_is_recorded_is_explained_or_refused_by_name(records: list[Record]) -> None:
    rng = np.random.default_rng(3)
    explainer = Explainer()
    for record in records:
        explainer.explain(record)
        damaged = bytearray(record.payload)
        if damaged:
            damaged[int(rng.integers(min(len(damaged), 200)))] ^= 1 << int(rng.integers(8))
            cut = record.payload[: int(rng.integers(len(record.payload)))]
            for payload in (bytes(damaged), cut):
                with suppress(UndeclaredError):
                    explainer.explain(replace(record, payload=payload))
        explainer.explain(record)


@pytest.mark.parametrize("codec", Codec)
@pytest.mark.parametrize("width", [5, 64, 70])
def test_every_codec_is_declared(codec: Codec, width: int) -> None:
    """Against the encoder: sizes, and what the ledger makes of a frame."""
    lengths = np.array([2, 1], np.int32)
    tensor = torch.randn(3, width, generator=torch.Generator().manual_seed(0))
    frame = Frame(
        FrameKind.FORWARD, "north", 3, 1, 0, True, "left",
        lengths=lengths, positions=lengths, beams=lengths, tensor=tensor, codec=codec,
    )  # fmt: skip
    data = encode_frame(frame)
    record = Record("received", "north", "Step", pack_step(1, 0, frame_digest(data), data))
    explained = Explainer().explain(record)
    sums: dict[str, int] = {}
    for part in explained.parts[3:]:
        sums[part.ledger] = sums.get(part.ledger, 0) + len(part.data)
    assert sums == frame_parts(frame)
    assert explained.value("round") == 3


def test_every_kind_of_frame_is_declared() -> None:
    assert {rule.name: number for number, rule in FRAMES.items()} == {
        kind.name: kind.value for kind in FrameKind
    }


def test_every_message_is_declared() -> None:
    """Against the classes that both sides read messages with."""
    declared = {**FLOWER, **CALLS, **STREAM}
    kinds: dict[str, type[Message]] = {**KINDS}
    calls = ("Begin", "Prepare", "Collect", "Trained", "Install", "Commit", "Drop", "Status")
    for name in (*calls, "Standing", "Done", "Greeting", "Welcome"):
        kinds[name] = getattr(messages, name)
    assert declared.keys() == kinds.keys() | {"Refusal"}
    for name, kind in kinds.items():
        assert [key.name for key in declared[name].keys] == list(kind.model_fields), name


def test_the_page_has_the_schema() -> None:
    page = PAGE.read_text("utf-8")
    shown = page.partition(BEGIN)[2].partition(END)[0]
    assert shown.strip() == render().strip(), (
        "make it again: python -c 'from fellrec.federation.deployment.schema.table import update; "
        'update("docs/crossing.md")\''
    )
