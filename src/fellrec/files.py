"""Write files so that a crash leaves the old content or the new, never half of either."""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from fellrec.errors import RunError


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file through a temporary one beside it; parents are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    with temporary.open("wb") as handle:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(temporary, path)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def alone_in(path: Path, refusal: str, seconds: float = 0.0) -> Iterator[None]:
    """Keep other processes out of a folder; the lock is on the folder itself and ends with us.

    Raises RunError, with the text of `refusal`, when another process is still in there after so
    many seconds.
    """
    handle, until = os.open(path, os.O_RDONLY), time.monotonic() + seconds
    try:
        while not _locked(handle):
            if time.monotonic() >= until:
                raise RunError(f"{path}: {refusal}")
            time.sleep(0.1)
        yield
    finally:
        os.close(handle)


def _locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def append_line(path: Path, line: str) -> None:
    """Append one line to a log and make it durable."""
    with path.open("a", encoding="utf-8") as handle:
        handle.write(line + "\n")
        handle.flush()
        os.fsync(handle.fileno())


def finite(value: Any) -> Any:
    """Replace NaN and infinities by None, which JSON can say, in nested dicts and lists."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def write_json(path: Path, value: Any) -> None:
    """Write JSON, indented; NaN is refused."""
    write_bytes(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read JSON; RunError names a file that is missing or damaged."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # the last of brackets in brackets
        raise RunError(f"{path}: can't be read ({error})") from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a log with a JSON object on each line; RunError names a line that is damaged."""
    try:
        texts = path.read_text("utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: can't be read ({error})") from error
    lines = list[dict[str, Any]]()
    for place, text in enumerate(texts, start=1):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise RunError(f"{path}:{place}: not a line of a run's log ({error})") from error
        if not isinstance(line, dict):
            raise RunError(f"{path}:{place}: not a line of a run's log ({text:.60})")
        lines.append(line)
    return lines


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors."""
    write_bytes(path, save({name: tensor.contiguous() for name, tensor in tensors.items()}))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file; RunError when it is missing or damaged."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path}: can't be read ({error})") from error


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file that will never change a second name; copy where links are not to be had."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        write_bytes(target, source.read_bytes())


def link_tree(source: Path, target: Path) -> None:
    """Give all files below `source` a second name below `target`."""
    if source.exists():
        shutil.copytree(
            source,
            target,
            copy_function=lambda a, b: link_or_copy(Path(a), Path(b)),
            dirs_exist_ok=True,
        )
