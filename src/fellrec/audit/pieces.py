"""Texts of histories as pieces, one for each item, and which pieces a text is most likely made of.

The catalogue is public, and so is how a history becomes a text. What all texts begin and end with
is found by comparing them; so is an item's piece, by writing a history of it alone and of it twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fellrec.audit.wiretap import Items
from fellrec.data.interactions import Ragged


@dataclass(frozen=True)
class Pieces:
    """What histories' texts are put together from, as tokens.

    alike: (items,) int64, the first item whose text is the same. items: (pieces,) int64, those
    first ones. before, after: what every text begins and ends with. inner: (pieces,) rows, each
    item's piece before another one; last: (pieces,) rows, its piece at the end of a history. A row
    of `inner` is empty where two such items do not fit a text.
    """

    alike: Items
    items: Items
    before: Items
    after: Items
    inner: Ragged
    last: Ragged

    @classmethod
    def of(cls, once: Sequence[Items], twice: Sequence[Items]) -> Pieces:
        """Take texts apart: of every item as a history of one, and of two of the same."""
        different: dict[bytes, int] = {}
        alike = np.array([different.setdefault(t.tobytes(), i) for i, t in enumerate(once)])
        items = np.unique(alike)
        texts = [once[item] for item in items]
        before = _shared(texts)
        room = min(len(text) - len(before) for text in texts) - 1
        after = _shared([text[::-1][: max(room, 0)] for text in texts])[::-1]
        first = len(before)
        last = [text[first : len(text) - len(after)] for text in texts]
        longer = [len(twice[item]) - len(once[item]) for item in items]
        inner = [
            twice[item][first : first + length] for item, length in zip(items, longer, strict=True)
        ]
        return cls(alike, items, before, after, Ragged.from_rows(inner), Ragged.from_rows(last))

    def tokens(self) -> Items:
        """Return the different tokens of all texts, sorted."""
        parts = (self.before, self.after, self.inner.values, self.last.values)
        return np.unique(np.concatenate(parts)).astype(np.int64)

    def spell(self, found: Sequence[int]) -> Items:
        """Return the tokens of a text between its beginning and its end. found: pieces in turn."""
        rows = [self.inner[piece] for piece in found[:-1]] + [self.last[p] for p in found[-1:]]
        return np.concatenate(rows).astype(np.int64) if rows else np.empty(0, np.int64)

    def read(self, tokens: Items) -> Items:
        """Return the items whose pieces differ from a text in the fewest tokens: (n,) int64.

        tokens: between the beginning and the end. None where no pieces add up to its length.
        """
        inner, last = (_unequal(tokens, rows) for rows in (self.inner, self.last))
        return self.items[align(inner, last, self)]


def _unequal(tokens: Items, rows: Ragged) -> Tensor:
    return torch.from_numpy((tokens[:, None] != rows.values[None]).astype(np.float32))


def _shared(texts: Sequence[Items]) -> Items:
    """What all texts begin with."""
    length = min(map(len, texts))
    table = np.stack([text[:length] for text in texts])
    same = (table == table[0]).all(axis=0)
    found: Items = table[0][: int(same.argmin()) if not same.all() else length]
    return found


def align(inner: Tensor, last: Tensor, pieces: Pieces) -> list[int]:
    """Return the pieces that fit a text best: their distances add up to the least.

    inner, last: (length, tokens) how far each position of the text is from each token of the rows
    of `pieces.inner` and `pieces.last`. By dynamic programming over where pieces end. Empty where
    no pieces add up to the length.
    """
    length = len(inner)
    least = np.full(length + 1, np.inf)
    least[0] = 0
    came: list[tuple[int, int]] = [(0, -1)] * (length + 1)
    steps = list(_cheapest(inner, pieces.inner))
    for place in range(length):
        if np.isinf(least[place]):
            continue
        for size, costs, which in steps:
            if place < len(costs) and least[place] + costs[place] < least[place + size]:
                least[place + size] = least[place] + costs[place]
                came[place + size] = place, int(which[place])
    ends = [
        (least[length - size] + costs[-1], length - size, int(which[-1]))
        for size, costs, which in _cheapest(last, pieces.last)
    ]
    total, place, piece = min(ends, default=(np.inf, 0, 0))
    if np.isinf(total):
        return []
    found = [piece]
    while place:
        place, piece = came[place]
        found.append(piece)
    return found[::-1]


def _cheapest(
    distance: Tensor, rows: Ragged
) -> Iterator[tuple[int, NDArray[np.float64], NDArray[np.int64]]]:
    """Yield each length of rows, and for each place the cheapest row there: its cost and number."""
    lengths = rows.lengths()
    for size in np.unique(lengths[(lengths > 0) & (lengths <= len(distance))]).tolist():
        which = np.flatnonzero(lengths == size)
        costs, at = spans(distance, rows, which).min(dim=1)
        yield size, costs.double().numpy(), which[at.numpy()]


def spans(distance: Tensor, rows: Ragged, which: NDArray[np.integer]) -> Tensor:
    """Add up what rows of one length cost at each place: (places, rows).

    distance: (length, tokens of all rows). which: the rows' numbers.
    """
    size = int(rows.lengths()[which[0]])
    places = len(distance) - size + 1
    starts = torch.from_numpy(rows.offsets[:-1][which])
    costs = distance.new_zeros(places, len(which))
    for step in range(size):
        costs += distance[step : step + places].index_select(1, starts + step)
    return costs
