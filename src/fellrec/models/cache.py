"""Keys and values of one stage for the texts that are being written (METHOD section 2).

Every stage keeps its own: the head and the tail on the client, the trunk on the server. So one new
token of a row costs one position each way, not the whole text again.

The memory of a row is laid out once and filled, where `transformers` joins tensors at every token.
Beams of one prompt share what the prompt left: while they only change places among themselves, what
was written after the prompt is moved and nothing else.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from fellrec.models.layout import Layout

_ROOM = 32  # columns added at a time: a title is rarely longer, so memory is laid out once or twice


def laid_out(columns: int, room: int = 0) -> int:
    """Return how many columns memory is laid out for once it holds so many.

    room: what it is laid out for already, 0 before the prompt.
    """
    return room if columns <= room else columns + _ROOM


class _Layer(DynamicLayer):
    """Keys and values of one block: (rows, heads, columns, channels), columns filled in turn."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # transformers
        self.filled = 0
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        """Append columns and return all that is filled, as views."""
        end = self.filled + key_states.shape[-2]
        self._keys = self._with_room(self._keys, key_states, end)
        self._values = self._with_room(self._values, value_states, end)
        self._keys[:, :, self.filled : end] = key_states
        self._values[:, :, self.filled : end] = value_states
        self.filled = end
        return self._keys[:, :, :end], self._values[:, :, :end]

    def _with_room(self, memory: Tensor | None, new: Tensor, end: int) -> Tensor:
        room = 0 if memory is None else memory.shape[2]
        if memory is not None and laid_out(end, room) == room:
            return memory
        rows, heads, _, channels = new.shape
        wider = new.new_empty(rows, heads, laid_out(end, room), channels)
        if memory is not None:
            wider[:, :, : self.filled] = memory[:, :, : self.filled]
        return wider

    def get_seq_length(self) -> int:
        """Return the number of filled columns."""
        return self.filled

    def move(self, rows: Tensor, first: int) -> None:
        """Let row i continue row `rows[i]`, whose columns before `first` are the same already."""
        for name in ("_keys", "_values"):
            memory = getattr(self, name)
            rows = rows.to(memory.device)
            if first == 0:
                chosen = memory.new_empty(len(rows), *memory.shape[1:])
                chosen[:, :, : self.filled] = memory[rows, :, : self.filled]
                setattr(self, name, chosen)
            else:
                memory[:, :, first : self.filled] = memory[rows, :, first : self.filled]


class StageCache:
    """What a stage of `blocks` blocks remembers of the rows it has read.

    layout: the prompts'. lengths: (rows,) int32, positions that each row holds by now. blocks: what
    the model's blocks write into. room: columns that each row's memory is laid out for, filled or
    not.
    """

    def __init__(self, layout: Layout, blocks: int) -> None:
        self.lengths: npt.NDArray[np.int32] = layout.lengths.astype(np.int32)
        self._layers = [_Layer() for _ in range(blocks)]
        self.blocks = Cache(layers=[*self._layers])
        self.room = laid_out(layout.width)
        self._prompt_width = layout.width
        self._written = 0
        self._prompts = np.arange(len(self.lengths))
        # Where a row's first position stands: padding is on the left, so it is before it.
        self._starts = layout.width - self.lengths

    @property
    def columns(self) -> int:
        """Columns of the rectangle, padding included."""
        return self._prompt_width + self._written

    def extend(self, beams: npt.NDArray[np.int32]) -> tuple[Tensor, Tensor | None]:
        """Choose the rows that get one more position: row i continues row `beams[i]`.

        Returns the new positions' places in their own texts, (rows, 1) int64, and which columns
        hold something, (rows, columns) bool, or None where all do.
        """
        same = len(beams) == len(self._prompts)
        if not (same and np.array_equal(beams, np.arange(len(beams)))):
            rows = torch.from_numpy(beams.astype(np.int64))
            near = same and np.array_equal(self._prompts[beams], self._prompts)
            for layer in self._layers:
                layer.move(rows, self._prompt_width if near else 0)
            self._prompts, self._starts = self._prompts[beams], self._starts[beams]
            self.lengths = self.lengths[beams]
        places = torch.from_numpy(self.lengths.astype(np.int64))[:, None]
        self.lengths = self.lengths + np.int32(1)
        self._written += 1
        self.room = laid_out(self.columns, self.room)
        starts = torch.from_numpy(self._starts.astype(np.int64))[:, None]
        valid = torch.arange(self.columns)[None, :] >= starts
        return places, None if bool((starts == 0).all()) else valid
