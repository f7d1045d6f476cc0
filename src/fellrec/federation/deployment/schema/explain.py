"""Holds recorded messages against the schema, to the last byte.

What two messages of one deployment must agree on (the width of frames, the names and shapes of
adapters, the size of an answer, the round on an envelope) is remembered from one to the next.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import replace

from fellrec.federation.deployment.schema.forms import UndeclaredError
from fellrec.federation.deployment.schema.frames import (
    BEAMS,
    CODECS,
    FRAME,
    FRAMES,
    LENGTHS,
    POSITIONS,
    REPLY,
    STEP,
    TENSOR,
    TENSORS,
    FrameRule,
)
from fellrec.federation.deployment.schema.messages import CLIENT, COORDINATOR, TRUNK, Told
from fellrec.federation.deployment.schema.orders import ERROR, FLOWER
from fellrec.federation.deployment.schema.pieces import (
    Explained,
    Part,
    Shapes,
    cut_fields,
    module_of,
    shapes_of,
    split_call,
    split_letter,
    split_object,
)
from fellrec.federation.deployment.schema.service import CALLS, STREAM
from fellrec.split.service.recorder import Record


class Explainer:
    """Explains the messages of one deployment's recordings, in their order."""

    def __init__(self) -> None:
        self.dimensions: dict[str, int] = {}
        self._adapters: dict[str, Shapes] = {}
        self._asked: dict[tuple[str, int], tuple[str, int]] = {}

    def explain(self, record: Record) -> Explained:
        """Split a message; UndeclaredError names the first thing that is not declared."""
        what = f"{record.kind} {record.direction}, client {record.client!r}"
        try:
            explained = self._explain(record)
        except UndeclaredError as error:
            raise UndeclaredError(f"{what}: {error}") from None
        except (ValueError, struct.error, LookupError, TypeError, AttributeError) as error:
            raise UndeclaredError(f"{what}: can't be read ({error!r})") from None
        if b"".join(part.data for part in explained.parts) != record.payload:
            raise UndeclaredError(f"{what}: its fields are not all of it")
        return explained

    def _explain(self, record: Record) -> Explained:
        received = record.direction == "received"
        match record.kind:
            case "Step" if received:
                return self._step(record)
            case "Reply" if not received:
                return self._reply(record)
            case "Letter":
                return self._letter(record)
            case kind if kind in CALLS:
                told = CALLS[kind]
                parts = list(split_call(told, record.payload))
                from_trunk = told.sender == TRUNK
                self._agreed(TRUNK, parts)
            case kind if kind in STREAM:
                told = STREAM[kind]
                parts = list(split_object(told, record.payload.decode()))
                from_trunk = told.sender == TRUNK
            case _:
                raise UndeclaredError("a message of this kind and direction is not declared")
        if from_trunk == received:
            raise UndeclaredError("it goes the wrong way")
        return _told(record, told, parts)

    # --- frames ------------------------------------------------------------------------------

    def _step(self, record: Record) -> Explained:
        numbers, parts, rest = cut_fields(STEP, record.payload)
        if hashlib.blake2b(rest, digest_size=16).digest() != parts[-1].data:
            raise UndeclaredError("the digest is not the frame's")
        kind, positions = "end", 0
        if rest:
            rule, positions, frame = self._frame("Step", record.client, rest)
            kind, parts = rule.name, [*parts, *frame]
        self._asked[record.client, numbers["number"]] = kind, positions
        return Explained(record.client, CLIENT, TRUNK, kind, tuple(parts))

    def _reply(self, record: Record) -> Explained:
        numbers, parts, rest = cut_fields(REPLY, record.payload)
        asked, due = self._asked.get((record.client, numbers["number"]), ("nothing", 0))
        kind, positions = "end", 0
        answers: tuple[str, ...] = ("end",)
        if rest:
            rule, positions, frame = self._frame("Reply", record.client, rest)
            kind, parts, answers = rule.name, [*parts, *frame], rule.answers
        if kind != "ERROR" and (asked not in answers or positions != due):
            raise UndeclaredError(f"{kind} of {positions} positions answers {asked} of {due}")
        return Explained(record.client, TRUNK, CLIENT, kind, tuple(parts))

    def _frame(self, carrier: str, client: str, data: bytes) -> tuple[FrameRule, int, list[Part]]:
        """Split a frame: its rule, how many positions it has, its parts."""
        values, parts, rest = cut_fields(FRAME, data)
        rule, flags = FRAMES.get(values["kind"]), values["flags"]
        if rule is None or carrier not in rule.sent or values["codec"] >= len(CODECS):
            raise UndeclaredError(f"a frame of kind {values['kind']}, codec {values['codec']}")
        if rest:
            raise UndeclaredError(f"{rule.name} goes on for {len(rest)} bytes after its last part")
        if flags & rule.must != rule.must or flags & ~(rule.must | rule.may):
            raise UndeclaredError(f"{rule.name} has flags {flags:#x}, which are not declared")
        for counts, has in (
            (("b",), flags & (LENGTHS | POSITIONS | BEAMS)),
            (("n", "d"), flags & TENSOR),
            (("m",), rule.name == "ERROR"),
        ):
            if not has and any(values[each] for each in counts):
                raise UndeclaredError(f"{rule.name} counts {' and '.join(counts)} of what it lacks")
        if flags & TENSOR:
            self._agree("width", values["d"])
        own = next(part.data for part in parts if part.name == "client").decode()
        if own != client:
            raise UndeclaredError(f"{rule.name} names client {own!r}")
        lengths = next((part.data for part in parts if part.name == "lengths"), b"")
        if lengths and sum(struct.unpack(f"<{values['b']}i", lengths)) != values["n"]:
            raise UndeclaredError("lengths do not add up to the positions")
        return rule, values["n"], [_ledgered(part, rule) for part in parts]

    # --- Flower ------------------------------------------------------------------------------

    def _letter(self, record: Record) -> Explained:
        kind, group, parts = split_letter(record.payload)
        received = record.direction == "received"
        if kind == "Error":
            told = ERROR
        else:
            told = FLOWER[kind]
            self._agreed(CLIENT, parts)
        if (told.sender == COORDINATOR) == received:
            raise UndeclaredError(f"{kind} goes the wrong way")
        explained = _told(record, told, parts, kind)
        orders = {key.name for key in told.keys} if told.sender == COORDINATOR else set()
        due = str(explained.value("round")) if "round" in orders else "roll"
        if (orders and group != due) or not (group == "roll" or group.isdecimal()):
            raise UndeclaredError(f"{kind} is of the group {group[:40]!r}")
        return explained

    # --- what messages have to agree on ------------------------------------------------------

    def _agreed(self, side: str, parts: Sequence[Part]) -> None:
        """Check what a message says of dimensions, and its adapter if there is one."""
        for part in parts:
            if part.dimension:
                self._agree(part.dimension, int(part.data))
        shapes = shapes_of(parts)
        if shapes:
            self._adapter(side, shapes)

    def _adapter(self, side: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Check an adapter's names and shapes: those of the first one, or some of them."""
        known = self._adapters.setdefault(side, dict(shapes))
        for name, shape in shapes.items():
            if known.get(name) != shape:
                raise UndeclaredError(f"the adapter has {name} of {shape}, the first one had not")
            self._tensor(side, name, shape)

    def _tensor(self, side: str, name: str, shape: tuple[int, ...]) -> None:
        for rule in TENSORS:
            found = rule.pattern.fullmatch(name)
            if found and (rule.trunk or side == CLIENT) and len(shape) == len(rule.shape):
                module = module_of(found.groupdict().get("module", ""))
                for dimension, size in zip(rule.shape, shape, strict=True):
                    self._agree(dimension.replace("MODULE", module), size)
                return
        raise UndeclaredError(f"the tensor {name} of {shape} is not declared")

    def _agree(self, dimension: str, size: int) -> None:
        if self.dimensions.setdefault(dimension, size) != size:
            raise UndeclaredError(
                f"{dimension} is {size}, {self.dimensions[dimension]} elsewhere in the recording"
            )


def _told(record: Record, told: Told, parts: Sequence[Part], kind: str = "") -> Explained:
    return Explained(record.client, told.sender, told.receiver, kind or record.kind, tuple(parts))


def _ledgered(part: Part, rule: FrameRule) -> Part:
    """Say what the ledger calls a frame's part."""
    if part.name.startswith("tensor"):
        return replace(part, ledger=rule.ledger)
    return replace(part, ledger="scalar" if part.name == "scalar" else "layout")
