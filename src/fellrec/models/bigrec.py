"""BIGRec: a causal language model that writes the title of the next item (METHOD section 3).

After Bao et al., *A Bi-Step Grounding Paradigm for Large Language Models in Recommendation Systems*
(2023). The model is tuned to answer a prompt, a list of titles, with a title, and what it writes is
grounded: brought back to items that exist. Three ways to do so, all over the split model:

- `ground`: four beams are written, and titles are ranked by the L2 distance of their vectors to
  that of the best text. A vector is the last hidden state at the last token, by the client's model.
- `trie`: only titles of the catalogue can be written. They are ranked by their probability, and
  what was not written stands behind, by distance to the best one.
- `retrieve`: nothing is written; titles are ranked by their distance to the prompt's last state.

What a user has taken is never written in `trie` and never ranked in any. Items of one title have
one place among them: which comes first is drawn anew for each history.

Where it runs and what it costs: head, tail and the output layer are the client's, so neither tokens
nor logits leave it. A new token costs one position of each beam each way. Title vectors are made
through the cut with the client's adapters when a ranking first needs them, one pass over all titles
(`trie` needs none as long as it writes as many titles as are asked for).

Departures: the loss covers the response alone unless `loss_on` says otherwise (the release learns
the prompt too); a text's score has no length penalty (`beams.py`); vectors come from the tuned
model, where the release takes the untuned one.

Popularity reweighting is the paper's: distances are scaled to 0 … 1 and divided by
(1 + popularity)^strength. Popularity is counted in the client's own training histories, and the
strength that did best on its validation users stays with the client.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fellrec.data.interactions import Ragged
from fellrec.errors import ModelError
from fellrec.models.batching import by_budget, like_lengths
from fellrec.models.beams import Written, beam_search
from fellrec.models.families import FAMILIES
from fellrec.models.layout import Layout
from fellrec.models.prompts import Prompts, Tokens
from fellrec.models.recommender import Batch, Entered, Kind, Recommender, Trunk
from fellrec.models.stages import Stage
from fellrec.models.titles import TitleTrie

Decode = Literal["ground", "trie", "retrieve"]
ENCODED_TOKENS = 2048
"""Tokens of titles that go through the stages at once, padding included."""
_TIE = 2.0**-20  # what separates items of one title: above float32's last bit, below any difference


@dataclass(frozen=True)
class BigrecSettings:
    """decode, beams: see the module. prompts: answered at a time. loss_on: tokens that are learned.
    strengths: of the popularity reweighting, of which validation chooses one.
    """

    decode: Decode = "trie"
    beams: int = 4
    prompts: int = 8
    loss_on: Literal["response", "prompt+response"] = "response"
    strengths: tuple[float, ...] = field(default=(0.0,))


class Bigrec(Recommender):
    """The client's part of a BIGRec.

    head, tail: stages of a causal language model, adapters attached, the head with tokens. output:
    (vocabulary, d), the frozen output layer. prompts: the catalogue as tokens.

    Raises ModelError for an encoder as base.
    """

    exported_under = "model."  # a causal language model, with its output layer

    def __init__(
        self, head: Stage, tail: Stage, output: Tensor, prompts: Prompts, settings: BigrecSettings
    ) -> None:
        super().__init__()
        require_decoder(head)
        self.head = head
        self.tail = tail
        self.prompts = prompts
        self.settings = settings
        self.output: Tensor
        self.register_buffer("output", output, persistent=False)
        self.strength = (
            nn.Parameter(torch.tensor(settings.strengths[0]), requires_grad=False)
            if len(settings.strengths) > 1
            else None
        )
        self._trie = TitleTrie(prompts.responses)
        self._items = len(prompts.responses)
        self._popularity = torch.zeros(self._items)
        self._vectors: Tensor | None = None

    def own_tensors(self) -> dict[str, tuple[Kind, nn.Parameter]]:
        """Return the strength that validation chose, where there was a choice; it is private."""
        if self.strength is None:
            return {}
        return {"popularity_strength": (Kind.PRIVATE, self.strength)}

    # --- learning -----------------------------------------------------------------------------

    def training_batches(
        self, histories: Ragged, batch_size: int, windows: int, rng: np.random.Generator
    ) -> list[Batch]:
        """One epoch: each history's last item as target, and `windows` - 1 others drawn anew."""
        row, stop = _targets(histories, windows, rng)
        texts = [
            self._example(histories[r][:s], int(histories[r][s]))
            for r, s in zip(row.tolist(), stop.tolist(), strict=True)
        ]
        lengths = np.array([len(tokens) for tokens, _ in texts], np.int64)
        return [
            self._training_batch([texts[i] for i in chosen], row[chosen])
            for chosen in like_lengths(lengths, batch_size, rng)
        ]

    def _example(self, history: npt.NDArray[np.int32], target: int) -> tuple[Tokens, int]:
        """Return a prompt with its response, and how many of its tokens are learned."""
        prompt, response = self.prompts.prompt(history), self.prompts.responses[target]
        tokens = np.concatenate([prompt, response])
        whole = self.settings.loss_on == "prompt+response"
        return tokens, len(tokens) - 1 if whole else len(response)

    @staticmethod
    def _training_batch(texts: Sequence[tuple[Tokens, int]], rows: npt.NDArray[np.int64]) -> Batch:
        """Lay texts out, padded on the right; the last `counts` positions of each have targets."""
        layout = Layout(np.array([len(tokens) - 1 for tokens, _ in texts], np.int32))
        counts = np.array([count for _, count in texts], np.int64)
        inputs = np.zeros((len(texts), layout.width), np.int64)
        for line, (tokens, _) in zip(inputs, texts, strict=True):
            line[: len(tokens) - 1] = tokens[:-1]
        targets = np.concatenate([tokens[-count:] for tokens, count in texts]).astype(np.int64)
        return Batch(layout, torch.from_numpy(inputs), torch.from_numpy(targets), rows, counts)

    def enter(self, batch: Batch) -> Entered:
        """Run the head over prompts with their responses."""
        return Entered(self.head(self.head.embed(batch.inputs), batch.layout))

    def leave(self, outputs: Tensor, entered: Entered, batch: Batch) -> Tensor:
        """Cross-entropy of the learned tokens, summed.

        The output layer is computed where there is something to learn: over prompts of 150 tokens
        it would otherwise be a good part of the step.
        """
        layout = batch.layout
        outputs = self.tail(outputs, layout).flatten(0, 1)
        ends = np.arange(len(layout.lengths)) * layout.width + layout.lengths
        before = np.cumsum(batch.counts) - batch.counts
        shift = np.repeat(ends - batch.counts - before, batch.counts)
        places = torch.from_numpy(shift + np.arange(int(batch.counts.sum())))
        logits = _logits(outputs.index_select(0, places.to(outputs.device)), self.output)
        return F.cross_entropy(logits, batch.targets.to(logits.device), reduction="sum")

    # --- serving ------------------------------------------------------------------------------

    def begin_serving(self, trunk: Trunk, train: Ragged) -> None:
        """Count popularity, and forget title vectors, which rest on the tensors."""
        self._vectors = None
        counts = np.bincount(train.values, minlength=self._items).astype(np.float32)
        spread = max(float(np.ptp(counts)), 1.0) if len(counts) else 1.0
        self._popularity = torch.from_numpy((counts - counts.min(initial=0)) / spread)

    def serving_batches(self, histories: Ragged, batch_size: int) -> Iterator[Batch]:
        """Yield prompts of like lengths, padded on the left, with what each user has taken."""
        size = min(batch_size, self.settings.prompts)
        texts = [self.prompts.prompt(histories[row]) for row in range(len(histories))]
        lengths = np.array([len(text) for text in texts], np.int64)
        order = np.argsort(lengths, kind="stable")
        for first in range(0, len(order), size):
            rows = order[first : first + size]
            layout = Layout(lengths[rows].astype(np.int32), "left")
            inputs = np.zeros((len(rows), layout.width), np.int64)
            for line, row in zip(inputs, rows.tolist(), strict=True):
                line[layout.width - lengths[row] :] = texts[row]
            nothing = torch.empty(0, dtype=torch.int64)
            counts = np.zeros(len(rows), np.int64)
            yield Batch(
                layout, torch.from_numpy(inputs), nothing, rows, counts, histories.take(rows)
            )

    def score(self, trunk: Trunk, batch: Batch, k: int) -> Tensor:
        """Score all items by the way of decoding; items of one title differ by a drawn trifle."""
        if batch.seen is None:
            raise RuntimeError("a serving batch says what its users have taken")
        with torch.no_grad():
            match self.settings.decode:
                case "retrieve":
                    by_leaf = -self._distances(trunk, self._last_state(trunk, batch))
                case "ground":
                    by_leaf = self._grounded(trunk, batch)
                case "trie":
                    by_leaf = self._written(trunk, batch, batch.seen, k)
        return self._apart(by_leaf[:, torch.from_numpy(self._trie.leaf)], batch.seen)

    @property
    def choices(self) -> int:
        """How many strengths of the popularity reweighting validation chooses from."""
        return len(self.settings.strengths)

    def choose(self, choice: int) -> None:
        """Reweight by a strength from now on."""
        if self.strength is not None:
            with torch.no_grad():
                self.strength.fill_(self.settings.strengths[choice])

    def reweighted(self, scores: Tensor, choice: int | None = None) -> Tensor:
        """Favour what is popular among the client's users, by BIGRec's formula.

        choice: a strength to try; None takes the chosen one. Unless it is 0, what comes back are
        scaled distances with their sign turned, -1 … 0.
        """
        chosen = float(self.strength) if self.strength is not None else self.settings.strengths[0]
        strength = chosen if choice is None else self.settings.strengths[choice]
        if strength == 0:
            return scores
        lowest, highest = scores.aminmax(dim=1, keepdim=True)
        distance = (highest - scores) / (highest - lowest).clamp(min=1e-12)
        return -distance / (1 + self._popularity) ** strength

    def write(
        self, trunk: Trunk, batch: Batch, *, beams: int, longest: int, free: bool = True
    ) -> list[list[Written]]:
        """Write the most probable texts, or titles, that follow each prompt."""
        titles = None
        if not free and batch.seen is not None:
            titles = [self._trie.without(batch.seen[row]) for row in range(len(batch.rows))]
        writer = SplitWriter(self.head, trunk, self.tail, self.output)
        with torch.no_grad():
            written = beam_search(
                writer,
                batch.inputs,
                batch.layout,
                beams=beams,
                longest=longest,
                end=self.prompts.end,
                titles=titles,
            )
        self.head.forget()
        self.tail.forget()
        return written

    def encode(self, trunk: Trunk, texts: Ragged) -> Tensor:
        """Vectors of texts: the last hidden state at each one's last token, (texts, d)."""
        vectors = torch.empty(len(texts), self.head.width)
        lengths = texts.lengths()
        with torch.no_grad():
            for rows in by_budget(lengths, ENCODED_TOKENS):
                layout = Layout(lengths[rows].astype(np.int32))
                inputs = np.zeros((len(rows), layout.width), np.int64)
                for line, row in zip(inputs, rows.tolist(), strict=True):
                    line[: lengths[row]] = texts[row]
                hidden = self.head(self.head.embed(torch.from_numpy(inputs)), layout)
                outputs = self.tail(trunk(hidden, layout), layout).flatten(0, 1)
                vectors[rows] = outputs.index_select(0, layout.last.to(outputs.device)).cpu()
        return vectors

    def _grounded(self, trunk: Trunk, batch: Batch) -> Tensor:
        written = self.write(trunk, batch, beams=self.settings.beams, longest=self._trie.depth)
        texts = self.prompts.texts([self.prompts.title_of(best[0].tokens) for best in written])
        vectors = self._last_state(trunk, batch)  # of a prompt to which nothing was written
        said = np.flatnonzero(texts.lengths() > 0)
        if len(said):
            vectors[said] = self.encode(trunk, texts.take(said))
        return -self._distances(trunk, vectors)

    def _written(self, trunk: Trunk, batch: Batch, seen: Ragged, k: int) -> Tensor:
        """Log-probabilities of the titles that were written; what was not stands behind them."""
        written = self.write(
            trunk, batch, beams=self.settings.beams, longest=self._trie.depth, free=False
        )
        members = self._trie.members
        scores = torch.full((len(written), len(members)), -torch.inf)
        short = self.choices > 1 or self.settings.strengths[0] > 0
        for row, texts in enumerate(written):
            leaves = [text.leaf for text in texts]
            scores[row, leaves] = torch.tensor([text.score for text in texts])
            listed = np.setdiff1d(members.take(leaves).values, seen[row])
            short = short or len(listed) < min(k, self._items - len(np.unique(seen[row])))
        if not short:
            return scores
        best = [texts[0].leaf if texts else 0 for texts in written]
        distances = self._distances(trunk, self._table(trunk)[best])
        worst = torch.tensor([texts[-1].score if texts else 0.0 for texts in written])[:, None]
        behind = worst - 1 - distances / distances.amax(dim=1, keepdim=True).clamp(min=1e-12)
        return torch.where(scores.isinf(), behind, scores)

    def _last_state(self, trunk: Trunk, batch: Batch) -> Tensor:
        hidden = self.head(self.head.embed(batch.inputs), batch.layout)
        outputs = self.tail(trunk(hidden, batch.layout), batch.layout)
        return outputs[:, -1].clone().cpu()  # type: ignore[no-any-return]  # nn.Module

    def _table(self, trunk: Trunk) -> Tensor:
        """Vectors of all titles, (leaves, d): one of each leaf's items stands for all."""
        if self._vectors is None:
            first = self._trie.members.offsets[:-1]
            self._vectors = self.encode(
                trunk, self.prompts.bare.take(self._trie.members.values[first])
            )
        return self._vectors

    def _distances(self, trunk: Trunk, vectors: Tensor) -> Tensor:
        """L2 distances of vectors to all titles': (rows, leaves)."""
        return torch.cdist(vectors, self._table(trunk))

    def _apart(self, scores: Tensor, seen: Ragged) -> Tensor:
        """Put items of one title into an order of their own, drawn for each history."""
        sizes = self._trie.members.lengths()
        twins = np.flatnonzero(sizes[self._trie.leaf] > 1)
        if len(twins) == 0:
            return scores
        leaves = self._trie.leaf[twins]
        for row in range(len(scores)):
            digest = hashlib.blake2b(seen[row].tobytes(), digest_size=8).digest()
            drawn = np.random.default_rng(int.from_bytes(digest, "little")).random(len(twins))
            order = np.lexsort((drawn, leaves))
            first = np.concatenate([[True], np.diff(leaves[order]) > 0])
            start = np.maximum.accumulate(np.where(first, np.arange(len(order)), 0))
            place = torch.from_numpy((np.arange(len(order)) - start).astype(np.float32))
            columns = torch.from_numpy(twins[order])
            values = scores[row, columns]
            scores[row, columns] = values - place * _TIE * values.abs().clamp(1, 1e6)
        return scores


