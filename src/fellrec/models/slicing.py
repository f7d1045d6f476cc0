"""Slice a base model's layer list: the model of a stage, without any values yet.

What a stage does not own is neutralised: BERT-like models add positions and a LayerNorm to whatever
comes in, so stages after the head pass their input through instead; the final norm stays with the
tail. Per-layer lists of the configuration are sliced with the layers, and each slice counts its
layers from 0.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from transformers import AutoModel, PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from fellrec.errors import ModelError
from fellrec.models.families import Family, family_of
from fellrec.models.stages import Role

NOWHERE = torch.device("meta")
"""Where tensors have shapes and no values."""


class _PassThrough(nn.Module):
    """Stands where a stage has no embeddings: hands on the activations that came in."""

    def forward(self, inputs_embeds: Tensor, **_: object) -> Tensor:
        return inputs_embeds


def spans(layers: int, k_in: int, k_out: int) -> dict[Role, range]:
    """Which blocks each stage holds; ModelError when head and tail want more than there are."""
    if k_in < 0 or k_out < 0 or k_in + k_out > layers:
        raise ModelError(
            f"model.k_in = {k_in} and model.k_out = {k_out} need {k_in + k_out} blocks, "
            f"the base has {layers}; lower one of them"
        )
    return {
        "head": range(0, k_in),
        "trunk": range(k_in, layers - k_out),
        "tail": range(layers - k_out, layers),
        "whole": range(0, layers),
    }


def sliced_body(
    config: PretrainedConfig, role: Role, span: range, *, causal: bool, tokens: bool, dropout: float
) -> PreTrainedModel:
    """Make the model of a stage, without any values; arguments as in `cutting.build_stage`.

    Raises ModelError for a family that can't be cut, or can't be made causal or otherwise.
    """
    family = family_of(config)
    if family.decoder and not causal:
        raise ModelError(f"a {config.model_type} model is causal; use an encoder as base")
    if causal and config.model_type == "longformer":
        raise ModelError("a longformer model can't be made causal; use another base")
    own = _slice_config(config, span, family, causal=causal, dropout=dropout)
    with no_init_weights(), torch.device(NOWHERE):
        kwargs = {} if family.decoder else {"add_pooling_layer": False}
        body: PreTrainedModel = AutoModel.from_config(own, **kwargs)
    owns_embeddings = role in ("head", "whole")
    if not owns_embeddings:
        stand_in = nn.Identity() if family.decoder else _PassThrough()
        body.set_submodule(family.embeddings, stand_in)
    elif not tokens:
        body.set_submodule(family.tokens, nn.Identity())
    if family.norm and role not in ("tail", "whole"):
        body.set_submodule(family.norm, nn.Identity())
    body.eval()
    return body


def window(config: PretrainedConfig) -> int:
    """The number of positions that all of Longformer's windows divide; 0 for other models."""
    windows = getattr(config, "attention_window", 0)
    return math.lcm(*windows) if isinstance(windows, list) else int(windows)


def _slice_config(
    config: PretrainedConfig, span: range, family: Family, *, causal: bool, dropout: float
) -> PretrainedConfig:
    own = copy.deepcopy(config)
    for name in ("layer_types", "attention_window", "no_rope_layers"):
        value = getattr(config, name, None)
        if isinstance(value, list):
            setattr(own, name, value[span.start : span.stop])
    own.num_hidden_layers = len(span)
    if family.decoder:
        own.attention_dropout = 0.0
    else:
        own.attention_probs_dropout_prob = 0.0
        own.hidden_dropout_prob = dropout
        own.is_decoder = causal
    return own
