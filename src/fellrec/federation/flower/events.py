"""What a ServerApp's process says while it works: lines for Flower's log, and a file to follow."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fellrec.balance import Spread
from fellrec.errors import ConfigError
from fellrec.federation.client import TrainReport
from fellrec.federation.observer import Observer, RoundRecord
from fellrec.files import append_line, finite


class Events(Observer):
    """Prints, and writes a JSON object a line to a file if there is one: `event` and its fields."""

    def __init__(self) -> None:
        self._path: Path | None = None

    def to(self, path: Path | None) -> None:
        """Write to this file from now on; ConfigError where that can't be."""
        self._path = path
        try:
            self._tell("begun", "", pid=os.getpid())
        except OSError as error:
            self._path = None  # what follows, this refusal first, is printed alone
            raise ConfigError(
                f"run configuration: events: {path} can't be written ({error.strerror}); name a "
                "file in a folder that is there"
            ) from None

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
        line = f"round {record.round + 1} is saved; validation: {scores}"
        self._tell("round_ends", line, record=asdict(record))

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


def replay(line: str, observer: Observer) -> None:
    """Tell an observer what a line of the file says; what ends a run is not its business."""
    told = json.loads(line)
    match told.pop("event"):
        case "note":
            observer.note(told["text"])
        case "clients":
            observer.clients(told["table"], told["dropped"])
        case "round_begins":
            observer.round_begins(told["round"], told["rounds"], told["drawn"])
        case "round_ends":
            observer.round_ends(_record(told["record"]))


def _record(told: dict[str, Any]) -> RoundRecord:
    """Make a record again; what JSON could not say is NaN."""

    def numbers(values: dict[str, Any]) -> dict[str, Any]:
        return {key: math.nan if value is None else value for key, value in values.items()}

    reports = {name: TrainReport(**numbers(each)) for name, each in told.pop("reports").items()}
    spread, valid = Spread(**numbers(told.pop("spread"))), numbers(told.pop("valid"))
    return RoundRecord(reports=reports, spread=spread, valid=valid, **told)
