"""Everything that a coordinator sends and receives through Flower, kept in a file.

A message is recorded as a u32 (little-endian), so many bytes of JSON, then the values of its fields
one after another, texts as UTF-8 and arrays as the bytes that Flower carries. The JSON says what it
is about (`subject`, Flower's message type; `group`, Flower's group id) and lists every field of
every record in it: `record`, `form`, `key`, `dtype`, `shape`, `stype`, `bytes`. A field that no
order of ours has is listed like any other. Flower's own answers for a node have an `error`, its
code, and its reason as their one field.

Flower adds by itself, and it is not recorded: the run's number, numbers of nodes and tasks, a
message's id and that of the message it answers, when it was made, how long it is good for; the
name and public key under which a SuperNode is registered, its heartbeats and its address. The
SuperLink passes all of it on and sees the same messages as the coordinator.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.app import Message as FlowerMessage
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid

from fellrec.split.service.recorder import Note

LETTER = "Letter"
"""The kind of all these records."""

_SIZE = struct.Struct("<I")
_Found = tuple[str, str, str, str, tuple[int, ...], str, bytes]
"""A field: record, form, key, dtype, shape, stype, its bytes."""


class RecordedGrid(Grid):
    """A grid that takes note of every message; clients go by the numbers of their nodes."""

    def __init__(self, grid: Grid, record: Note) -> None:
        self._grid = grid
        self._record = record

    def push_messages(self, messages: Iterable[FlowerMessage]) -> Iterable[str]:
        """Send messages."""
        return self._grid.push_messages(self._noted_all(messages))

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[FlowerMessage]:
        """Take the answers that are there."""
        return [self._received(each) for each in self._grid.pull_messages(message_ids)]

    def send_and_receive(
        self, messages: Iterable[FlowerMessage], *, timeout: float | None = None
    ) -> Iterable[FlowerMessage]:
        """Send messages and wait for their answers."""
        noted = self._noted_all(messages)
        return [
            self._received(each) for each in self._grid.send_and_receive(noted, timeout=timeout)
        ]

    def get_node_ids(self) -> Iterable[int]:
        """Return the numbers of the nodes that are connected."""
        return self._grid.get_node_ids()

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Return the nodes that are connected."""
        return self._grid.get_nodes()

    def set_run(self, run: Any) -> None:
        """Set the run."""
        self._grid.set_run(run)

    @property
    def run(self) -> Any:
        """The run."""
        return self._grid.run

    def create_message(self, *args: Any, **kwargs: Any) -> FlowerMessage:
        """Make a message."""
        return self._grid.create_message(*args, **kwargs)

    def _noted_all(self, messages: Iterable[FlowerMessage]) -> list[FlowerMessage]:
        noted = list(messages)
        for each in noted:
            self._record("sent", str(each.metadata.dst_node_id), LETTER, written(each))
        return noted

    def _received(self, message: FlowerMessage) -> FlowerMessage:
        self._record("received", str(message.metadata.src_node_id), LETTER, written(message))
        return message


def written(message: FlowerMessage) -> bytes:
    """Write a message down as the module says."""
    head: dict[str, Any] = {
        "subject": message.metadata.message_type,
        "group": message.metadata.group_id,
    }
    fields, values = [], []
    found: list[_Found]
    if message.has_error():
        head["error"] = message.error.code
        found = [("", "Error", "reason", "str", (), "", (message.error.reason or "").encode())]
    else:
        found = list(_fields(message))
    for record, form, key, dtype, shape, stype, value in found:
        fields.append(
            {
                "record": record,
                "form": form,
                "key": key,
                "dtype": dtype,
                "shape": list(shape),
                "stype": stype,
                "bytes": len(value),
            }
        )
        values.append(value)
    head["fields"] = fields
    text = json.dumps(head, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")
    return b"".join([_SIZE.pack(len(text)), text, *values])


def _fields(message: FlowerMessage) -> Iterator[_Found]:
    """Yield each field of every record."""
    for name, record in message.content.items():
        form = type(record).__name__
        if isinstance(record, ArrayRecord):
            for key, array in record.items():
                yield name, form, key, array.dtype, array.shape, array.stype, array.data
        elif isinstance(record, ConfigRecord | MetricRecord):
            for key, value in record.items():
                yield name, form, key, type(value).__name__, (), "", _value(value)
        else:
            yield name, form, "", "", (), "", repr(record).encode(errors="replace")


def _value(value: object) -> bytes:
    """Return what a record's value is in bytes: as it is, or as text."""
    if isinstance(value, bytes):
        return value
    return str(value).encode(errors="replace")
