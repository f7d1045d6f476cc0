"""What crossed the cut: bytes and tensors by client, round, direction and kind.

A run's claim about cost and about what leaves a client is this table and nothing else, so every
transport writes into one `Ledger`. It is kept in memory, summed, and appended to ``ledger.csv``
after each round; the sum of the file's lines is always the sum of what was recorded.

Kinds in use: "activation", "gradient" (tensors at the cuts), "layout" (headers, lengths, positions,
beams), "scalar" (clipping norms), "lora" and "dense" (adapters, once a round), "metrics".
"""

from __future__ import annotations

import csv
import io
import os
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fellrec.errors import RunError

Direction = Literal["up", "down"]
"""up: client to server; down: server to client."""

_Key = tuple[int, str, str, str]
_COLUMNS = ("round", "client", "direction", "kind", "count", "bytes")


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """One line of the ledger."""

    round: int
    client: str
    direction: str
    kind: str
    count: int
    bytes: int


class Ledger:
    """Counts what crossed. Safe to share between the threads of a server."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sums: dict[_Key, tuple[int, int]] = {}
        self._written: dict[_Key, tuple[int, int]] = {}

    def record(
        self, client: str, round: int, direction: Direction, kind: str, bytes: int, tensors: int = 1
    ) -> None:
        """Count ``tensors`` tensors of ``bytes`` bytes in all, as they were on the wire.

        Raises:
            ValueError: the direction is neither "up" nor "down", or a count is negative.

        """
        if direction not in ("up", "down") or bytes < 0 or tensors < 0:
            raise ValueError(f"direction {direction!r}, bytes {bytes}, tensors {tensors}")
        self._add(LedgerRow(round, client, direction, kind, tensors, bytes))

    def record_parts(
        self, client: str, round: int, direction: Direction, parts: Mapping[str, int]
    ) -> None:
        """Count one frame, divided into kinds as by `wire.frame_parts`."""
        for kind, size in parts.items():
            self.record(client, round, direction, kind, size)

    def merge(self, other: Ledger) -> None:
        """Add everything that another ledger counted."""
        for row in other.rows():
            self._add(row)

    def rows(self) -> list[LedgerRow]:
        """Return the sums, sorted by round, client, direction, kind."""
        with self._lock:
            return [LedgerRow(*key, *self._sums[key]) for key in sorted(self._sums)]

    def totals(
        self, *, client: str | None = None, round: int | None = None, kind: str | None = None
    ) -> dict[str, int]:
        """Return count_up, count_down, bytes_up and bytes_down of the rows that fit."""
        totals = dict.fromkeys(("count_up", "count_down", "bytes_up", "bytes_down"), 0)
        for row in self.rows():
            if client in (None, row.client) and round in (None, row.round):
                if kind not in (None, row.kind):
                    continue
                totals[f"count_{row.direction}"] += row.count
                totals[f"bytes_{row.direction}"] += row.bytes
        return totals

    def append_csv(self, path: str | os.PathLike[str]) -> None:
        """Append what was recorded since the last write; a first write starts the file.

        The file is replaced as a whole, so a crash leaves the old one or the new one. Later records
        of a round already written become further lines of it: lines of one key add up.

        Raises:
            RunError: the file is there and is not a ledger.

        """
        path = Path(path)
        with self._lock:
            news = [
                (*key, count - before[0], size - before[1])
                for key, (count, size) in sorted(self._sums.items())
                if (count, size) != (before := self._written.get(key, (0, 0)))
            ]
            text = io.StringIO()
            writer = csv.writer(text, lineterminator="\n")
            if path.exists():
                old = path.read_text("utf-8")
                if old.split("\n", 1)[0] != ",".join(_COLUMNS):
                    raise RunError(f"{path}: not a ledger; move it away")
                text.write(old)
            else:
                writer.writerow(_COLUMNS)
            writer.writerows(news)
            _replace(path, text.getvalue())
            self._written = dict(self._sums)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Ledger:
        """Read a ledger back. What it holds counts as written: appending goes on where it ended.

        Raises:
            RunError: the file is missing, or a line is not a ledger's; names the line.

        """
        ledger = cls()
        try:
            with Path(path).open(encoding="utf-8", newline="") as file:
                for row in _parse(path, csv.reader(file)):
                    ledger._add(row)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise RunError(f"{path}: can't be read as a ledger: {error}") from error
        ledger._written = dict(ledger._sums)
        return ledger

    def _add(self, row: LedgerRow) -> None:
        key = (row.round, row.client, row.direction, row.kind)
        with self._lock:
            count, size = self._sums.get(key, (0, 0))
            self._sums[key] = (count + row.count, size + row.bytes)


def _parse(path: str | os.PathLike[str], lines: Iterator[list[str]]) -> Iterator[LedgerRow]:
    columns = ",".join(_COLUMNS)
    if tuple(next(lines, ())) != _COLUMNS:
        raise RunError(f"{path}:1: expected the columns {columns}")
    for number, fields in enumerate(lines, start=2):
        try:
            round_, client, direction, kind, count, size = fields
            row = LedgerRow(int(round_), client, direction, kind, int(count), int(size))
        except ValueError:
            raise RunError(f"{path}:{number}: expected {columns}") from None
        if direction not in ("up", "down") or min(row.round, row.count, row.bytes) < 0:
            raise RunError(f"{path}:{number}: direction is up or down, numbers are not negative")
        yield row


def _replace(path: Path, text: str) -> None:
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", newline="", dir=path.parent, prefix=path.name, delete=False
    ) as file:
        try:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            os.replace(file.name, path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise
