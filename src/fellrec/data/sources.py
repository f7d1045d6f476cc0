"""Named data sets and models: what there is, and where it is on this machine.

The names are in `entries.py`; `cache.py` brings, checks and keeps the files.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fellrec.data.atomic import read_atomic
from fellrec.data.cache import folder_of, is_complete, obtain
from fellrec.data.checks import check_model, read_object
from fellrec.data.entries import DATASETS, MODELS
from fellrec.data.interactions import Dataset
from fellrec.errors import SourceError


@dataclass(frozen=True)
class Known:
    """A row of the list of what can be asked for by name.

    Attributes:
        name, kind, terms: as in `Entry`.
        size: bytes, about.
        cached: whether it is in the cache already.
        sources: where it would come from, in order.
    """

    name: str
    kind: str
    terms: str
    size: int
    cached: bool
    sources: tuple[str, ...]


def load_dataset(name_or_path: str | Path, *, cache: Path | None = None) -> Dataset:
    """Load a data set by name, or RecBole files by path (a folder, or the files' common stem).

    A name goes before a folder of the same name; write "./ml-100k" or a `Path` for the folder.

    Raises:
        SourceError: an unknown name, no source answers, or a damaged cache.
        DataError: what `read_atomic` refuses.
    """
    if isinstance(name_or_path, str) and name_or_path in DATASETS:
        folder = obtain(DATASETS[name_or_path], cache)
        return read_atomic(folder / name_or_path)
    path = Path(name_or_path)
    if not path.is_dir() and not path.with_name(path.name + ".item").exists():
        raise SourceError(
            f"no data set '{name_or_path}': neither a known name ({', '.join(DATASETS)}) nor a "
            f"folder of .inter and .item files"
        )
    return read_atomic(path)


def fetch_model(name_or_path: str | Path, *, cache: Path | None = None) -> Path:
    """Return the folder of a model's files, brought by name if need be.

    A path comes back as it is if it holds config.json, safetensors weights and a tokenizer.

    Raises:
        SourceError: an unknown name, a folder that lacks something, no source answers, or a
            damaged cache.
    """
    if isinstance(name_or_path, str) and name_or_path in MODELS:
        return obtain(MODELS[name_or_path], cache)
    path = _model_folder(name_or_path)
    check_model(path)
    return path


def model_here(name_or_path: str | Path, *, cache: Path | None = None) -> Path | None:
    """Return the folder of a model, or None of a name that is not in the cache; brings nothing.

    Raises:
        SourceError: neither a name nor a folder.
    """
    if isinstance(name_or_path, str) and name_or_path in MODELS:
        entry = MODELS[name_or_path]
        folder = folder_of(entry, cache)
        return folder if is_complete(entry, folder) else None
    return _model_folder(name_or_path)


def known_config(name_or_path: str | Path, *, cache: Path | None = None) -> dict[str, Any]:
    """Return what a model's config.json says, without any network.

    Of a name that is not in the cache, it is what decides the model's size.

    Raises:
        SourceError: an unknown name, or a folder without a readable config.json.
    """
    if isinstance(name_or_path, str) and name_or_path in MODELS:
        entry = MODELS[name_or_path]
        folder = folder_of(entry, cache)
        if entry.config is not None and not is_complete(entry, folder):
            return dict(entry.config)
    else:
        folder = _model_folder(name_or_path)
    return read_object(folder / "config.json")


def known(*, cache: Path | None = None) -> list[Known]:
    """List all data sets and models that have a name, without any network or checksum."""
    entries = [*DATASETS.values(), *MODELS.values()]
    return [
        Known(
            entry.name,
            entry.kind,
            entry.terms,
            entry.size,
            is_complete(entry, folder_of(entry, cache)),
            tuple(source.label for source in entry.sources),
        )
        for entry in entries
    ]


def _model_folder(path: str | Path) -> Path:
    if not Path(path).is_dir():
        raise SourceError(
            f"no model '{path}': neither a known name ({', '.join(MODELS)}) nor a folder"
        )
    return Path(path)
