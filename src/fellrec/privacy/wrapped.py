"""A trunk in front of another."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from torch import Tensor

from fellrec.models.layout import Layout
from fellrec.models.recommender import Trunk


class WrappedTrunk(Trunk):
    """Hands everything on to another trunk, one micro-batch at a time: `overlaps` is False."""

    def __init__(self, inner: Trunk) -> None:
        super().__init__()
        self.inner = inner
        self.key = inner.key

    @property
    def seconds(self) -> float:
        """Time spent waiting for the other trunk, as that counts it; 0 where it does not."""
        return float(getattr(self.inner, "seconds", 0.0))

    def forward(self, hidden: Tensor, layout: Layout) -> Tensor:
        """Run the blocks: (batch, width, d) both."""
        return self.inner(hidden, layout)  # type: ignore[no-any-return]  # nn.Module

    def prefill(self, hidden: Tensor, layout: Layout) -> Tensor:
        """Run prompts, and remember them: (batch, width, d) both."""
        return self.inner.prefill(hidden, layout)

    def extend(self, hidden: Tensor, beams: npt.NDArray[np.int32]) -> Tensor:
        """Run one more position of each row, (rows, 1, d) both."""
        return self.inner.extend(hidden, beams)

    def end_step(self, squared_norm: float) -> float:
        """Exchange squared gradient norms; these cross as they are."""
        return self.inner.end_step(squared_norm)
