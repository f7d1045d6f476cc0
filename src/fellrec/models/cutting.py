"""Cut a Hugging Face model into head, trunk and tail (METHOD section 2).

Each stage is sliced out of the model (`slicing.py`), filled with its own tensors by name
(`filling.py`), and put where it computes (`placement.py`); `stages.py` runs it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from textwrap import shorten

import torch
from transformers import PretrainedConfig, PreTrainedModel

from fellrec.errors import ModelError
from fellrec.models.families import family_of
from fellrec.models.filling import fill
from fellrec.models.placement import HERE, Placement, quantise
from fellrec.models.slicing import NOWHERE, sliced_body, spans, window
from fellrec.models.stages import Role, Stage
from fellrec.models.weights import MemoryWeights, Weights

_REASON = 240  # characters: `transformers` may list all kinds of models that there are


@contextmanager
def refusing(line: str) -> Iterator[None]:
    """Make one ModelError of whatever `transformers` raises over a configuration.

    line: what is wrong; the first thing that the error says is put behind it.
    """
    try:
        yield
    except ModelError:
        raise
    except Exception as error:  # a damaged config.json makes it raise nearly anything
        said = [each.strip() for each in str(error).splitlines() if each.strip()]
        # A line that ends with a colon only announces the next one.
        reason = " ".join(said[: 2 if said[0].endswith(":") else 1]) if said else ""
        short = shorten(reason or type(error).__name__, _REASON, placeholder=" …")
        raise ModelError(f"{line} ({short}); bring the file that belongs to the model") from error


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

    Raises ModelError for an unknown family, a missing tensor, a wrong shape, or a configuration
    that no model can be made of.
    """
    with _as_asked(config):
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

    dtype: of its tensors; none is quantised. Raises ModelError as `build_stage` does.
    """
    with _as_asked(config):
        body = sliced_body(config, role, span, causal=causal, tokens=tokens, dropout=dropout)
        for parameter in body.parameters():
            parameter.data = parameter.data.to(dtype)
        place = Placement(NOWHERE, dtype)
        stage = Stage(body, role, span.start, family_of(config), causal, window(config), place)
        return stage.to(NOWHERE)


def _as_asked(config: PretrainedConfig) -> AbstractContextManager[None]:
    """Make ModelErrors of what a configuration asks for and no model can be."""
    whose = config.name_or_path or "the base"
    return refusing(f"{whose}: no {config.model_type} model can be made as config.json asks")


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
