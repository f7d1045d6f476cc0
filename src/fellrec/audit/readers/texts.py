"""Recommenders that read histories as texts: positions are tokens, and items are pieces of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TypeVar

import numpy as np
from torch import Tensor

from fellrec.audit.pieces import Pieces
from fellrec.audit.readers.reader import Reader
from fellrec.audit.recovery import Content
from fellrec.audit.wiretap import Items
from fellrec.data.interactions import Ragged

_Positions = TypeVar("_Positions", Items, Tensor)


class TextReader(Reader):
    """Knows items by their texts. items: how many the catalogue has."""

    def __init__(self, items: int) -> None:
        every = np.arange(items, dtype=np.int32)
        self.once = Ragged.from_lengths(np.ones(items, np.int64), every)
        self.twice = Ragged.from_lengths(np.full(items, 2, np.int64), np.repeat(every, 2))

    @cached_property
    def pieces(self) -> Pieces:
        """The catalogue's texts, taken apart."""
        return Pieces.of(self.inputs(self.once), self.inputs(self.twice))

    @property
    def alike(self) -> Items:
        """The first item whose text is the same, (items,) int64."""
        return self.pieces.alike

    @property
    def units(self) -> Items:
        """The different tokens of the catalogue's texts, (n,) int64 sorted."""
        return self._tokens

    @cached_property
    def _tokens(self) -> Items:
        return self.pieces.tokens()

    @property
    def begins(self) -> int:
        """Tokens that every text begins with."""
        return len(self.pieces.before)

    @property
    def ends(self) -> int:
        """Tokens that every text ends with."""
        return len(self.pieces.after)

    def content(self, inputs: Items) -> Content:
        """The items whose pieces are nearest to the tokens, and the tokens but for both ends."""
        return self.guessed(self.inside(inputs))

    def guessed(self, tokens: Items) -> Content:
        """The same of tokens without both ends."""
        return Content(self.pieces.read(tokens), tokens)

    def inside(self, positions: _Positions) -> _Positions:
        """Leave out what is the same in every text: (length, …) -> (length - both ends, …)."""
        return positions[self.begins : len(positions) - self.ends]

    def spelled(self, found: Sequence[int]) -> Content:
        """The content of a text that is put together from pieces."""
        return Content(self.pieces.items[list(found)], self.pieces.spell(found))
