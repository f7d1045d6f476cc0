"""A new folder that appears whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fellrec.errors import ConfigError


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Lend a temporary folder beside `path`, which gets that name when the block ends well.

    When the block raises, the temporary folder is removed, with the parents that were made for it,
    and `path` never existed. One that a killed process left is replaced.

    Raises:
        ConfigError: `path` exists already, or its folder can't be written.
    """
    if path.exists():
        raise ConfigError(f"{path} exists already; choose another folder")
    partial = path.with_name(f".{path.name}.partial")
    made = [parent for parent in path.parents if not parent.exists()]
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(f"{path}: can't be made ({error.strerror or error})") from None
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        with suppress(OSError):  # no longer empty: another process uses it
            for parent in made:
                parent.rmdir()
        raise
