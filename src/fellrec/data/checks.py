"""What the files of a data set or a model with a name must hold, whatever source they came from."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fellrec.data.atomic import read_atomic
from fellrec.errors import SourceError

# Keys of config.json that decide the names and shapes of a language model's tensors.
_SHAPE = {
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "tie_word_embeddings",
    "vocab_size",
}


def check_movielens(folder: Path) -> None:
    """Count MovieLens-100K: SourceError unless it is all there."""
    data = read_atomic(folder / "ml-100k")
    found = (len(data.interactions), len(data.users), len(data.catalogue))
    if found != (100_000, 943, 1_682):
        raise SourceError(f"{found} interactions, users and items; expected (100000, 943, 1682)")


def at_least(name: str, interactions: int, users: int, items: int) -> Callable[[Path], None]:
    """Make a check for data without a reference: readable, and not far smaller than is known."""

    def check(folder: Path) -> None:
        data = read_atomic(folder / name)
        found = (len(data.interactions), len(data.users), len(data.catalogue))
        least = (interactions, users, items)
        if any(count < low for count, low in zip(found, least, strict=True)):
            raise SourceError(f"{found} interactions, users and items; expected {least} or more")

    return check


def check_model(folder: Path) -> None:
    """Look for a config, safetensors weights (pickled ones are never read) and a tokenizer."""
    weights = ("model.safetensors", "model.safetensors.index.json")
    tokenizers = ("tokenizer.json", "vocab.txt", "tokenizer.model", "vocab.json")
    for wanted in (("config.json",), weights, tokenizers):
        if not any((folder / name).is_file() for name in wanted):
            raise SourceError(f"{folder}: is no model folder: it lacks {' or '.join(wanted)}")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", weights[1]):
        if (folder / name).is_file():
            read_object(folder / name)


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object, such as a config.json; SourceError when the file holds none."""
    try:
        parsed = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise SourceError(f"{path}: no such file") from None
    except (OSError, ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        raise SourceError(f"{path}: is not a JSON object")
    return parsed


def language_model(config: Mapping[str, object]) -> Callable[[Path], None]:
    """Make a check for a causal language model whose shape is known from its `config`."""

    def check(folder: Path) -> None:
        check_model(folder)
        found = read_object(folder / "config.json")
        for key in sorted(_SHAPE & config.keys()):
            if found.get(key) != config[key]:
                raise SourceError(f"config.json: {key} is {found.get(key)}, not {config[key]}")
        _check_weights(folder, config)

    return check


def _check_weights(folder: Path, config: Mapping[str, Any]) -> None:
    """Compare names and shapes with what the config makes, and look for values that are not finite.

    One tensor is in memory at a time. Further ones may be there: old folders have rotary tables.
    """
    import torch
    from safetensors import SafetensorError, safe_open
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):  # no memory
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    missing = {name: tensor.shape for name, tensor in model.named_parameters()}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as weights:
                for name in sorted(missing.keys() & set(weights.keys())):
                    tensor = weights.get_tensor(name)
                    if tensor.shape != missing.pop(name):
                        raise SourceError(f"{path.name}: {name} has shape {list(tensor.shape)}")
                    if not tensor.isfinite().all():
                        raise SourceError(f"{path.name}: {name} has values that are not finite")
        except (OSError, SafetensorError) as error:
            raise SourceError(f"{path.name} can't be read ({error})") from None
    if missing:
        raise SourceError(f"the weights lack {min(missing)} ({len(missing)} tensors in all)")
