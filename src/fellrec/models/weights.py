"""Read single tensors of a base model, from a safetensors folder or from a model in memory.

A stage asks for its own tensors by name, so a client that holds two blocks of a large model never
reads, let alone allocates, the others.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

from safetensors import SafetensorError, safe_open
from torch import Tensor

from fellrec.errors import ModelError


class Weights(Protocol):
    """Where a stage reads its tensors from."""

    def names(self) -> Iterable[str]:
        """All tensor names, as the source spells them."""
        ...

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Return the named tensors and no others.

        Raises ModelError for a name that is missing or a file that can't be read.
        """
        ...


class MemoryWeights:
    """The tensors of a model that is in memory already; they are shared, not copied."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def names(self) -> Iterable[str]:
        """All tensor names."""
        return self._tensors.keys()

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Return the named tensors."""
        try:
            return {name: self._tensors[name].detach() for name in names}
        except KeyError as error:
            raise ModelError(
                f"the base model has no tensor {error}; use a matching base"
            ) from error


class SafetensorsWeights:
    """A folder with `model.safetensors`, or with several files and their index."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        index = folder / "model.safetensors.index.json"
        single = folder / "model.safetensors"
        try:
            if single.exists():
                with safe_open(single, framework="pt") as handle:
                    self._files = dict.fromkeys(handle.keys(), single.name)
            else:
                self._files = {
                    str(name): Path(str(file)).name  # an index may not lead out of its folder
                    for name, file in json.loads(index.read_text())["weight_map"].items()
                }
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(
                f"{folder}: no readable model.safetensors ({error}); give a folder that has one"
            ) from error

    def names(self) -> Iterable[str]:
        """All tensor names in the folder."""
        return self._files.keys()

    def file(self, name: str) -> Path:
        """Return the file that should hold a tensor; ModelError for a name that there is not."""
        if name not in self._files:
            raise ModelError(f"{self._folder}: no tensor {name!r}; use a matching base")
        return self._folder / self._files[name]

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Return the named tensors; each file is opened once, and only those tensors are read."""
        by_file: dict[Path, list[str]] = {}
        for name in names:
            by_file.setdefault(self.file(name), []).append(name)
        tensors: dict[str, Tensor] = {}
        for file, wanted in by_file.items():
            try:
                with safe_open(file, framework="pt") as handle:
                    for name in wanted:
                        tensors[name] = handle.get_tensor(name)
            except (OSError, SafetensorError) as error:
                raise ModelError(f"{file}: can't be read ({error}); fetch it again") from error
        return tensors
