"""What a base model is, tensor by tensor: a list of hashes that two sides can compare.

A client and a trunk each hold a part of one base, and neither reads the other's. The manifest is
made once, when the whole model is at hand; after that each side checks the tensors it loads against
it, and the digests of two manifests are equal only where every tensor of the two models is, and
what of config.json decides the computation.

It is kept beside the weights as `tensors.json`, or in fellrec's cache where that folder can't be
written, and made again when a weight file has another size or time of change. A folder that lacks
some of the weight files can't make one and keeps the one that came with it. Files are read in
blocks, not mapped: the memory it takes is that of one block. Only safetensors files are read.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from fellrec.data.cache import cache_folder
from fellrec.data.checks import read_object
from fellrec.data.files import replace_file
from fellrec.data.tensor_files import Span, read_blocks, read_header
from fellrec.errors import ModelError, SourceError
from fellrec.models.bases import OUTPUT, load_config
from fellrec.models.filling import stored_names
from fellrec.models.stages import Stage
from fellrec.models.weights import SafetensorsWeights

log = logging.getLogger(__name__)
FORMAT = 1
NAME = "tensors.json"
# What reading a damaged manifest may raise.
_UNUSABLE = (
    OSError,
    ValueError,
    OverflowError,
    TypeError,
    LookupError,
    AttributeError,
    RecursionError,
)
# Keys of config.json that change no number: origin, labels, and what a recipe decides. A key that
# is not known here counts, so that a doubt ends in a refusal.
_SILENT = {
    "_commit_hash",
    "_name_or_path",
    "architectures",
    "auto_map",
    "dtype",
    "finetuning_task",
    "gradient_checkpointing",
    "id2label",
    "label2id",
    "output_attentions",
    "output_hidden_states",
    "problem_type",
    "return_dict",
    "task_specific_params",
    "tokenizer_class",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}


@dataclass(frozen=True)
class Fingerprint:
    """What identifies a tensor.

    dtype, shape: as the file says. sha256: of its bytes, as hexadecimal digits.
    """

    dtype: str
    shape: tuple[int, ...]
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """All tensors of a base by their names in its files, and what of its config.json decides."""

    tensors: Mapping[str, Fingerprint]
    config: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """A SHA-256 of all of it, as hexadecimal digits."""
        values = {"format": FORMAT, "config": self.config, "tensors": _plain(self.tensors)}
        return hashlib.sha256(_canonical(values)).hexdigest()


@dataclass(frozen=True)
class _Kept:
    """What a manifest's file holds; files: size and time of change (ns) of each weight file."""

    files: Mapping[str, tuple[int, int]]
    tensors: Mapping[str, Fingerprint]


def digest(folder: Path) -> str:
    """Return the digest of a model's manifest; raises what `manifest_of` does."""
    return manifest_of(folder).digest


def manifest_of(folder: Path) -> Manifest:
    """Return the manifest of a model's folder; the first time it reads the whole model.

    Raises:
        ModelError: no readable weights or config.json, or a weight file is missing and no manifest
            came with the others.
    """
    try:
        config = read_object(folder / "config.json")
    except SourceError as error:
        raise ModelError(f"{error}; use a folder with a whole model") from None
    deciding = {key: value for key, value in config.items() if key not in _SILENT}
    return Manifest(_tensors(folder, SafetensorsWeights(folder)), deciding)


def check(folder: Path, names: Iterable[str]) -> int:
    """Compare tensors with the manifest, and read no others.

    Args:
        folder: the model's.
        names: as the files call them; `stage_tensors` gives those of a side.

    Returns:
        How many bytes of tensors were read.

    Raises:
        ModelError: a tensor that differs, or is missing (names it); what `manifest_of` refuses.
    """
    weights = SafetensorsWeights(folder)
    known = _tensors(folder, weights)
    by_file: dict[Path, list[str]] = {}
    for name in names:
        by_file.setdefault(weights.file(name), []).append(name)
    count = 0
    for path, own in by_file.items():
        for name, found, size in _fingerprints(path, own):
            if found != known.get(name):
                raise ModelError(
                    f"{path}: tensor {name!r} is not the one of {NAME} "
                    f"({_difference(found, known.get(name))}); fetch the model again"
                )
            count += size
    return count


