"""Fill a stage with its own tensors, by the names that a base's files give them."""

from __future__ import annotations

import re
from collections.abc import Set

from fellrec.errors import ModelError
from fellrec.models.stages import Stage
from fellrec.models.weights import Weights


def stored_names(stage: Stage, available: Set[str]) -> dict[str, str]:
    """Return what a file that has the names `available` calls each of a stage's own tensors.

    The stage is as `build_stage` or `outline_stage` made it; no adapter is attached yet.
    """
    wanted = {name: stage.whole_name(name) for name, _ in stage.body.named_parameters()}
    prefix = ""
    if wanted and next(iter(wanted.values())) not in available:
        prefix = f"{stage.body.base_model_prefix}."
    return {name: _stored_name(prefix + whole, available) for name, whole in wanted.items()}


def fill(stage: Stage, weights: Weights) -> None:
    """Read the tensors of a stage, whose names in a file may carry the base model's prefix.

    They take the precision of the stage's place. Raises ModelError for one that is missing or has
    another shape than the configuration asks for.
    """
    stored = stored_names(stage, set(weights.names()))
    tensors = weights.read(stored.values())
    state = {name: tensors[found] for name, found in stored.items()}
    for name, parameter in stage.body.named_parameters():
        if state[name].shape != parameter.shape:
            raise ModelError(
                f"{stage.whole_name(name)} has shape {tuple(state[name].shape)}, config.json asks "
                f"for {tuple(parameter.shape)}; use weights that belong to this configuration"
            )
    state = {name: tensor.to(stage.place.dtype) for name, tensor in state.items()}
    stage.body.load_state_dict(state, strict=False, assign=True)
    stage.body.requires_grad_(False)


def _stored_name(name: str, available: Set[str]) -> str:
    """Old BERT files, such as bert-base-uncased, call a norm's weight and bias gamma and beta."""
    old = re.sub(r"LayerNorm\.weight$", "LayerNorm.gamma", name)
    old = re.sub(r"LayerNorm\.bias$", "LayerNorm.beta", old)
    return old if name not in available and old in available else name
