"""Files kept from run to run: brought from the first source that answers, checked on every use.

The cache is `FELLREC_CACHE`, else the user's cache folder. The second run needs no network, and a
damaged file is noticed. What a run did not bring itself, a person may put there: without a manifest
the reference checksums decide, and the content where there is none.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs

from fellrec.data.fetch import File, Source, sha256_of
from fellrec.data.files import replace_file
from fellrec.errors import DataError, SourceError

log = logging.getLogger(__name__)
MANIFEST = "manifest.json"
# Above this size a file is hashed again only when its size or time of change differs.
LARGE = 8 << 20


@dataclass(frozen=True)
class Entry:
    """A data set or model known by name.

    Attributes:
        name: what to ask for.
        kind: "dataset" or "model"; also its folder in the cache.
        terms: licence or terms of use.
        size: bytes in the cache, about.
        files: what it consists of.
        sources: tried in this order.
        check: looks at the files' content; raises DataError or SourceError.
        config: of a model: what its config.json says about its shape.
    """

    name: str
    kind: str
    terms: str
    size: int
    files: tuple[File, ...]
    sources: tuple[Source, ...]
    check: Callable[[Path], None]
    config: Mapping[str, object] | None = None


def cache_folder() -> Path:
    """Return where downloads are kept: `FELLREC_CACHE`, else the user's cache folder."""
    chosen = os.environ.get("FELLREC_CACHE")
    return Path(chosen) if chosen else Path(platformdirs.user_cache_dir("fellrec"))


def obtain(entry: Entry, cache: Path | None = None) -> Path:
    """Return the folder with an entry's files, checked; bring them first if need be.

    Raises:
        SourceError: no source answers (lists each with its reason), or a damaged cache file (names
            it).
    """
    folder = folder_of(entry, cache)
    if is_complete(entry, folder):
        _verify(entry, folder)
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SourceError(
            f"cache folder {folder.parent} can't be made ({error.strerror}); set FELLREC_CACHE"
        ) from None
    reasons = []
    for source in entry.sources:
        try:
            _bring(entry, source, folder)
            return folder
        except (SourceError, DataError, OSError) as error:
            log.warning("%s: skipped %s: %s", entry.name, source.label, error)
            reasons.append(f"{source.label} ({error})")
    raise SourceError(f"{entry.name}: no source could be used: {'; '.join(reasons)}")


def folder_of(entry: Entry, cache: Path | None) -> Path:
    """Return the folder of an entry in the cache, which need not exist."""
    return (cache_folder() if cache is None else cache) / f"{entry.kind}s" / entry.name


def is_complete(entry: Entry, folder: Path) -> bool:
    """Return whether all of an entry's files are there, unchecked."""
    return all((folder / file.name).is_file() for file in entry.files)


def _bring(entry: Entry, source: Source, folder: Path) -> None:
    """Fetch into a temporary folder, check, and only then put it in place."""
    with tempfile.TemporaryDirectory(prefix=f".{entry.name}-", dir=folder.parent) as temporary:
        new = Path(temporary) / "new"
        new.mkdir()
        source.fetch(entry.files, new)
        for file in entry.files:
            bound = file.sha256 is not None and (file.strict or source.exact)
            if bound and sha256_of(new / file.name) != file.sha256:
                raise SourceError(f"the checksum of {file.name} is wrong")
        entry.check(new)
        stamps = {file.name: _stamp(new / file.name) for file in entry.files}
        _write_manifest(new, {"source": source.label, "exact": source.exact, "files": stamps})
        for file in entry.files:
            with (new / file.name).open("rb") as handle:
                os.fsync(handle.fileno())
        _place(entry, new, folder, Path(temporary))


def _place(entry: Entry, new: Path, folder: Path, aside: Path) -> None:
    """Rename `new` to `folder`; an incomplete folder there is moved aside and goes with `aside`."""
    for attempt in range(10):
        try:
            os.replace(new, folder)
            return
        except OSError:
            if is_complete(entry, folder):  # another process was faster
                return
            with contextlib.suppress(FileNotFoundError):
                os.replace(folder, aside / f"old{attempt}")
    raise SourceError(f"{folder}: can't be replaced; delete it and run again")


def _stamp(path: Path) -> dict[str, str | int]:
    stat = path.stat()
    return {"sha256": sha256_of(path), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def _verify(entry: Entry, folder: Path) -> None:
    """Compare every file with the reference checksum, or with that of the day it arrived.

    Where there is neither, a person put the files there, and their content decides.
    """
    manifest = _manifest(folder)
    exact = bool(manifest.get("exact", True))
    stamps = manifest.get("files", {})
    fresh: dict[str, Any] = {}
    unknown = False
    for file in entry.files:
        path = folder / file.name
        old = stamps.get(file.name, {})
        wanted = old.get("sha256", file.sha256)
        if file.sha256 is not None and (exact or file.strict):
            wanted = file.sha256
        stat = path.stat()
        seen = (old.get("size"), old.get("mtime_ns"), old.get("sha256"))
        if stat.st_size > LARGE and seen == (stat.st_size, stat.st_mtime_ns, wanted):
            continue
        new = _stamp(path)
        if wanted is None:
            unknown = True
        elif new["sha256"] != wanted:
            raise SourceError(f"{path}: is damaged (wrong checksum); delete it and run again")
        fresh[file.name] = new
    if unknown:
        entry.check(folder)
    if any(stamps.get(name) != new for name, new in fresh.items()):
        updated = {**manifest, "exact": exact, "files": {**stamps, **fresh}}
        try:
            _write_manifest(folder, updated)
        except OSError as error:  # a cache that may only be read is still a cache
            log.info("%s: not updated: %s", folder / MANIFEST, error)


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.exists():  # files a person put there: the reference checksums decide
        return {}
    try:
        manifest = json.loads(path.read_bytes())
        if isinstance(manifest, dict) and isinstance(manifest.get("files"), dict):
            stamps: Mapping[str, Any] = manifest["files"]
            if all(isinstance(stamp, dict) for stamp in stamps.values()):
                return manifest
    except (OSError, ValueError, RecursionError):
        pass
    raise SourceError(f"{path}: is damaged; delete it and run again")


def _write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    replace_file(folder / MANIFEST, json.dumps(manifest, indent=1).encode())
