"""A catalogue as tokens: an item is its attributes, name and value one after another.

After RecFormer, which calls this flattening ("title Toy Story release year 1995"). Every text is
tokenised once, alone and as in running text, and put together as token sequences afterwards: a
history is a first token and the tokens of its items, newest first. Each token carries the place of
its item and whether it spells a name or a value.

The catalogue is public, so nothing private enters here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from fellrec.data.interactions import Catalogue, Ragged
from fellrec.errors import DataError, ModelError
from fellrec.models.layout import Layout

FIRST, NAME, VALUE = range(3)
"""Types of tokens."""
TYPES = 3


@dataclass(frozen=True)
class ItemTexts:
    """All items of a catalogue.

    first: the token that every text begins with. tokens, types: (items,) rows of the same lengths,
    at least one token each.
    """

    first: int
    tokens: Ragged
    types: Ragged

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.tokens)

    def lengths(self) -> npt.NDArray[np.int64]:
        """Return the tokens of each item, (items,) int64."""
        return self.tokens.lengths()

    def cut(self, most: int) -> ItemTexts:
        """Return items of at most `most` tokens each, their ends cut off."""
        return ItemTexts(self.first, _cut(self.tokens, most), _cut(self.types, most))

    def lay_out(self, items: Ragged) -> tuple[Layout, Tensor]:
        """Lay rows of items out as texts, padded on the right.

        Returns the layout and (rows, width, 3) int64: token, place of its item (1 for a row's first
        item, 0 for the first token), type.
        """
        tokens, types = self.tokens.take(items.values), self.types.take(items.values)
        starts, ends = tokens.offsets[items.offsets[:-1]], tokens.offsets[items.offsets[1:]]
        lengths = ends - starts
        layout = Layout((lengths + 1).astype(np.int32))
        inputs = np.zeros((len(items), layout.width, 3), np.int64)
        inputs[:, :, 0] = self.first  # padding is never read, but has to be a token
        row = np.repeat(np.arange(len(items)), lengths)
        column = np.arange(len(tokens.values)) - np.repeat(starts, lengths) + 1
        place = np.arange(len(items.values)) - items.offsets[:-1][items.rows()] + 1
        inputs[row, column, 0] = tokens.values
        inputs[row, column, 1] = place[tokens.rows()]
        inputs[row, column, 2] = types.values
        return layout, torch.from_numpy(inputs)


def item_texts(catalogue: Catalogue, tokenizer: PreTrainedTokenizerBase, most: int) -> ItemTexts:
    """Tokenise a catalogue; texts longer than `most` tokens are cut, empty ones left out.

    White space is normalised, and a title that spells a special token is a title all the same.

    Raises DataError when an item has no text at all, ModelError when the tokenizer has no token of
    its own for a text to begin with.
    """
    empty = Ragged.from_lengths(np.zeros(len(catalogue), np.int64), np.empty(0, np.int32))
    tokens, types = empty, empty
    for name, texts in [("title", catalogue.titles), *catalogue.attributes.items()]:
        own = _encode(tokenizer, [name.replace("_", " ")], most)[0]
        rows = [[*own, *row] if row else [] for row in _encode(tokenizer, texts, most)]
        column = Ragged.from_rows(rows)
        place = np.arange(len(column.values)) - column.offsets[:-1][column.rows()]
        kinds = np.where(place < len(own), NAME, VALUE).astype(np.int32)
        tokens, types = tokens.concat(column), types.concat(Ragged(column.offsets, kinds))
    bare = np.flatnonzero(tokens.lengths() == 0)
    if len(bare):
        raise DataError(
            f"{len(bare)} of {len(catalogue)} items have no text, item {catalogue.ids[bare[0]]!r} "
            "first; give each a title or another attribute, or leave it out"
        )
    return ItemTexts(_first(tokenizer), tokens, types)


def _encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], most: int) -> list[list[int]]:
    """Tokenise texts as if each followed another: many tokenizers spell a text's beginning apart.

    Equal ones are tokenised once.
    """
    plain = [" ".join(text.split()) for text in texts]
    different = [text for text in dict.fromkeys(plain) if text]
    if not different:
        return [[] for _ in plain]
    encoded: Any = tokenizer(
        [f" {text}" for text in different],
        add_special_tokens=False,
        split_special_tokens=True,
        truncation=True,
        max_length=most,
        return_attention_mask=False,
    )
    known: dict[str, list[int]] = dict(zip(different, encoded["input_ids"], strict=True))
    return [known.get(text, []) for text in plain]


def _first(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token to begin with: the classifier's where there is one, else the next best."""
    for name in ("cls", "bos", "sep", "eos", "pad", "unk"):
        token: int | None = getattr(tokenizer, f"{name}_token_id")
        if token is not None:
            return token
    raise ModelError(
        "the base's tokenizer has no special token that a text could begin with; use another base"
    )


def _cut(rows: Ragged, most: int) -> Ragged:
    place = np.arange(len(rows.values)) - rows.offsets[:-1][rows.rows()]
    return Ragged.from_lengths(np.minimum(rows.lengths(), most), rows.values[place < most])
