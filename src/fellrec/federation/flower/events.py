"""What a ServerApp's process says while it works: lines for Flower's log, and a file to follow."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fellrec.federation.observer import Observer, RoundRecord
from fellrec.files import append_line, finite


class Events(Observer):
    """Prints, and writes a JSON object a line to a file if there is one: `event` and its fields."""

    def __init__(self) -> None:
        self._path: Path | None = None

    def to(self, path: Path | None) -> None:
        """Write to this file from now on."""
        self._path = path
        self._tell("begun", "", pid=os.getpid())

    def note(self, text: str) -> None:
        """Say something in passing."""
        self._tell("note", text, text=text)

    def clients(self, table: Sequence[Mapping[str, str | int | float]], dropped: int) -> None:
        """Tell who takes part."""
        names = ", ".join(str(row["client"]) for row in table)
        self._tell("clients", f"clients: {names}", table=list(map(dict, table)), dropped=dropped)

    def round_begins(self, round: int, rounds: int, drawn: Sequence[str]) -> None:
        """Tell that a round begins."""
        line = f"round {round + 1} of {rounds}: {len(drawn)} clients"
        self._tell("round_begins", line, round=round, rounds=rounds, drawn=list(drawn))

    def round_ends(self, record: RoundRecord) -> None:
        """Tell how a round ended."""
        scores = ", ".join(f"{name} {score:.3f}" for name, score in record.valid.items())
        self._tell(
            "round_ends",
            f"round {record.round + 1} is saved; validation: {scores}",
            round=record.round,
            valid=dict(record.valid),
            loss={name: report.loss for name, report in record.reports.items()},
            failed=dict(record.failed),
            seconds=record.seconds,
        )

    def finished(self) -> None:
        """Tell that the run is complete."""
        self._tell("finished", "the run is complete")

    def failed(self, reason: str) -> None:
        """Tell why the run ended before its time."""
        self._tell("failed", f"error: {reason}", reason=reason)

    def _tell(self, event: str, line: str, **fields: Any) -> None:
        if line:
            print(line, flush=True)
        if self._path is not None:
            append_line(self._path, json.dumps(finite({"event": event, **fields})))
