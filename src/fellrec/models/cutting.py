"""Cut a Hugging Face model into head, trunk and tail (METHOD section 2).

Each stage is sliced out of the model (`slicing.py`), filled with its own tensors by name
(`filling.py`), and put where it computes (`placement.py`); `stages.py` runs it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PretrainedConfig, PreTrainedModel

from fellrec.models.families import family_of
from fellrec.models.filling import fill
from fellrec.models.placement import HERE, Placement, quantise
from fellrec.models.slicing import NOWHERE, sliced_body, spans, window
from fellrec.models.stages import Role, Stage
from fellrec.models.weights import MemoryWeights, Weights


@dataclass(frozen=True)
class Stages:
    """A model that is cut: `trunk` is None where no block stands between head and tail."""

    head: Stage
    trunk: Stage | None
    tail: Stage


def build_stage(
    config: PretrainedConfig,
    weights: Weights,
    role: Role,
    span: range,
    *,
    causal: bool = True,
    tokens: bool = False,
    dropout: float = 0.0,
    place: Placement = HERE,
) -> Stage:
    """Build one stage and load its own tensors, and no others.

    span: the blocks it holds (whole-model numbers). causal: attend backwards only (encoders are
    turned into decoders by their configuration). tokens: keep the token embedding table in the
    head; without it the head takes vectors. dropout: hidden dropout of encoders. place: where its
    tensors go, and in which precision.

    Raises ModelError for an unknown family, a missing tensor or a wrong shape.
    """
    body = sliced_body(config, role, span, causal=causal, tokens=tokens, dropout=dropout)
    body.to_empty(device="cpu")
    for module in body.modules():
        if module._non_persistent_buffers_set:  # positions and rotary tables are computed
            body._init_weights(module)
    family = family_of(config)
    stage = Stage(body, role, span.start, family, causal, window(config), place)
    fill(stage, weights)
    if place.quantize != "none":
        quantise(stage.body, family.layers, place)
    return stage.to(place.device)


def outline_stage(
    config: PretrainedConfig,
    role: Role,
    span: range,
    *,
    causal: bool = True,
    tokens: bool = False,
    dropout: float = 0.0,
    dtype: torch.dtype = torch.float32,
) -> Stage:
    """Build one stage as `build_stage` does, but with shapes and no values: it takes no memory.

    dtype: of its tensors; none is quantised.
    """
    body = sliced_body(config, role, span, causal=causal, tokens=tokens, dropout=dropout)
    for parameter in body.parameters():
        parameter.data = parameter.data.to(dtype)
    place = Placement(NOWHERE, dtype)
    stage = Stage(body, role, span.start, family_of(config), causal, window(config), place)
    return stage.to(NOWHERE)


def cut(model: PreTrainedModel, k_in: int, k_out: int, *, causal: bool | None = None) -> Stages:
    """Cut a model in memory; the stages share its tensors.

    The head keeps the token embedding and blocks 0 … k_in-1, the tail the last k_out blocks and the
    final norm, the trunk what is between. causal: None keeps what the model does. An output layer
    above the base model stays where it is.
    """
    base = model.base_model
    config: PretrainedConfig = model.config
    if causal is None:
        causal = family_of(config).decoder or bool(config.is_decoder)
    ranges = spans(config.num_hidden_layers, k_in, k_out)
    weights = MemoryWeights(base.state_dict())

    def stage(role: Role) -> Stage:
        return build_stage(config, weights, role, ranges[role], causal=causal, tokens=True)

    trunk = stage("trunk") if ranges["trunk"] else None
    return Stages(stage("head"), trunk, stage("tail"))
