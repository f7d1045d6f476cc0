"""HLLM: one vector per item, a causal language model over the vectors (METHOD section 3).

After ByteDance's HLLM (arXiv 2409.12740). An item encoder turns each item's text into a vector
once; a learned projection and a learned residual per item make it the vector that the sequence
model reads and that its outputs are compared with (cosine times a learned scale). The next item is
predicted at every position, over the whole catalogue.

Departures: the item encoder is frozen (the paper trains both models), so that its vectors are
computed once and no client needs it; encoders serve as sequence model with a causal mask.

The residual's kind is a choice. `shared`: mixed like any dense tensor, learns far better, but its
changes tell the coordinator which items a client's users touched. `local`: never leaves the client.
`none`: there is none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fellrec.data.interactions import Ragged
from fellrec.errors import ModelError
from fellrec.models.batching import like_lengths
from fellrec.models.dropout import StepKey
from fellrec.models.layout import Layout
from fellrec.models.recommender import Batch, Entered, Kind, Recommender, Trunk
from fellrec.models.stages import Stage

ItemResidual = Literal["shared", "local", "none"]


@dataclass(frozen=True)
class HllmSettings:
    """history: most items read. item_residual: see the module. scale: initial cosine scale."""

    history: int = 50
    item_residual: ItemResidual = "shared"
    scale: float = 10.0


class Hllm(Recommender):
    """The client's part of an HLLM.

    head, tail: stages of the sequence model, adapters attached. text_vectors: (items, d_text)
    float32 from the item encoder, frozen and public. Raises ModelError when the base has fewer
    positions than a history.
    """

    entrance = frozenset({"projection", "item_residual"})

    def __init__(
        self, head: Stage, tail: Stage, text_vectors: Tensor, settings: HllmSettings, seed: int
    ) -> None:
        super().__init__()
        if settings.history > head.context:
            raise ModelError(
                f"model.history = {settings.history} passes the base's {head.context} positions; "
                "lower it"
            )
        self.head = head
        self.tail = tail
        self.settings = settings
        width, device = head.width, head.place.device
        self.text_vectors: Tensor
        self.register_buffer("text_vectors", text_vectors.to(device), persistent=False)
        self.projection = nn.Parameter(_orthogonal(width, text_vectors.shape[1], seed).to(device))
        self.scale = nn.Parameter(torch.tensor(settings.scale, device=device))
        self.item_residual = (
            nn.Parameter(torch.zeros(text_vectors.shape[0], width, device=device))
            if settings.item_residual != "none"
            else None
        )
        self._served: Tensor | None = None

    def own_tensors(self) -> dict[str, tuple[Kind, nn.Parameter]]:
        """Return projection, scale and, if there is one, the item residual with its kind."""
        tensors = {
            "projection": (Kind.DENSE, self.projection),
            "scale": (Kind.DENSE, self.scale),
        }
        if self.item_residual is not None:
            kind = Kind.DENSE if self.settings.item_residual == "shared" else Kind.PRIVATE
            tensors["item_residual"] = (kind, self.item_residual)
        return tensors

    def begin_serving(self, trunk: Trunk, train: Ragged) -> None:
        """Make the table of item vectors that all scores share."""
        with torch.no_grad():
            self._served = self.item_vectors()

    def item_vectors(self) -> Tensor:
        """Vectors of all items: (items, d) = text · projectionᵀ + residual."""
        projected = self.text_vectors @ self.projection.T
        return projected if self.item_residual is None else projected + self.item_residual

    def training_batches(
        self, histories: Ragged, batch_size: int, windows: int, rng: np.random.Generator
    ) -> list[Batch]:
        """One epoch: each history's last window, and up to `windows` - 1 earlier ones at random."""
        row, start, stop = _windows(histories, self.settings.history + 1, windows, rng)
        return [
            _batch(histories.values, row[chosen], start[chosen], stop[chosen], train=True)
            for chosen in like_lengths(stop - start, batch_size, rng)
        ]

    def serving_batches(self, histories: Ragged, batch_size: int) -> Iterator[Batch]:
        """Yield the last `history` items of each history, in batches of like lengths."""
        stop = histories.offsets[1:]
        start = np.maximum(histories.offsets[:-1], stop - self.settings.history)
        order = np.argsort(stop - start, kind="stable")
        for first in range(0, len(order), batch_size):
            rows = order[first : first + batch_size]
            yield _batch(histories.values, rows, start[rows], stop[rows], train=False)

    def enter(self, batch: Batch) -> Entered:
        """Look the items up and run the head; the table of items is shared with `leave`."""
        table = self.item_vectors()
        return Entered(self._enter(batch, table), table)

    def leave(self, outputs: Tensor, entered: Entered, batch: Batch) -> Tensor:
        """Cross-entropy over the whole catalogue at every valid position, summed."""
        if entered.shared is None:
            raise RuntimeError("the table of items is missing")
        packed = batch.layout.pack(self.tail(outputs, batch.layout))
        items = F.normalize(entered.shared, dim=-1)
        logits = self.scale * F.normalize(packed, dim=-1) @ items.T
        return F.cross_entropy(logits, batch.targets.to(logits.device), reduction="sum")

    def score(self, trunk: Trunk, batch: Batch, k: int) -> Tensor:
        """Cosine times scale of the last position's output with every item."""
        if self._served is None:
            raise RuntimeError("begin_serving comes first")
        with torch.no_grad():
            hidden = trunk(self._enter(batch, self._served), batch.layout)
            outputs = self.tail(hidden, batch.layout).flatten(0, 1)
            last = outputs.index_select(0, batch.layout.last.to(outputs.device))
            served = F.normalize(self._served, dim=-1)
            return (self.scale * F.normalize(last, dim=-1) @ served.T).cpu()

    def _enter(self, batch: Batch, table: Tensor) -> Tensor:
        """Look the items up and run the head: (batch, width, d)."""
        looked_up = F.embedding(batch.inputs.to(table.device), table)
        return self.head(looked_up, batch.layout)  # type: ignore[no-any-return]  # nn.Module


