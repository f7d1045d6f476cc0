"""What anybody can work out of a head that is public: how long its activations are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fellrec.data.interactions import Ragged
from fellrec.models.recommender import Recommender

_BATCH = 128  # histories that the head reads at a time
_MADE_UP = 32  # histories by which a typical length is found


def made_up(rng: np.random.Generator, count: int, longest: int, items: int) -> Ragged:
    """Make up histories of 1 … `longest` items, drawn evenly: nobody's, so they may be public."""
    lengths = rng.integers(1, longest + 1, count)
    return Ragged.from_lengths(
        lengths, rng.integers(items, size=int(lengths.sum())).astype(np.int32)
    )


@torch.no_grad()
def activations(recommender: Recommender, histories: Ragged) -> list[Tensor]:
    """Return what a head in serving mode gives for histories: (length, d) each, in their order."""
    found: dict[int, Tensor] = {}
    for batch in recommender.serving_batches(histories, _BATCH):
        packed = batch.layout.pack(recommender.enter(batch).hidden)
        parts = packed.split(batch.layout.lengths.tolist())
        found |= dict(zip(batch.rows.tolist(), parts, strict=True))
    return [found[row] for row in range(len(histories))]


def typical_length(rows: Sequence[Tensor]) -> float:
    """Return the median length of activations, (length, d) each."""
    return float(torch.cat([each.norm(dim=-1) for each in rows]).median())


def public_bound(
    recommender: Recommender, rng: np.random.Generator, longest: int, items: int
) -> float:
    """Return the typical length of activations of made-up histories of up to `longest` items.

    The head is taken as it is installed; with a public head and generator, so is the length.
    """
    training = recommender.training
    recommender.eval()
    found = typical_length(activations(recommender, made_up(rng, _MADE_UP, longest, items)))
    recommender.train(training)
    return found
