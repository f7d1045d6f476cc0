"""Everything that a server process receives and sends, kept in a file: what it could have seen.

A file is ``FLRREC1\\n``, then a record for each message, in the order in which they came and went
(little-endian)::

    u8 direction (1 received, 2 sent)   u8 bytes of the kind   u16 bytes of the client's name
    u64 bytes of the message            kind, client (UTF-8)   the message

The message is what the process read from the wire, or handed to it, byte for byte. gRPC adds what
any of its calls has: the method's path, the caller's certificate, status and times; none of it is
chosen by client code. A recording of a deployment holds what the server sees, adapters included:
treat it as such.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Literal, Self

from fellrec.errors import RunError, WireError

Direction = Literal["received", "sent"]
Note = Callable[[Direction, str, str, bytes], None]
"""Takes note of a message: direction, client, kind, bytes."""

SUFFIX = ".recording"
_MAGIC = b"FLRREC1\n"
_HEAD = struct.Struct("<BBHQ")
_DIRECTIONS: tuple[Direction, ...] = ("received", "sent")


@dataclass(frozen=True)
class Record:
    """One message. client: whom it came from or went to, as the process knows it."""

    direction: Direction
    client: str
    kind: str
    payload: bytes


def unrecorded(direction: Direction, client: str, kind: str, payload: bytes) -> None:
    """Take no note of a message."""


class Recorder:
    """Appends messages to a new file in a folder; may be called from any thread.

    name: of the process, the file's name begins with it. Nothing is kept in memory. Raises RunError
    when the file can't be made or written.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._lock = threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.path, self._handle = _create(folder, name)
            _write(self._handle, [_MAGIC])
        except OSError as error:
            raise RunError(f"{folder}: can't be recorded to ({error.strerror})") from None

    def __call__(self, direction: Direction, client: str, kind: str, payload: bytes) -> None:
        """Append a message. Nothing is taken down any more once the recorder is closed."""
        names = [kind.encode()[:255], client.encode()[:65_535]]
        number = _DIRECTIONS.index(direction) + 1
        head = _HEAD.pack(number, len(names[0]), len(names[1]), len(payload))
        with self._lock:
            if self._handle < 0:
                return
            try:
                _write(self._handle, [head, *names, payload])
            except OSError as error:
                raise RunError(f"{self.path}: can't be written ({error.strerror})") from None

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._handle >= 0:
                os.close(self._handle)
                self._handle = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def read_records(path: Path, *, max_bytes: int = 1 << 30) -> Iterator[Record]:
    """Yield the messages of a recording, one at a time in memory.

    max_bytes: of one message. Raises RunError for a file that can't be opened, WireError for one
    that is no recording, is damaged or was cut off.
    """
    try:
        handle = path.open("rb")
    except OSError as error:
        raise RunError(f"{path}: can't be read ({error.strerror})") from None
    with handle:
        if handle.read(len(_MAGIC)) != _MAGIC:
            raise WireError(f"{path}: is no recording of this version")
        left = os.fstat(handle.fileno()).st_size - len(_MAGIC)
        while left:
            record, size = _record(handle, path, left, max_bytes)
            left -= size
            yield record


def _record(handle: BinaryIO, path: Path, left: int, max_bytes: int) -> tuple[Record, int]:
    """Read one record; sizes are compared with what the file has before anything is read."""
    if left < _HEAD.size:
        raise WireError(f"{path}: ends within a record; its process was killed, or it is damaged")
    number, kind, client, size = _HEAD.unpack(handle.read(_HEAD.size))
    whole = _HEAD.size + kind + client + size
    if not 1 <= number <= len(_DIRECTIONS):
        raise WireError(f"{path}: has a record of the unknown direction {number}")
    if size > max_bytes:
        raise WireError(f"{path}: has a message of {size} bytes, the limit is {max_bytes}")
    if whole > left:
        raise WireError(f"{path}: ends within a record; its process was killed, or it is damaged")
    try:
        names = handle.read(kind).decode(), handle.read(client).decode()
    except UnicodeDecodeError:
        raise WireError(f"{path}: has a record whose names are not UTF-8") from None
    payload = handle.read(size)
    if len(payload) != size:
        raise WireError(f"{path}: became shorter while it was read")
    return Record(_DIRECTIONS[number - 1], names[1], names[0], payload), whole


def _create(folder: Path, name: str) -> tuple[Path, int]:
    """Make a file that was not there: every start of a process has one of its own."""
    number = 0
    while True:
        path = folder / f"{name}-{number}{SUFFIX}"
        try:
            return path, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        except FileExistsError:
            number += 1


def _write(handle: int, parts: list[bytes]) -> None:
    """Write all parts with as few calls as there can be, so that a kill leaves whole records."""
    views = [memoryview(part) for part in parts if part]
    while views:
        done = os.writev(handle, views)
        while views and done >= len(views[0]):
            done -= len(views.pop(0))
        if views:
            views[0] = views[0][done:]