def _orthogonal(rows: int, columns: int, seed: int) -> Tensor:
    """The identity where it fits, else a random (semi-)orthogonal matrix: lengths are kept."""
    if rows == columns:
        return torch.eye(rows)
    generator = StepKey(seed=seed).generator("init", "projection")
    return nn.init.orthogonal_(torch.empty(rows, columns), generator=generator)


def _windows(
    histories: Ragged, size: int, windows: int, rng: np.random.Generator
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Choose (history, start, stop) of training windows of 2 … `size` items in `histories.values`.

    The last window of each history always; of longer histories, others that end anywhere before.
    """
    lengths = histories.lengths()
    rows = np.flatnonzero(lengths >= 2)
    row, stop = rows, histories.offsets[rows + 1]
    for extra in range(1, windows):
        longer = rows[lengths[rows] > extra * (size - 1) + 1]
        last = histories.offsets[longer + 1]
        first = histories.offsets[longer] + size
        row = np.concatenate([row, longer])
        stop = np.concatenate([stop, rng.integers(first, last)])  # before the last one's end
    start = np.maximum(histories.offsets[row], stop - size)
    return row, start, stop


def _batch(
    values: npt.NDArray[np.int32],
    rows: npt.NDArray[np.int64],
    start: npt.NDArray[np.int64],
    stop: npt.NDArray[np.int64],
    *,
    train: bool,
) -> Batch:
    """Lay windows out, padded on the right; when training, each position's target is the next."""
    layout = Layout((stop - start - train).astype(np.int32))
    places = start[:, None] + np.arange(layout.width)[None, :]
    inputs = values[np.minimum(places, stop[:, None] - 1)].astype(np.int64)
    valid = layout.valid.numpy()
    targets = values[(places + 1)[valid]].astype(np.int64) if train else np.empty(0, np.int64)
    counts = layout.lengths.astype(np.int64) * train
    return Batch(layout, torch.from_numpy(inputs), torch.from_numpy(targets), rows, counts)
