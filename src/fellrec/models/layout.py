"""Which positions of a padded batch are real, and how to leave the others out.

Padding never travels: a frame carries the valid rows alone, with each sequence's length and the
side of the padding. Both ends of the cut build the same `Layout` from those, so the trunk sees the
padding, the mask and the positions that the whole model would have seen (METHOD section 2).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Side = Literal["left", "right"]


@dataclass(frozen=True)
class Layout:
    """A ragged batch laid out in a rectangle.

    lengths: (batch,) int32, each at least 1. side: where the padding stands. The width of the
    rectangle is the longest length, on both ends of the wire.
    """

    lengths: npt.NDArray[np.int32]
    side: Side = "right"

    @cached_property
    def width(self) -> int:
        """Positions per row of the rectangle."""
        return int(self.lengths.max())

    @cached_property
    def total(self) -> int:
        """Valid positions in the whole batch."""
        return int(self.lengths.sum())

    @property
    def full(self) -> bool:
        """True where no row has padding."""
        return self.total == len(self.lengths) * self.width

    @cached_property
    def valid(self) -> Tensor:
        """(batch, width) bool: the positions that hold something."""
        columns = torch.arange(self.width)[None, :]
        lengths = torch.from_numpy(self.lengths.astype(np.int64))[:, None]
        if self.side == "right":
            return columns < lengths
        return columns >= self.width - lengths

    @cached_property
    def positions(self) -> Tensor:
        """(batch, width) int64: place of each position in its own sequence, from 0.

        Right padding goes on counting, since nothing valid attends to it; left padding stands at 0.
        """
        columns = torch.arange(self.width)[None, :].expand(len(self.lengths), -1)
        if self.side == "right":
            return columns
        start = self.width - torch.from_numpy(self.lengths.astype(np.int64))[:, None]
        return (columns - start).clamp(min=0)

    @cached_property
    def index(self) -> Tensor:
        """(total,) int64: flat places of the valid positions in row-major order."""
        return self.valid.flatten().nonzero().squeeze(1)

    @cached_property
    def last(self) -> Tensor:
        """(batch,) int64: flat place of the last valid position of each row."""
        rows = torch.arange(len(self.lengths)) * self.width
        if self.side == "left":
            return rows + self.width - 1
        return rows + torch.from_numpy(self.lengths.astype(np.int64)) - 1

    def pack(self, hidden: Tensor) -> Tensor:
        """Leave the padding out: (batch, width, d) -> (total, d)."""
        flat = hidden.reshape(-1, hidden.shape[-1])
        return flat if self.full else flat.index_select(0, self.index.to(flat.device))

    def unpack(self, packed: Tensor) -> Tensor:
        """Put the padding back as zeros: (total, d) -> (batch, width, d)."""
        batch, channels = len(self.lengths), packed.shape[-1]
        if self.full:
            return packed.view(batch, self.width, channels)
        flat = packed.new_zeros(batch * self.width, channels)
        flat.index_copy_(0, self.index.to(flat.device), packed)
        return flat.view(batch, self.width, channels)
