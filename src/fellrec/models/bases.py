"""A base model in a folder: its configuration, one of its stages, its output layer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig

from fellrec.errors import ModelError
from fellrec.models.cutting import build_stage, refusing
from fellrec.models.families import family_of
from fellrec.models.placement import HERE, Placement
from fellrec.models.slicing import spans
from fellrec.models.stages import Role, Stage
from fellrec.models.weights import SafetensorsWeights

OUTPUT = "lm_head.weight"


def load_config(folder: Path) -> PretrainedConfig:
    """Read a base's configuration; ModelError when there is none or it can't be cut."""
    with refusing(f"{folder}: no usable config.json"):
        config: PretrainedConfig = AutoConfig.from_pretrained(folder, local_files_only=True)
    family_of(config)
    return config


def parse_config(values: Mapping[str, Any], name: str) -> PretrainedConfig:
    """Make a configuration of what a config.json says; `name` is what errors call it.

    Raises ModelError when it is of no model that can be cut.
    """
    with refusing(f"{name}: no usable config.json"):
        kind = str(values["model_type"])
        own = {key: value for key, value in values.items() if key != "model_type"}
        config: PretrainedConfig = AutoConfig.for_model(kind, **own)
    family_of(config)
    return config


def load_stage(
    folder: Path,
    role: Role,
    k_in: int,
    k_out: int,
    *,
    causal: bool = True,
    tokens: bool = False,
    dropout: float = 0.0,
    place: Placement = HERE,
) -> Stage:
    """Build one stage from a folder with `config.json` and safetensors files.

    Raises ModelError as `load_config` and `build_stage` do, and for weights that can't be read.
    """
    config = load_config(folder)
    span = spans(config.num_hidden_layers, k_in, k_out)[role]
    weights = SafetensorsWeights(folder)
    return build_stage(
        config, weights, role, span, causal=causal, tokens=tokens, dropout=dropout, place=place
    )


def load_output(folder: Path, head: Stage) -> Tensor:
    """Return the output layer of a causal language model, (vocabulary, d), frozen.

    It is where the head's tensors are, and of their precision.

    Where it is tied to the token embedding it is the head's own memory: held and counted once.
    Raises ModelError when the base has none.
    """
    config = load_config(folder)
    table: nn.Parameter = head.body.get_submodule(head.family.tokens).get_parameter("weight")
    if config.tie_word_embeddings:
        return table.detach()
    weights = SafetensorsWeights(folder)
    if OUTPUT not in set(weights.names()):
        raise ModelError(
            f"{folder}: has no output layer ({OUTPUT}); use a causal language model as base"
        )
    output = weights.read([OUTPUT])[OUTPUT].to(head.place.device, head.place.dtype)
    if output.shape != table.shape:
        raise ModelError(
            f"{OUTPUT} has shape {tuple(output.shape)}, the token embedding {tuple(table.shape)}; "
            "use weights that belong together"
        )
    return output