def require_decoder(head: Stage) -> None:
    """Refuse, with a ModelError that lists what there is, a base that does not write texts."""
    if not head.family.decoder:
        known = ", ".join(sorted(name for name, family in FAMILIES.items() if family.decoder))
        raise ModelError(
            f"bigrec writes texts, which a {head.body.config.model_type} model can't; use a causal "
            f"language model as base, such as smollm2: one of {known}"
        )


class SplitWriter:
    """A causal language model in three stages that remembers what it has read."""

    def __init__(self, head: Stage, trunk: Trunk, tail: Stage, output: Tensor) -> None:
        self._head, self._trunk, self._tail, self._output = head, trunk, tail, output

    def start(self, tokens: Tensor, layout: Layout) -> Tensor:
        """Read prompts: (prompts, vocabulary) logits of what comes next."""
        hidden = self._head.prefill(self._head.embed(tokens), layout)
        hidden = self._tail.prefill(self._trunk.prefill(hidden, layout), layout)
        return _logits(hidden[:, -1], self._output).cpu()

    def step(self, tokens: Tensor, beams: npt.NDArray[np.int32]) -> Tensor:
        """Append one token to each row that goes on: (rows, vocabulary) logits."""
        hidden = self._head.extend(self._head.embed(tokens[:, None]), beams)
        hidden = self._tail.extend(self._trunk.extend(hidden, beams), beams)
        return _logits(hidden[:, 0], self._output).cpu()


def _logits(hidden: Tensor, output: Tensor) -> Tensor:
    """What each state says of each token, (rows, vocabulary) float32."""
    return (hidden.to(output.dtype) @ output.T).float()


def _targets(
    histories: Ragged, windows: int, rng: np.random.Generator
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Choose (history, place of the target): the last one, and `windows` - 1 others of each."""
    lengths = histories.lengths()
    row: list[int] = []
    stop: list[int] = []
    for history in np.flatnonzero(lengths >= 2).tolist():
        last = int(lengths[history]) - 1
        others = rng.permutation(np.arange(1, last))[: windows - 1]
        row += [history] * (1 + len(others))
        stop += [last, *others.tolist()]
    return np.array(row, np.int64), np.array(stop, np.int64)
