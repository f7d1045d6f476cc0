"""The server's folder: adapters and moments of each run's clients, by label.

A label is the number of rounds that an adapter went through. What a client trains in round t is
written to `<t + 1>.trained`, what the coordinator makes of it to `<t + 1>.candidate`; a commit
renames the candidate to `<t + 1>`. Trained ones and candidates do not outlive the process, nor the
coordinator that began the run. Two labels are kept: a coordinator that dies between the trunk's
commit and its own goes on from the label before.

    <run>/run.json                                        digests of base and settings
    <run>/clients/<id>/<label>/{adapter,optimiser,best_adapter}.safetensors

A label of 0 is the trunk's initial adapter and is in no file. Moments never leave this folder.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from fellrec.errors import RunError, WireError
from fellrec.files import read_json, read_tensors, sync_folder, write_json, write_tensors
from fellrec.models.optimiser import without
from fellrec.split.frames import MAX_CLIENT_BYTES
from fellrec.split.service.messages import Kept, Trained

_TRAINED, _CANDIDATE, _OLD = ".trained", ".candidate", ".old"
Tensors = Mapping[str, Tensor]


def check_name(client: str) -> str:
    """Return a client's name if it can be a folder's; WireError otherwise."""
    odd = {"/", "\\", "\0"} & set(client) or client in ("", ".", "..")
    if odd or not client.isprintable() or len(client.encode()) > MAX_CLIENT_BYTES:
        raise WireError(f"{client[:MAX_CLIENT_BYTES]!r} can't name a client")
    return client


class AdapterStore:
    """One run's part of the folder. Safe to share between threads."""

    def __init__(self, folder: Path, run: str) -> None:
        self.run = run
        self._path = folder / run
        self._clients = self._path / "clients"
        self._lock = threading.RLock()

    def recover(self) -> None:
        """Drop what was never committed, and finish or undo a commit that was cut short."""
        with self._lock:
            for client in self._names():
                folder = self._clients / client
                for old in folder.glob(f"*{_OLD}"):
                    label = old.with_name(old.name.removesuffix(_OLD))
                    if label.exists():
                        shutil.rmtree(old)
                    else:
                        old.rename(label)
                self.drop(client)

    def agree(self, manifest: str, agreed: str) -> None:
        """Note what a new run is about; RunError when it was about something else before."""
        with self._lock:
            now = {"run": self.run, "manifest": manifest, "settings": agreed}
            path = self._path / "run.json"
            if not path.exists():
                self._clients.mkdir(parents=True, exist_ok=True)
                write_json(path, now)
                sync_folder(self._path)
                sync_folder(self._path.parent)
            before = read_json(path)
            if before != now:
                key = next(key for key in now if before.get(key) != now[key])
                raise RunError(
                    f"run {self.run!r} is on this trunk with another {key}; "
                    "give the new run another name, or remove its folder there"
                )

    @property
    def known(self) -> bool:
        """Whether this run ever began here."""
        return (self._path / "run.json").exists()

    def labels(self) -> dict[str, tuple[int, ...]]:
        """Return the committed labels of each client, sorted."""
        with self._lock:
            return {client: tuple(sorted(self._committed(client))) for client in self._names()}

    def adapter(self, client: str, label: int, *, best: bool = False) -> dict[str, Tensor] | None:
        """Read an adapter: of a candidate if there is one of this label; None if it is not here."""
        name = "best_adapter" if best else "adapter"
        with self._lock:
            for suffix in ("", _CANDIDATE) if best else (_CANDIDATE, ""):
                path = self._file(client, label, name, suffix)
                if path.exists():
                    return read_tensors(path)
            return None

    def holds(self, client: str, label: int, *, best: bool = False) -> bool:
        """Whether `adapter` would find one."""
        name = "best_adapter" if best else "adapter"
        with self._lock:
            return any(self._file(client, label, name, s).exists() for s in ("", _CANDIDATE))

    def moments(self, client: str, label: int) -> dict[str, Tensor]:
        """Read a committed label's moments; none where there are none."""
        with self._lock:
            path = self._file(client, label, "optimiser")
            return read_tensors(path) if path.exists() else {}

    def receive(self, client: str, label: int, adapter: Tensors, *, best: bool = False) -> None:
        """Take over the coordinator's word on a committed label.

        Moments stay only where the adapter is the one that they belong to.
        """
        with self._lock:
            held = self.adapter(client, label, best=best)
            if held is not None and _equal(held, adapter):
                return
            path = self._file(client, label, "best_adapter" if best else "adapter")
            if not best:  # what belonged to another adapter of this label
                for other in ("optimiser", "best_adapter"):
                    self._file(client, label, other).unlink(missing_ok=True)
            write_tensors(path, adapter)
            self._sync(client, label)

    def rewind(self, client: str, label: int) -> None:
        """Forget labels after this one: the coordinator never completed the rounds they are of."""
        with self._lock:
            for later in self._committed(client):
                if later > label:
                    shutil.rmtree(self._folder(client, later))

    def put_trained(
        self, client: str, label: int, adapter: Tensors, moments: Tensors, counted: Trained
    ) -> None:
        """Write what a session trained; it is complete once its counts are there."""
        with self._lock:
            write_tensors(self._file(client, label, "adapter", _TRAINED), adapter)
            write_tensors(self._file(client, label, "optimiser", _TRAINED), moments)
            path = self._folder(client, label, _TRAINED) / "trained.json"
            write_json(path, counted.model_dump())
            self._sync(client, label, _TRAINED)

    def trained(self, client: str, label: int) -> tuple[Trained, dict[str, Tensor]] | None:
        """Read back what was trained; None if it is not here."""
        with self._lock:
            path = self._folder(client, label, _TRAINED) / "trained.json"
            if not path.exists():
                return None
            counted = Trained.model_validate(read_json(path))
            return counted, read_tensors(self._file(client, label, "adapter", _TRAINED))

    def put_candidate(
        self, client: str, label: int, adapter: Tensors, reset: Iterable[str]
    ) -> None:
        """Write the adapter that may become a client's, with the moments of its training."""
        with self._lock:
            moments_path = self._file(client, label, "optimiser", _TRAINED)
            if not moments_path.exists():
                raise WireError(f"client {client!r} trained nothing for label {label} here")
            moments = without(read_tensors(moments_path), reset)
            write_tensors(self._file(client, label, "optimiser", _CANDIDATE), moments)
            write_tensors(self._file(client, label, "adapter", _CANDIDATE), adapter)

    def commit(self, labels: Mapping[str, Kept]) -> None:
        """Make candidates the clients' own. Nothing changes if one is missing: WireError."""
        with self._lock:
            for client, kept in labels.items():
                here = self._file(client, kept.label, "adapter", _CANDIDATE).exists()
                if not here and kept.label not in self._committed(client):
                    raise WireError(f"client {client!r} has no candidate of label {kept.label}")
            for client, kept in labels.items():
                if self._file(client, kept.label, "adapter", _CANDIDATE).exists():
                    self._commit(client, kept)

    def _commit(self, client: str, kept: Kept) -> None:
        candidate = self._folder(client, kept.label, _CANDIDATE)
        before = max((label for label in self._committed(client) if label < kept.label), default=0)
        best = self.adapter(client, kept.label) if kept.improved else None
        best = best or self.adapter(client, before, best=True)
        if best is not None:
            write_tensors(candidate / "best_adapter.safetensors", best)
        self._sync(client, kept.label, _CANDIDATE)
        own, old = self._folder(client, kept.label), self._folder(client, kept.label, _OLD)
        if own.exists():
            own.rename(old)
        candidate.rename(own)
        sync_folder(own.parent)
        shutil.rmtree(old, ignore_errors=True)
        keep = {kept.label, before}
        for label in self._committed(client) - keep:
            shutil.rmtree(self._folder(client, label))
        self.drop(client)

    def drop(self, client: str) -> None:
        """Forget what a client trained and was not committed."""
        with self._lock:
            for suffix in (_TRAINED, _CANDIDATE):
                for folder in (self._clients / client).glob(f"*{suffix}"):
                    shutil.rmtree(folder)

    def _names(self) -> Iterator[str]:
        if self._clients.exists():
            yield from (folder.name for folder in self._clients.iterdir() if folder.is_dir())

    def _committed(self, client: str) -> set[int]:
        folder = self._clients / client
        if not folder.exists():
            return set()
        return {int(entry.name) for entry in folder.iterdir() if entry.name.isdecimal()}

    def _folder(self, client: str, label: int, suffix: str = "") -> Path:
        return self._clients / check_name(client) / f"{label}{suffix}"

    def _file(self, client: str, label: int, name: str, suffix: str = "") -> Path:
        return self._folder(client, label, suffix) / f"{name}.safetensors"

    def _sync(self, client: str, label: int, suffix: str = "") -> None:
        folder = self._folder(client, label, suffix)
        for path in (folder, folder.parent, folder.parent.parent):
            sync_folder(path)


def _equal(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)