def stage_tensors(folder: Path, stages: Iterable[Stage], *, output: bool = False) -> list[str]:
    """Return what a model's files call the tensors of some stages, sorted.

    Args:
        folder: the model's.
        stages: as `build_stage` or `outline_stage` made them; no adapter is attached yet.
        output: whether the output layer, where it is not tied to the embedding, is read too.

    Raises:
        ModelError: weights or a config.json that can't be read.
    """
    available = set(SafetensorsWeights(folder).names())
    names = {name for stage in stages for name in stored_names(stage, available).values()}
    if output and not load_config(folder).tie_word_embeddings:
        names.add(OUTPUT)
    return sorted(names)


def _tensors(folder: Path, weights: SafetensorsWeights) -> Mapping[str, Fingerprint]:
    """Return the fingerprints that are kept of these weights, else make and keep them."""
    by_file: dict[Path, list[str]] = {}
    for name in weights.names():
        by_file.setdefault(weights.file(name), []).append(name)
    stamps = {path.name: _stamp(path) for path in by_file if path.exists()}
    missing = [path for path in by_file if path.name not in stamps]
    resolved = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:32]
    places = (folder / NAME, cache_folder() / "manifests" / f"{resolved}.json")
    for place in places:
        kept = _read(place)
        if kept is None or kept.files.keys() != {path.name for path in by_file}:
            continue
        # Files that were brought without the others have times of their own.
        if missing or kept.files == stamps:
            return kept.tensors
    if missing:
        raise ModelError(
            f"{folder}: lacks {missing[0].name} and a {NAME} that was made where it is; bring one"
        )
    tensors = {
        name: found
        for path, names in sorted(by_file.items())
        for name, found, _ in _fingerprints(path, names)
    }
    _keep(places, _Kept(stamps, tensors))
    return tensors


def _stamp(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def _fingerprints(path: Path, names: Iterable[str]) -> Iterator[tuple[str, Fingerprint, int]]:
    """Read some tensors of a file: name, fingerprint, bytes."""
    try:
        with path.open("rb") as file:
            spans = read_header(file).tensors
            for name in names:
                if name not in spans:
                    raise ValueError(f"it has no tensor {name!r}")
                span = spans[name]
                yield name, Fingerprint(span.dtype, span.shape, _hash(file, span)), span.size
    except ValueError as error:
        raise ModelError(f"{path}: {error}; fetch the model again") from None
    except OSError as error:
        raise ModelError(f"{path}: can't be read ({error.strerror or error})") from None


def _hash(file: BinaryIO, span: Span) -> str:
    found = hashlib.sha256()
    for block in read_blocks(file, span):
        found.update(block)
    return found.hexdigest()


def _difference(found: Fingerprint, known: Fingerprint | None) -> str:
    """Say what differs first."""
    if known is None:
        return "which has none of that name"
    if found.dtype != known.dtype:
        return f"its dtype is {found.dtype}, not {known.dtype}"
    if found.shape != known.shape:
        return f"its shape is {found.shape}, not {known.shape}"
    return "its values differ"


def _read(path: Path) -> _Kept | None:
    """Read a kept manifest; None where there is none that can be used: it can be made again."""
    try:
        raw = json.loads(path.read_bytes())
        files = {str(name): (int(size), int(time)) for name, (size, time) in raw["files"].items()}
        tensors = {
            str(name): Fingerprint(str(dtype), tuple(map(int, shape)), str(sha256))
            for name, (dtype, shape, sha256) in raw["tensors"].items()
        }
        kept = _Kept(files, tensors)
        return kept if raw == _document(kept) else None
    except _UNUSABLE:
        return None


def _keep(places: Iterable[Path], kept: _Kept) -> None:
    """Write a manifest to the first place that can be written."""
    for place in places:
        try:
            replace_file(place, json.dumps(_document(kept), indent=1).encode())
            return
        except OSError as error:
            log.info("%s: can't be written (%s)", place, error)


def _document(kept: _Kept) -> dict[str, Any]:
    """Return what a manifest's file says, with a checksum over the rest of it."""
    files = {name: list(stamp) for name, stamp in kept.files.items()}
    values = {"format": FORMAT, "files": files, "tensors": _plain(kept.tensors)}
    return {**values, "sha256": hashlib.sha256(_canonical(values)).hexdigest()}


def _plain(tensors: Mapping[str, Fingerprint]) -> dict[str, Any]:
    return {name: [t.dtype, list(t.shape), t.sha256] for name, t in tensors.items()}


def _canonical(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, sort_keys=True, separators=(",", ":")).encode()
