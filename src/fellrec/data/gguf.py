"""A model in one GGUF file as a source: rewritten once as a folder that the rest of FELLRec reads.

GGUF is the form of llama.cpp: config, tokenizer and weights, often quantised, in one file.
Quantised weights become float32 here, which loses nothing further but does not bring back what
quantising lost, so they differ from the published ones.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fellrec.data.fetch import File, Source, sha256_of
from fellrec.errors import SourceError


@dataclass(frozen=True)
class Gguf:
    """A source of a GGUF file, rewritten as config.json, model.safetensors and tokenizer files.

    The checksum of the GGUF file decides; those of the rewritten files depend on the versions of
    the libraries that write them.

    Attributes:
        source: has the GGUF file.
        file: its name there, checksum and size limit.
    """

    source: Source
    file: File
    exact: bool = False

    @property
    def label(self) -> str:
        """The source of the GGUF file."""
        return self.source.label

    def fetch(self, files: Sequence[File], folder: Path) -> None:
        """Bring the GGUF file, check it, and write the model's folder from it."""
        brought = folder / ".gguf"
        brought.mkdir()
        self.source.fetch([self.file], brought)
        if sha256_of(brought / self.file.name) != self.file.sha256:
            raise SourceError(f"the checksum of {self.file.name} is wrong")
        convert(brought / self.file.name, folder)
        shutil.rmtree(brought)
        for file in files:
            path = folder / file.name
            if not path.is_file() or path.stat().st_size > file.limit:
                raise SourceError(f"{self.file.name} gave no {file.name} within its limit")


def convert(path: Path, folder: Path) -> None:
    """Write a GGUF file's model into `folder`: config, float32 weights and tokenizer.

    Tied embeddings are written once, under their first name.

    Raises:
        SourceError: the package gguf is missing, the file can't be read, or it lacks a tensor.
    """
    try:
        import gguf
    except ImportError:
        raise SourceError("needs the package gguf: pip install gguf") from None
    import torch
    from safetensors.torch import save_file
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        field = gguf.GGUFReader(path).get_field("tokenizer.ggml.pre")
        splits = field.contents() if field is not None else None
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32, output_loading_info=True
        )
        model, report = loaded
    except Exception as error:  # the parser checks nothing: it raises whatever it stumbles over
        reason = " ".join(str(error).split()) or type(error).__name__
        raise SourceError(f"{path.name} can't be read as a model ({reason})") from None
    # What the file lacks was drawn at random.
    if missing := sorted(report["missing_keys"]):
        raise SourceError(f"{path.name} lacks {missing[0]} ({len(missing)} tensors in all)")

    if splits == "smollm":  # transformers forgets that these vocabularies know single digits only
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
    tokenizer.save_pretrained(folder, save_jinja_files=False)
    # Not `model.save_pretrained`: it refuses what came from GGUF, though nothing is quantised now.
    config = model.config
    for name in ("quantization_config", "_model_name_or_path"):
        vars(config).pop(name, None)
    config.architectures = [type(model).__name__]
    config.dtype = "float32"
    config.save_pretrained(folder)
    weights = folder / "model.safetensors"
    tensors = {name: tensor.detach().contiguous() for name, tensor in model.named_parameters()}
    save_file(tensors, weights, metadata={"format": "pt"})
    weights.chmod(0o644)  # safetensors lets only its owner read it
