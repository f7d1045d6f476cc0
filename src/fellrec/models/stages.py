"""Cut a Hugging Face model into head, trunk and tail (METHOD section 2).

A stage is a model of the base's own class over a slice of its layer list. What a stage does not own
is neutralised: BERT-like models add positions and a LayerNorm to whatever comes in, so stages after
the head pass their input through instead; the final norm stays with the tail. Per-layer lists of
the configuration are sliced with the layers, and each slice counts its layers from 0.

Longformer's blocks attend within windows, and globally at the first position, whose text they read
for all others: each of its stages pads to the whole model's windows and builds that mask itself.

Weights are read by name, each stage its own. Attention dropout is switched off: the fused kernels
draw it from global random state, and every mask here has to be the same in a split and a whole
model. Hidden dropout and LoRA dropout are keyed (`dropout.py`).

Where a stage's tensors live and in which precision is a `Placement`; what comes in is moved there,
and what goes out is float32.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from fellrec.errors import ModelError
from fellrec.models.cache import StageCache
from fellrec.models.dropout import StepKey, key_dropouts
from fellrec.models.families import BERT, Family, family_of
from fellrec.models.layout import Layout
from fellrec.models.placement import Placement, quantise, quantised_modules
from fellrec.models.weights import MemoryWeights, SafetensorsWeights, Weights

Role = Literal["head", "trunk", "tail", "whole"]
OUTPUT = "lm_head.weight"
_HERE = Placement()
_NOWHERE = torch.device("meta")  # shapes without values


class _PassThrough(nn.Module):
    """Stands where a stage has no embeddings: hands on the activations that came in."""

    def forward(self, inputs_embeds: Tensor, **_: object) -> Tensor:
        return inputs_embeds


class Stage(nn.Module):
    """Some consecutive blocks of a base model, with what belongs before or after them.

    role: which part this is. first: whole-model number of its first block. body: the sliced model.
    window: positions come in multiples of this, 0 where any number will do. key: where training
    stands, shared by its dropout modules. place: where its frozen tensors are, and how.
    """

    def __init__(
        self,
        body: PreTrainedModel,
        role: Role,
        first: int,
        family: Family,
        causal: bool,
        window: int = 0,
        place: Placement = _HERE,
    ) -> None:
        super().__init__()
        self.body = body
        self.place = place
        self.role: Role = role
        self.first = first
        self.family = family
        self.causal = causal
        self.window = window
        self.key = StepKey()
        self._cache: StageCache | None = None
        self._offset = 0
        if role in ("head", "whole") and family is BERT and body.config.model_type != "bert":
            self._offset = int(body.config.pad_token_id) + 1  # RoBERTa counts places from there
        self.body.requires_grad_(False)
        key_dropouts(self.body, self.key, self.whole_name)

    @property
    def blocks(self) -> int:
        """Number of blocks in this stage."""
        return int(self.body.config.num_hidden_layers)

    @property
    def width(self) -> int:
        """Channels of the activations."""
        return int(self.body.config.hidden_size)

    @property
    def context(self) -> int:
        """Most positions of one sequence."""
        return int(self.body.config.max_position_embeddings) - self._offset

    @property
    def cache_bytes(self) -> int:
        """Bytes of keys and values that one remembered position takes, in all blocks."""
        config = self.body.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        channels = getattr(config, "head_dim", None) or self.width // config.num_attention_heads
        return 2 * self.place.dtype.itemsize * self.blocks * int(heads) * int(channels)

    def whole_name(self, name: str) -> str:
        """Turn a path below `body` into the path in the whole model."""
        pattern = rf"^({re.escape(self.family.layers)})\.(\d+)(?=\.|$)"
        return re.sub(pattern, lambda m: f"{m[1]}.{int(m[2]) + self.first}", name)

    def embed(self, tokens: Tensor) -> Tensor:
        """Look up token embeddings: (batch, width) int64 -> (batch, width, d) float32."""
        table = self.body.get_submodule(self.family.tokens)
        return table(tokens.to(self.place.device)).float()  # type: ignore[no-any-return]  # nn.Module

    def forward(self, hidden: Tensor, layout: Layout) -> Tensor:
        """Run the blocks: (batch, width, d) -> (batch, width, d) float32, on the stage's device.

        Only valid positions mean anything. A causal model padded on the right needs no mask at
        all, since nothing valid attends to what stands behind it; that keeps the fast kernel.
        """
        if self.window:
            return self._windowed(hidden, layout)
        masked = not layout.full and not (self.causal and layout.side == "right")
        return self._run(hidden, layout.valid if masked else None, layout.positions)

    def prefill(self, hidden: Tensor, layout: Layout) -> Tensor:
        """Run the blocks over prompts padded on the left, and remember keys and values.

        (batch, width, d) both. What was remembered before is forgotten.
        """
        self._cache = StageCache(layout, self.blocks)
        return self._run(
            hidden, None if layout.full else layout.valid, layout.positions, self._cache
        )

    def extend(self, hidden: Tensor, beams: npt.NDArray[np.int32]) -> Tensor:
        """Run the blocks over one more position of each row: (rows, 1, d) both.

        beams: (rows,) int32, the remembered row that each row continues.
        """
        if self._cache is None:
            raise RuntimeError("nothing is remembered: prefill comes first")
        positions, valid = self._cache.extend(beams)
        return self._run(hidden, valid, positions, self._cache)

    @property
    def cache(self) -> StageCache | None:
        """What is remembered of the texts being written."""
        return self._cache

    def forget(self) -> None:
        """Drop what `prefill` and `extend` remembered."""
        self._cache = None

    def _run(
        self,
        hidden: Tensor,
        valid: Tensor | None,
        positions: Tensor,
        cache: StageCache | None = None,
    ) -> Tensor:
        device = self.place.device
        output = self.body(
            inputs_embeds=hidden.to(device, self.place.dtype),
            attention_mask=None if valid is None else valid.to(device, torch.int64),
            position_ids=positions.to(device) + self._offset,
            past_key_values=cache.blocks if cache is not None and self.blocks else None,
            use_cache=cache is not None and self.blocks > 0,
        )
        return output.last_hidden_state.float()  # type: ignore[no-any-return]  # transformers is untyped here

    def _windowed(self, hidden: Tensor, layout: Layout) -> Tensor:
        """Run Longformer's blocks: whole windows, and global attention at each row's first place.

        The model would pad by itself, but with the embedding of a token that only the head has, and
        to the windows of its own blocks: all stages have to pad alike, or masks of dropout differ.
        """
        added = -layout.width % self.window
        padded = F.pad(hidden.to(self.place.device, self.place.dtype), (0, 0, 0, added))
        positions = F.pad(layout.positions.to(padded.device), (0, added)) + self._offset
        if not self.blocks:  # the model itself asks for a block's window
            embeddings = self.body.get_submodule(self.family.embeddings)
            embedded: Tensor = embeddings(inputs_embeds=padded, position_ids=positions)
            return embedded[:, : layout.width].float()
        valid = F.pad(layout.valid.to(padded.device, torch.int64), (0, added))
        first = torch.zeros_like(valid)
        first[:, 0] = 1
        output = self.body(
            inputs_embeds=padded,
            attention_mask=valid,
            global_attention_mask=first,
            position_ids=positions,
        )
        return output.last_hidden_state[:, : layout.width].float()  # type: ignore[no-any-return]  # as above

    def base_parameters(self) -> Iterator[nn.Parameter]:
        """The frozen tensors of the base; an adapter's are not, even where training skips them."""
        return (p for n, p in self.body.named_parameters() if ".lora_" not in n)

    def replica(self) -> Stage:
        """Return a copy with its own trained tensors and key, over the same frozen storage."""
        shared: dict[int, Any] = {id(p): p for p in self.base_parameters()}
        shared.update({id(b): b for b in self.body.buffers()})
        shared.update({id(m): m for m in quantised_modules(self.body)})  # they hold more of it
        return copy.deepcopy(self, shared)


