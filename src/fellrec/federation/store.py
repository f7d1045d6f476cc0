"""The run directory: one complete state per finished round, and a pointer to the current one.

A round is prepared in `rounds/<t>.partial/`, synced, renamed to `rounds/<t>/`, and becomes current
when the pointer file is renamed; a crash at any line before that leaves the round before. Log files
grow past the pointer, so each state records their sizes and `resume` cuts them back. Files in a
finished round never change: clients that sat a round out, and a best adapter that stays the best,
are the same file under a second name.

    rounds/<t>/state.json                               round, bookkeeping per client, log sizes
    rounds/<t>/clients/<id>/{adapter,private,optimiser,best_adapter,best_private}.safetensors
    rounds/<t>/server/<id>/{adapter,optimiser,best_adapter}.safetensors
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from fellrec.errors import RunError
from fellrec.files import (
    link_or_copy,
    link_tree,
    read_json,
    read_tensors,
    sync_folder,
    write_bytes,
    write_json,
    write_tensors,
)

LOGS = ("metrics.jsonl", "ledger.csv")
CLIENT, SERVER = "clients", "server"
Files = Mapping[str, tuple[str, ...]]
ALL_FILES: Files = {
    CLIENT: ("adapter", "private", "optimiser", "best_adapter", "best_private"),
    SERVER: ("adapter", "optimiser", "best_adapter"),
}
COORDINATOR_FILES: Files = {side: ("adapter", "best_adapter") for side in (CLIENT, SERVER)}
"""What a coordinator keeps of clients that are elsewhere."""


@dataclass
class Standing:
    """What is kept per client between rounds.

    best_score: best validation score so far, None before the first. stale: rounds since. stopped:
    early stopping ended its training. label: rounds that were completed when it last completed one.
    """

    best_score: float | None = None
    best_round: int = 0
    stale: int = 0
    stopped: bool = False
    label: int = 0


@dataclass
class RunState:
    """round: finished rounds. standings: of who completed any. logs: their sizes. contributed:
    rounds for which each client sent an upload, completed or not.
    """

    round: int = 0
    standings: dict[str, Standing] = field(default_factory=dict)
    logs: dict[str, int] = field(default_factory=dict)
    contributed: dict[str, int] = field(default_factory=dict)


class RunStore:
    """Reads and writes one run directory.

    files: what each side keeps of a client, by round. served: what the names of the files begin
    with that hold the model a client is served by, the one of which the best is kept.
    """

    def __init__(
        self, path: Path, keep_rounds: int = 2, files: Files = ALL_FILES, served: str = ""
    ) -> None:
        self.path = path
        self.served = served
        self._rounds = path / "rounds"
        self._keep = keep_rounds
        self._files = files

    def state(self) -> RunState:
        """Return the current state; the beginning when no round has finished.

        Raises RunError when the pointer or the state it names is damaged.
        """
        pointer = self._rounds / "current"
        try:
            number = pointer.read_text("ascii").strip()
        except FileNotFoundError:
            return RunState()
        except (OSError, ValueError) as error:
            raise RunError(f"{pointer}: can't be read ({error})") from error
        if not number.isdecimal():
            raise RunError(f"{pointer}: names no round; write the number of a folder beside it")
        path = self._rounds / number / "state.json"
        raw: dict[str, Any] = read_json(path)
        try:
            standings = {str(name): Standing(**entry) for name, entry in raw["standings"].items()}
            logs = {log: int(size) for log, size in raw["logs"].items()}
            sent = {str(name): int(count) for name, count in raw.get("contributed", {}).items()}
            state = RunState(int(raw["round"]), standings, logs, sent)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise RunError(f"{path}: is damaged ({error!r})") from error
        if str(state.round) != number:
            raise RunError(f"{path}: is of round {state.round}")
        return state

    def resume(self) -> RunState:
        """Cut the logs back to the current state, drop what was half-prepared, and return it.

        Raises RunError when something that the state needs is damaged or missing.
        """
        state = self.state()
        self._check(state)
        for log in LOGS:
            self._cut(self.path / log, state.logs.get(log, 0), state.round)
        if self._rounds.exists():
            for folder in self._rounds.iterdir():
                number = folder.name.removesuffix(".partial")
                prepared = folder.name != number
                if number.isdecimal() and (prepared or int(number) > state.round):
                    shutil.rmtree(folder)
            self._prune(state.round)
        return state

    def _check(self, state: RunState) -> None:
        """Look for the files of every client that has completed a round."""
        for client in state.standings:
            for side, names in self._files.items():
                for name in names:
                    path = self._file(str(state.round), side, client, name)
                    if not path.is_file():
                        raise RunError(f"{path} is missing; the run can't be resumed without it")

    @staticmethod
    def _cut(path: Path, size: int, round: int) -> None:
        """Cut a log back to the size it had, and remove what a killed write left beside it."""
        for stray in path.parent.glob(path.name + 8 * "[a-z0-9_]"):
            stray.unlink()
        there = path.stat().st_size if path.exists() else 0
        if there < size:
            raise RunError(f"{path} is shorter than round {round} left it; it can't be resumed")
        if size:
            os.truncate(path, size)
        else:
            path.unlink(missing_ok=True)

    def begin(self, round: int) -> Path:
        """Return the empty folder in which the state after `round` rounds is prepared."""
        partial = self._rounds / f"{round}.partial"
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir(parents=True)
        return partial

    def carry(self, round: int, client: str) -> None:
        """Take a client's files over from the round before: it did not complete this one."""
        for side in (CLIENT, SERVER):
            target = self._rounds / f"{round}.partial" / side / client
            shutil.rmtree(target, ignore_errors=True)
            link_tree(self._rounds / str(round - 1) / side / client, target)

    def tensors(self, round: int, side: str, client: str, name: str) -> dict[str, Tensor] | None:
        """Read one file of a finished round; None where the client has none yet."""
        path = self._file(str(round), side, client, name)
        return read_tensors(path) if path.exists() else None

    def put(
        self, round: int, side: str, client: str, name: str, tensors: Mapping[str, Tensor]
    ) -> None:
        """Write one file of the round in preparation."""
        write_tensors(self._file(f"{round}.partial", side, client, name), tensors)

    def prepared(self, round: int, side: str, client: str, name: str) -> dict[str, Tensor]:
        """Read back one file of the round in preparation."""
        return read_tensors(self._file(f"{round}.partial", side, client, name))

    def keep_best(self, round: int, client: str, *, improved: bool) -> None:
        """Name this round's served adapter the best one, or keep the best one so far."""
        partial, before = self._rounds / f"{round}.partial", self._rounds / str(round - 1)
        for side, name in ((CLIENT, "adapter"), (CLIENT, "private"), (SERVER, "adapter")):
            source = (
                partial / side / client / f"{self.served}{name}.safetensors"
                if improved
                else before / side / client / f"best_{name}.safetensors"
            )
            if source.exists():
                link_or_copy(source, partial / side / client / f"best_{name}.safetensors")

    def commit(self, state: RunState) -> None:
        """Make the prepared round the current one, and drop rounds that are no longer kept."""
        state.logs = {
            log: (self.path / log).stat().st_size for log in LOGS if (self.path / log).exists()
        }
        partial = self._rounds / f"{state.round}.partial"
        write_json(partial / "state.json", asdict(state))
        for folder in [*(p for p in partial.rglob("*") if p.is_dir()), partial]:
            sync_folder(folder)
        partial.rename(self._rounds / str(state.round))
        sync_folder(self._rounds)
        sync_folder(self.path)  # the logs, whose sizes the state relies on
        write_bytes(self._rounds / "current", f"{state.round}\n".encode())
        sync_folder(self._rounds)
        self._prune(state.round)

    def _prune(self, current: int) -> None:
        for folder in self._rounds.iterdir():
            outdated = folder.name.isdecimal() and int(folder.name) <= current - self._keep
            if outdated and folder.is_dir():
                shutil.rmtree(folder)

    def _file(self, folder: str, side: str, client: str, name: str) -> Path:
        return self._rounds / folder / side / client / f"{name}.safetensors"

    def publish(self, round: int, client: str) -> bool:
        """Put a client's best and last adapters where they stay: `clients/<id>`, `server/<id>`.

        Returns whether there were any: a client that never completed a round has none.
        """
        if not self._file(str(round), CLIENT, client, "adapter").exists():
            return False
        for side in (CLIENT, SERVER):
            source = self._rounds / str(round) / side / client
            for name in ("adapter", "private"):
                for prefix, label in (("best_", "best"), ("", "last")):
                    file = source / f"{prefix}{name}.safetensors"
                    if file.exists():
                        target = self.path / side / client / f"{label}_{name}.safetensors"
                        link_or_copy(file, target)
        return True

    def publish_start(
        self, client: str, tensors: Mapping[str, Mapping[str, Mapping[str, Tensor]]]
    ) -> None:
        """Put the common start there, for a client that never completed a round.

        tensors: by side, then by file: adapter, private.
        """
        for side, files in tensors.items():
            for name, each in files.items():
                for label in ("best", "last"):
                    write_tensors(self.path / side / client / f"{label}_{name}.safetensors", each)
