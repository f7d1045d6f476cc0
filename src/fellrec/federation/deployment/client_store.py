"""What a client keeps on its own machine: its tensors and logs of the last rounds, by label.

A label is the number of rounds that an adapter went through. A round is prepared in
`rounds/<label>.partial/` and renamed when the client has taken its mixture; the label that it began
with stays beside it, because the coordinator may yet lose the round and come back to that. Each
label holds the logs up to it, so that they never count a round that was lost.

    config.toml                    the recipe
    client.json                    who keeps this, and where its data and keys are
    rounds/<label>/                adapter, private, optimiser, best_adapter, best_private
                                   metrics.jsonl, ledger.csv
    contributed.json               rounds for which it may have sent uploads, where that is counted
    clients/<id>/                  best and last tensors once the run has ended, scores.parquet
    metrics.jsonl, ledger.csv      the logs once the run has ended
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from fellrec.errors import RunError
from fellrec.federation.store import CLIENT, LOGS
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

_BEST = ("adapter", "private")


class ClientStore:
    """Reads and writes one client's folder of a run."""

    def __init__(self, path: Path, client: str) -> None:
        self.path = path
        self.client = client
        self._rounds = path / "rounds"

    def labels(self) -> list[int]:
        """Return the labels that are held, sorted."""
        if not self._rounds.exists():
            return []
        return sorted(int(p.name) for p in self._rounds.iterdir() if p.name.isdecimal())

    def contribute(self) -> int:
        """Count one more round for which this client may send an upload: how many were before.

        Counted before it trains: what a crash may have let out is spent. RunError where the count
        is damaged, since nobody knows then what is left of the users' privacy.
        """
        path = self.path / "contributed.json"
        before = read_json(path) if path.exists() else 0
        if not isinstance(before, int) or before < 0:
            raise RunError(f"{path}: is damaged; what was spent of privacy is not known any more")
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(path, before + 1)
        sync_folder(self.path)
        return before

    def read(self, label: int, name: str) -> dict[str, Tensor] | None:
        """Read one file of a label; None where it is not here."""
        path = self._file(str(label), name)
        return read_tensors(path) if path.exists() else None

    def take_over(self, label: int, name: str, adapter: Mapping[str, Tensor]) -> None:
        """Keep the coordinator's copy of this client's adapter, or best one, for want of its own.

        What never leaves the client is lost with its folder: private tensors and moments start
        anew. The label appears whole or not at all: one that is held can be gone on from.
        """
        partial, target = self.preparing(label), self._rounds / str(label)
        shutil.rmtree(partial, ignore_errors=True)
        link_tree(target, partial)
        write_tensors(self._file(partial.name, name), adapter)
        sync_folder(partial)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
        sync_folder(self._rounds)

    def complete(self, label: int, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Write a file that a held label lacks; what it has stays."""
        path = self._file(str(label), name)
        if not path.exists():
            write_tensors(path, tensors)

    def begin(self, label: int, before: int) -> Path:
        """Return the folder in which a label is prepared, with the logs of the one before.

        What was half-prepared goes, and so do labels after `before`: the coordinator lost them.
        """
        self._rounds.mkdir(parents=True, exist_ok=True)
        for folder in self._rounds.iterdir():
            number = folder.name.removesuffix(".partial")
            if folder.name != number or (number.isdecimal() and int(number) > before):
                shutil.rmtree(folder)
        partial = self.preparing(label)
        partial.mkdir()
        for log in LOGS:
            source = self._rounds / str(before) / log
            if source.exists():
                write_bytes(partial / log, source.read_bytes())
        return partial

    def preparing(self, label: int) -> Path:
        """Return the folder in which a label is prepared; it may not be there."""
        return self._rounds / f"{label}.partial"

    def put(self, label: int, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Write one file of the label in preparation."""
        write_tensors(self._file(f"{label}.partial", name), tensors)

    def prepared(self, label: int, name: str) -> dict[str, Tensor]:
        """Read back one file of the label in preparation; RunError where there is none."""
        return read_tensors(self._file(f"{label}.partial", name))

    def seal(self, label: int, before: int, *, improved: bool) -> None:
        """Make the prepared label one that is held, beside the one that it came from.

        improved: whether it is the best so far; else the best of `before` stays the best.
        """
        partial, target = self.preparing(label), self._rounds / str(label)
        for name in _BEST:
            source = (
                self._file(partial.name, name)
                if improved
                else self._file(str(before), f"best_{name}")
            )
            if source.exists():
                link_or_copy(source, self._file(partial.name, f"best_{name}"))
        sync_folder(partial)
        if target.exists():
            shutil.rmtree(target)
        partial.rename(target)
        sync_folder(self._rounds)
        for other in self.labels():
            if other not in (label, before):
                shutil.rmtree(self._rounds / str(other))

    def publish(self, label: int, best: Mapping[str, Mapping[str, Tensor]]) -> Path:
        """Put the best and the last tensors where they stay, and the logs; return their folder.

        best: adapter and private tensors that the test was made with.
        """
        folder = self.path / CLIENT / self.client
        for name in _BEST:
            last = self.read(label, name)
            write_tensors(folder / f"best_{name}.safetensors", best[name])
            write_tensors(folder / f"last_{name}.safetensors", best[name] if last is None else last)
        for log in LOGS:
            source, target = self._rounds / str(label) / log, self.path / log
            target.unlink(missing_ok=True)
            if source.exists():
                write_bytes(target, source.read_bytes())
        return folder

    def _file(self, folder: str, name: str) -> Path:
        return self._rounds / folder / f"{name}.safetensors"