@dataclass(frozen=True)
class Stages:
    """A model that is cut: `trunk` is None where no block stands between head and tail."""

    head: Stage
    trunk: Stage | None
    tail: Stage


def load_config(folder: Path) -> PretrainedConfig:
    """Read a base's configuration; ModelError when there is none or it can't be cut."""
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"{folder}: no usable config.json ({reason})") from error
    family_of(config)
    return config


def parse_config(values: Mapping[str, Any], name: str) -> PretrainedConfig:
    """Make a configuration of what a config.json says; `name` is what errors call it.

    Raises ModelError when it is of no model that can be cut.
    """
    try:
        kind = str(values["model_type"])
        own = {key: value for key, value in values.items() if key != "model_type"}
        config: PretrainedConfig = AutoConfig.for_model(kind, **own)
    except (KeyError, TypeError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ModelError(f"{name}: no usable config.json ({reason})") from error
    family_of(config)
    return config


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


def build_stage(
    config: PretrainedConfig,
    weights: Weights,
    role: Role,
    span: range,
    *,
    causal: bool = True,
    tokens: bool = False,
    dropout: float = 0.0,
    place: Placement = _HERE,
) -> Stage:
    """Build one stage and load its own tensors, and no others.

    span: the blocks it holds (whole-model numbers). causal: attend backwards only (encoders are
    turned into decoders by their configuration). tokens: keep the token embedding table in the
    head; without it the head takes vectors. dropout: hidden dropout of encoders. place: where its
    tensors go, and in which precision.

    Raises ModelError for an unknown family, a missing tensor or a wrong shape.
    """
    body = _sliced_body(config, role, span, causal=causal, tokens=tokens, dropout=dropout)
    body.to_empty(device="cpu")
    for module in body.modules():
        if module._non_persistent_buffers_set:  # positions and rotary tables are computed
            body._init_weights(module)
    family = family_of(config)
    stage = Stage(body, role, span.start, family, causal, _window(config), place)
    _load(stage, weights, config)
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
    body = _sliced_body(config, role, span, causal=causal, tokens=tokens, dropout=dropout)
    for parameter in body.parameters():
        parameter.data = parameter.data.to(dtype)
    place = Placement(_NOWHERE, dtype)
    stage = Stage(body, role, span.start, family_of(config), causal, _window(config), place)
    return stage.to(_NOWHERE)


def _sliced_body(
    config: PretrainedConfig, role: Role, span: range, *, causal: bool, tokens: bool, dropout: float
) -> PreTrainedModel:
    """Make the model of a stage, without any values."""
    family = family_of(config)
    if family.decoder and not causal:
        raise ModelError(f"a {config.model_type} model is causal; use an encoder as base")
    if causal and config.model_type == "longformer":
        raise ModelError("a longformer model can't be made causal; use another base")
    own = _slice_config(config, span, family, causal=causal, dropout=dropout)
    with no_init_weights(), torch.device(_NOWHERE):
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


def _window(config: PretrainedConfig) -> int:
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


def stored_names(stage: Stage, available: Set[str]) -> dict[str, str]:
    """Return what a file that has the names `available` calls each of a stage's own tensors.

    The stage is as `build_stage` or `outline_stage` made it; no adapter is attached yet.
    """
    wanted = {name: stage.whole_name(name) for name, _ in stage.body.named_parameters()}
    prefix = ""
    if wanted and next(iter(wanted.values())) not in available:
        prefix = f"{stage.body.base_model_prefix}."
    return {name: _stored_name(prefix + whole, available) for name, whole in wanted.items()}


def _load(stage: Stage, weights: Weights, config: PretrainedConfig) -> None:
    """Read the tensors of a stage, whose names in a file may carry the base model's prefix."""
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


def load_stage(
    folder: Path,
    role: Role,
    k_in: int,
    k_out: int,
    *,
    causal: bool = True,
    tokens: bool = False,
    dropout: float = 0.0,
    place: Placement = _HERE,
) -> Stage:
    """Build one stage from a folder with `config.json` and safetensors files."""
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
