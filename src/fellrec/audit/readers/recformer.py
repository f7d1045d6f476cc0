"""RecFormer: positions are the tokens of items' texts, newest item first, and attention goes both
ways: what the head gives at a position depends on all of the text, so no item can be told before
the others.

`nearest` reads every item alone once, and finds the pieces whose activations fit best, wherever one
ends and the next begins (`pieces.align`). `search` reads the history that was guessed, takes what
its neighbours added to each item's activations for what they added in truth, and aligns once more,
until nothing changes; then it tries other items at each place where the fit is not exact, all of
the text read anew for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fellrec.audit.inversion import EXACT
from fellrec.audit.labels import judged
from fellrec.audit.pieces import align, spans
from fellrec.audit.readers.reader import told_by
from fellrec.audit.readers.texts import TextReader
from fellrec.audit.recovery import Content
from fellrec.audit.wiretap import Items, Step
from fellrec.data.interactions import Ragged
from fellrec.models.dropout import StepKey
from fellrec.models.recformer import Recformer
from fellrec.models.recommender import Trunk

_ALIGNED = 8
"""How often a text is aligned at most."""
_TRIED = 16
"""Other items that are tried at a place at a time."""
_BATCH = 128


@dataclass(frozen=True)
class _Alone:
    """What the head gives for each token of the pieces: (tokens, d), read among themselves."""

    inner: Tensor
    last: Tensor


@dataclass(frozen=True)
class _Guess:
    """pieces: newest first. outputs: (length, d) what the head gives for them, without both ends.

    error: (length,) its squared distance from what was seen.
    """

    pieces: list[int]
    outputs: Tensor
    error: Tensor


class RecformerReader(TextReader):
    """Knows items by the tokens of their texts."""

    def __init__(self, recommender: Recformer, items: int) -> None:
        super().__init__(items)
        self._recommender = recommender

    @property
    def recommender(self) -> Recformer:
        """Whose histories these are."""
        return self._recommender

    def vectors(self) -> Tensor:
        """The embeddings of the tokens that texts are made of, (units, d)."""
        return self._recommender.head.embed(torch.from_numpy(self.units))

    @torch.no_grad()
    def read_back(self, seen: Sequence[Tensor], most: int) -> dict[str, list[Content]]:
        """`nearest` and `search`; see the module."""
        alone = self._alone()
        inside = [self.inside(each) for each in seen]
        firsts = [self._aligned(each, alone) for each in inside]
        return {
            "nearest": [self.spelled(each) for each in firsts],
            "search": [
                self.spelled(self._search(each, first, alone, most))
                for each, first in zip(inside, firsts, strict=True)
            ],
        }

    def _search(self, seen: Tensor, first: list[int], alone: _Alone, most: int) -> list[int]:
        guess = self._tried(seen, first) if first else None
        if guess is None:
            return first
        goal = EXACT**2 * seen.square().sum(dim=1)
        best, known = guess, {tuple(first)}
        for _ in range(_ALIGNED):
            if bool((best.error <= goal).all()):
                return best.pieces
            added = guess.outputs - self._own(guess.pieces, alone)
            again = self._aligned(seen - added, alone)
            if tuple(again) in known:
                break
            known.add(tuple(again))
            tried = self._tried(seen, again)
            if tried is None:
                break
            guess, best = tried, min(best, tried, key=_total)
        added = best.outputs - self._own(best.pieces, alone)
        fits = torch.cdist(seen - added, alone.inner), torch.cdist(seen - added, alone.last)
        place = 0
        for number in range(len(best.pieces)):
            at_end = number == len(best.pieces) - 1
            rows, fit = (self.pieces.last, fits[1]) if at_end else (self.pieces.inner, fits[0])
            size = len(rows[best.pieces[number]])
            if bool((best.error[place : place + size] > goal[place : place + size]).any()):
                which = np.flatnonzero(rows.lengths() == size)
                order = spans(fit.square(), rows, which)[place].argsort()[: most or None]
                for part in order.split(_TRIED):
                    others = [
                        [*best.pieces[:number], int(which[at]), *best.pieces[number + 1 :]]
                        for at in part
                    ]
                    best = min([best, *self._all_tried(seen, others)], key=_total)
                    if bool((best.error[place : place + size] <= goal[place : place + size]).all()):
                        break
            place += size
        return best.pieces

    def _aligned(self, seen: Tensor, alone: _Alone) -> list[int]:
        inner, last = (torch.cdist(seen, each).square() for each in (alone.inner, alone.last))
        return align(inner, last, self.pieces)

    def _tried(self, seen: Tensor, guess: list[int]) -> _Guess | None:
        found = self._all_tried(seen, [guess])
        return found[0] if found else None

    def _all_tried(self, seen: Tensor, guesses: Sequence[list[int]]) -> list[_Guess]:
        """Read histories that are guessed; left out are those that would not be read as a whole."""
        items = self.pieces.items.astype(np.int32)
        rows = [items[guess[::-1]] for guess in guesses]  # oldest first
        outputs = [self.inside(each) for each in self.activations(Ragged.from_rows(rows))]
        return [
            _Guess(guess, output, (output - seen).square().sum(dim=1))
            for guess, output in zip(guesses, outputs, strict=True)
            if len(output) == len(seen)
        ]

    def _own(self, guess: list[int], alone: _Alone) -> Tensor:
        """What the pieces of a guess give when read alone, (length, d)."""
        parts = [
            each[rows.offsets[piece] : rows.offsets[piece + 1]]
            for each, rows, found in (
                (alone.inner, self.pieces.inner, guess[:-1]),
                (alone.last, self.pieces.last, guess[-1:]),
            )
            for piece in found
        ]
        return torch.cat(parts)

    def _alone(self) -> _Alone:
        items, first = self.pieces.items, self.begins
        once = [self.inside(each) for each in self.activations(self.once.take(items))]
        twice = self.activations(self.twice.take(items))
        lengths = self.pieces.inner.lengths().tolist()
        inner = [each[first : first + size] for each, size in zip(twice, lengths, strict=True)]
        return _Alone(torch.cat(inner), torch.cat(once))

    def labels(self, step: Step) -> Items:
        """Each row's one target."""
        found: Items = self.alike[step.batch.targets.numpy()]
        return found

    def told(self, steps: Sequence[Step], key: StepKey, trunk: Trunk) -> dict[str, list[int]]:
        """`prediction` and `gradient` of labels.py, against items as the server encodes them."""
        recommender = self._recommender
        table = self._item_vectors(trunk)
        scale = 1 / recommender.settings.temperature

        def judge(step: Step) -> tuple[Tensor, Tensor]:
            return judged(step, recommender.tail, key, table, scale, "first")

        return told_by(recommender, steps, self.labels, judge)

    @torch.no_grad()
    def _item_vectors(self, trunk: Trunk) -> Tensor:
        recommender = self._recommender
        vectors = torch.empty(len(self.once), recommender.head.width)
        for batch in recommender.serving_batches(self.once, _BATCH):
            hidden = trunk(recommender.enter(batch).hidden, batch.layout)
            pooled = recommender.tail(hidden, batch.layout)[:, 0]
            vectors[batch.rows] = F.normalize(pooled, dim=-1).cpu()
        return vectors


def _total(guess: _Guess) -> float:
    return float(guess.error.sum())
