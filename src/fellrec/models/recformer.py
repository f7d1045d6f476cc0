"""RecFormer: items and histories are texts, and one encoder reads both (METHOD section 3).

After Li et al., *Text Is All You Need* (KDD 2023, arXiv 2305.13731), the paper's second backbone. A
history is the text of its items, newest first; the oldest whole items are left out until it fits
the base. Each token has, besides its own embedding, one for the place of its item and one for its
type. The first token's last state stands for the history; an item is encoded as a history of
itself, and the next item is predicted by cosine / temperature over the whole catalogue. Targets are
random prefixes of the histories.

Two stages: item vectors are made anew at the beginning of each epoch; after `fixed_after` rounds
they stay as the client's model then encodes them, and only the histories' side goes on learning.

Where items are encoded and what it costs: through the cut, like histories, since the trunk is the
server's. The catalogue is public, so its texts hide nothing, but what comes out is the client's
own, made by its adapters. One pass over the catalogue's tokens, forward only, for each epoch of the
first stage and each time a model is made ready to score; there and back as many activations cross.
In the second stage there is none of it but for the first epoch.

Departures: embeddings of places and types start at zero, so that the untrained model is the base's
own encoder (the release pre-trains them on other domains); the base need not be a Longformer; the
fixed vectors are each client's own. A validation score reads the training history alone, where the
release leaks the validation item into its own input.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fellrec.data.interactions import Ragged
from fellrec.errors import ModelError
from fellrec.models.batching import by_budget, like_lengths
from fellrec.models.item_texts import TYPES, ItemTexts
from fellrec.models.layout import Layout
from fellrec.models.recommender import Batch, Entered, Kind, Recommender, Trunk
from fellrec.models.stages import Stage

Ints = npt.NDArray[np.int64]
ENCODED_TOKENS = 4096
"""Tokens of items that go through the stages at once, padding included."""


@dataclass(frozen=True)
class RecformerSettings:
    """history: most items read. max_tokens: most tokens read. temperature: cosines are divided by.

    fixed_after: rounds after which item vectors stay, 0 for never. random_prefixes: learn from
    prefixes drawn anew each epoch; else from each history's last item alone.
    """

    history: int = 50
    max_tokens: int = 512
    temperature: float = 0.05
    fixed_after: int = 0
    random_prefixes: bool = True


class Recformer(Recommender):
    """The client's part of a RecFormer.

    head, tail: stages of an encoder, the head with its token embeddings, adapters attached. texts:
    the catalogue. Raises ModelError when the texts are not of the base's vocabulary, or when its
    context has no room for an item.
    """

    entrance = frozenset({"item_positions", "token_types"})

    def __init__(
        self, head: Stage, tail: Stage, texts: ItemTexts, settings: RecformerSettings
    ) -> None:
        super().__init__()
        room = min(settings.max_tokens, head.context) - 1  # the first token takes one
        if room < 1:
            raise ModelError(
                f"recformer.max_tokens = {settings.max_tokens} over a base of {head.context} "
                "positions leaves no room for an item; raise it or use another base"
            )
        vocabulary = int(head.body.config.vocab_size)
        if max(texts.first, int(texts.tokens.values.max(initial=0))) >= vocabulary:
            raise ModelError(
                f"the tokenizer knows more tokens than the base's {vocabulary}; use the base's own"
            )
        self.head = head
        self.tail = tail
        self.settings = settings
        self._room = room
        self._texts = texts.cut(room)  # so that the newest item always fits
        width, device = head.width, head.place.device
        self.item_positions = nn.Parameter(torch.zeros(settings.history + 1, width, device=device))
        self.token_types = nn.Parameter(torch.zeros(TYPES, width, device=device))
        self.item_table = (
            nn.Parameter(torch.zeros(len(texts), width, device=device), requires_grad=False)
            if settings.fixed_after
            else None
        )
        self._table: Tensor | None = None

    def own_tensors(self) -> dict[str, tuple[Kind, nn.Parameter]]:
        """Return the embeddings of places and types, and the fixed item vectors if there are any.

        These are zeros until they are fixed, and never trained.
        """
        tensors = {
            "item_positions": (Kind.DENSE, self.item_positions),
            "token_types": (Kind.DENSE, self.token_types),
        }
        if self.item_table is not None:
            tensors["item_table"] = (Kind.PRIVATE, self.item_table)
        return tensors

    def begin_epoch(self, trunk: Trunk) -> None:
        """Make the item vectors that the epoch's losses share; fix them when it is time."""
        self._table = self._item_vectors(trunk)
        if self.item_table is not None and self.head.key.round >= self.settings.fixed_after:
            self.item_table.copy_(self._table)

    @property
    def epoch_positions(self) -> int:
        """Positions of the catalogue's texts, each with its first token."""
        return int(self._texts.lengths().sum()) + len(self._texts)

    def begin_serving(self, trunk: Trunk, train: Ragged) -> None:
        """Make the item vectors that all scores share."""
        self._table = self._item_vectors(trunk)

    @torch.no_grad()
    def _item_vectors(self, trunk: Trunk) -> Tensor:
        """The fixed vectors, else those that the model gives now: (items, d) of length 1."""
        if self.item_table is not None and bool(self.item_table.any()):
            return self.item_table.detach().clone()
        vectors = torch.empty(len(self._texts), self.head.width, device=self.head.place.device)
        for items in by_budget(self._texts.lengths() + 1, ENCODED_TOKENS):
            rows = Ragged.from_lengths(np.ones(len(items), np.int64), items.astype(np.int32))
            vectors[items] = self._encode(trunk, *self._texts.lay_out(rows))
        return vectors

    def training_batches(
        self, histories: Ragged, batch_size: int, windows: int, rng: np.random.Generator
    ) -> list[Batch]:
        """One epoch: of each history `windows` different random prefixes, or all there are."""
        if self.settings.random_prefixes:
            row, target = _random_targets(histories, windows, rng)
        else:
            row = np.flatnonzero(histories.lengths() >= 2)
            target = histories.offsets[row + 1] - 1
        start, lengths = self._windows(histories, row, target)
        return [
            self._batch(histories.values, row[chosen], start[chosen], target[chosen], train=True)
            for chosen in like_lengths(lengths, batch_size, rng)
        ]

    def serving_batches(self, histories: Ragged, batch_size: int) -> Iterator[Batch]:
        """Yield what fits of each history, in batches of like lengths."""
        row, stop = np.arange(len(histories)), histories.offsets[1:]
        start, lengths = self._windows(histories, row, stop)
        order = np.argsort(lengths, kind="stable")
        for first in range(0, len(order), batch_size):
            chosen = order[first : first + batch_size]
            yield self._batch(histories.values, chosen, start[chosen], stop[chosen], train=False)

    def enter(self, batch: Batch) -> Entered:
        """Run the head over histories as texts."""
        return Entered(self._enter(batch.layout, batch.inputs))

    def leave(self, outputs: Tensor, entered: Entered, batch: Batch) -> Tensor:
        """Cross-entropy of each row's target over the whole catalogue, summed."""
        logits = self._logits(self._pooled(outputs, batch.layout))
        return F.cross_entropy(logits, batch.targets.to(logits.device), reduction="sum")

    @torch.no_grad()
    def score(self, trunk: Trunk, batch: Batch, k: int) -> Tensor:
        """Cosine / temperature of each history with every item."""
        return self._logits(self._encode(trunk, batch.layout, batch.inputs)).cpu()

    def _logits(self, vectors: Tensor) -> Tensor:
        if self._table is None:
            raise RuntimeError("begin_epoch or begin_serving comes first")
        return vectors @ self._table.T / self.settings.temperature

    def _encode(self, trunk: Trunk, layout: Layout, inputs: Tensor) -> Tensor:
        """Run all stages over texts: the first position's output of each, (batch, d), length 1."""
        return self._pooled(trunk(self._enter(layout, inputs), layout), layout)

    def _enter(self, layout: Layout, inputs: Tensor) -> Tensor:
        """Run the head over texts: (batch, width, d)."""
        token, place, kind = inputs.to(self.item_positions.device).unbind(-1)
        hidden = self.head.embed(token) + F.embedding(place, self.item_positions)
        return self.head(hidden + F.embedding(kind, self.token_types), layout)  # type: ignore[no-any-return]  # nn.Module

    def _pooled(self, outputs: Tensor, layout: Layout) -> Tensor:
        return F.normalize(self.tail(outputs, layout)[:, 0], dim=-1)

    def _windows(self, histories: Ragged, row: Ints, stop: Ints) -> tuple[Ints, Ints]:
        """Where to begin so that what stands before `stop` fits, and the positions it then takes.

        row, stop: (n,) histories, and places in `histories.values` behind the newest item read.
        """
        sizes = self._texts.lengths()[histories.values]
        before = np.concatenate([[0], np.cumsum(sizes)])  # tokens of all that stands before a place
        fits = np.searchsorted(before, before[stop] - self._room)
        start = np.maximum.reduce([histories.offsets[row], stop - self.settings.history, fits])
        return start, before[stop] - before[start] + 1

    def _batch(
        self,
        values: npt.NDArray[np.int32],
        rows: Ints,
        start: Ints,
        stop: Ints,
        *,
        train: bool,
    ) -> Batch:
        """Lay histories out, newest item first; when training, the item at `stop` is the target."""
        count = stop - start
        back = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count) + 1
        newest_first = Ragged.from_lengths(count, values[np.repeat(stop, count) - back])
        layout, inputs = self._texts.lay_out(newest_first)
        targets = values[stop].astype(np.int64) if train else np.empty(0, np.int64)
        counts = np.full(len(rows), int(train), np.int64)
        return Batch(layout, inputs, torch.from_numpy(targets), rows, counts)


def _random_targets(histories: Ragged, windows: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Draw (history, place of the target in `histories.values`): `windows` different ones of each.

    Anything that an item came before can be a target; of short histories everything is.
    """
    rows = histories.rows()
    places = np.flatnonzero(np.arange(len(rows)) > histories.offsets[:-1][rows])
    places = places[np.lexsort((rng.random(len(places)), rows[places]))]
    drawn = rows[places]
    first = np.searchsorted(drawn, drawn)
    kept = np.arange(len(places)) - first < windows
    return drawn[kept], places[kept]
