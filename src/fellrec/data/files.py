"""Reading and replacing small files, with errors that name them."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from fellrec.errors import DataError


def read_bytes(path: Path) -> bytes:
    """Read a whole file.

    Raises:
        DataError: it is missing, unreadable or empty.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror or error})") from None
    if not data:
        raise DataError(f"{path}: is empty")
    return data


def decode(path: Path, data: bytes) -> str:
    """Decode UTF-8, with or without a byte order mark.

    Raises:
        DataError: the bytes are not UTF-8; names the line.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {line}: is not UTF-8; convert the file to UTF-8") from None


def replace_file(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write `data` to `path` so that a reader sees the old file or the whole new one.

    Args:
        path: its folder is made if it is missing.
        data: the whole content.
        mode: the new file's permissions; it never has wider ones, not for a moment.

    Raises:
        OSError: the folder can't be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(mode)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
