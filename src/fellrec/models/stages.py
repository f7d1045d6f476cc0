"""Run some consecutive blocks of a base model: head, trunk or tail (METHOD section 2).

A stage is a model of the base's own class over a slice of its layer list (`slicing.py`), with its
own weights and no others (`filling.py`). Longformer's blocks attend within windows, and globally at
the first position, whose text they read for all others: each of its stages pads to the whole
model's windows and builds that mask itself.

Attention dropout is switched off: the fused kernels draw it from global random state, and every
mask here has to be the same in a split and a whole model. Hidden dropout and LoRA dropout are keyed
(`dropout.py`).

Where a stage's tensors live and in which precision is a `Placement`; what comes in is moved there,
and what goes out is float32.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from fellrec.models.cache import StageCache
from fellrec.models.dropout import StepKey, key_dropouts
from fellrec.models.families import BERT, Family
from fellrec.models.layout import Layout
from fellrec.models.placement import HERE, Placement, quantised_modules

Role = Literal["head", "trunk", "tail", "whole"]


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
        place: Placement = HERE,
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
