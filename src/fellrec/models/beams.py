"""Beam search over several prompts at once, free or within a catalogue's titles.

A text's score is the sum of its tokens' log-probabilities, without a length penalty, which is the
probability of the text: `transformers` calls that `length_penalty=0`. A prompt is finished when
none of its open beams can become better than the worst of the texts it has, since a score only
falls. Finished prompts give their rows back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fellrec.models.layout import Layout
from fellrec.models.titles import ROOT, LiveTitles

Ints = npt.NDArray[np.int64]


class Writer(Protocol):
    """A language model that continues prompts, and remembers what it has read."""

    def start(self, tokens: Tensor, layout: Layout) -> Tensor:
        """Read prompts padded on the left: what comes next, (prompts, vocabulary) logits."""
        ...

    def step(self, tokens: Tensor, beams: npt.NDArray[np.int32]) -> Tensor:
        """Append tokens (rows,) to the rows `beams` (rows,): (rows, vocabulary) logits."""
        ...


@dataclass(frozen=True)
class Written:
    """A text: its tokens, the end token left out, its log-probability, its leaf among titles."""

    tokens: tuple[int, ...]
    score: float
    leaf: int = -1


@dataclass(frozen=True)
class _Beam:
    """An unfinished text. row: where the writer remembers it."""

    tokens: tuple[int, ...]
    score: float
    row: int
    node: int = ROOT


@dataclass(frozen=True)
class _Candidates:
    """Continuations of one prompt's beams, best first: which beam, which token, which node."""

    beam: Ints
    token: Ints
    node: Ints
    score: npt.NDArray[np.float64]


def beam_search(
    writer: Writer,
    tokens: Tensor,
    layout: Layout,
    *,
    beams: int,
    longest: int,
    end: int,
    titles: Sequence[LiveTitles] | None = None,
) -> list[list[Written]]:
    """Write the `beams` most probable texts of each prompt, best first.

    tokens: (prompts, width) int64, padded on the left as `layout` says. longest: most tokens of a
    text, the end token included; a free text that is not done by then is cut there. titles: what
    each prompt may write; then fewer texts come back where there are fewer titles.
    """
    logits = writer.start(tokens, layout)
    open_: list[list[_Beam]] = [[_Beam((), 0.0, row)] for row in range(len(layout.lengths))]
    done: list[list[Written]] = [[] for _ in open_]
    for length in range(1, longest + 1):
        found = _candidates(logits, open_, beams, titles)
        last = length == longest
        chosen: list[list[_Beam]] = []
        for prompt, candidates in enumerate(found):
            titles_of = titles[prompt] if titles is not None else None
            nexts = _sort_out(open_[prompt], candidates, done[prompt], beams, end, titles_of, last)
            done[prompt] = sorted(done[prompt], key=lambda text: -text.score)[:beams]
            full = len(done[prompt]) == beams
            if nexts and full and done[prompt][-1].score >= nexts[0].score:
                nexts = []
            if last and titles is None:
                done[prompt] += [Written(beam.tokens, beam.score) for beam in nexts]
                done[prompt] = sorted(done[prompt], key=lambda text: -text.score)[:beams]
            chosen.append(nexts)
        rows = [beam for nexts in chosen for beam in nexts]
        if last or not rows:
            break
        logits = writer.step(
            torch.tensor([beam.tokens[-1] for beam in rows]),
            np.array([beam.row for beam in rows], np.int32),
        )
        numbers = iter(range(len(rows)))
        open_ = [
            [_Beam(beam.tokens, beam.score, next(numbers), beam.node) for beam in nexts]
            for nexts in chosen
        ]
    return done


def _candidates(
    logits: Tensor,
    open_: Sequence[Sequence[_Beam]],
    beams: int,
    titles: Sequence[LiveTitles] | None,
) -> list[_Candidates]:
    """The 2 · beams best continuations of each prompt: at most half of them can be ends."""
    normaliser = torch.logsumexp(logits, dim=-1).double().numpy()
    if titles is None:
        top = torch.topk(logits, min(2 * beams, logits.shape[1]), dim=-1)
        values, indices = top.values.double().numpy(), top.indices.numpy()
    else:
        table = logits.numpy()
    found = []
    for prompt, texts in enumerate(open_):
        beam: list[Ints] = []
        token: list[Ints] = []
        node: list[Ints] = []
        score: list[npt.NDArray[np.float64]] = []
        for number, text in enumerate(texts):
            if titles is None:
                tokens, nexts = indices[text.row], np.zeros(indices.shape[1], np.int64)
                gained = values[text.row]
            else:
                tokens, nexts = titles[prompt].after(text.node)
                gained = table[text.row, tokens].astype(np.float64)
            beam.append(np.full(len(tokens), number, np.int64))
            token.append(tokens)
            node.append(nexts)
            score.append(gained - normaliser[text.row] + text.score)
        nothing = np.empty(0, np.int64)
        all_scores = np.concatenate([*score, np.empty(0)])
        order = np.argsort(-all_scores, kind="stable")
        if titles is None:
            order = order[: 2 * beams]
        found.append(
            _Candidates(
                np.concatenate([*beam, nothing])[order],
                np.concatenate([*token, nothing])[order],
                np.concatenate([*node, nothing])[order],
                all_scores[order],
            )
        )
    return found


def _sort_out(
    texts: Sequence[_Beam],
    candidates: _Candidates,
    done: list[Written],
    beams: int,
    end: int,
    titles: LiveTitles | None,
    last: bool,
) -> list[_Beam]:
    """Copy candidates that end to `done`, and return the best others, at most `beams`.

    Among free texts an end counts only among the `beams` best, as in `transformers`, and so does a
    text that is cut at the `last` token; a title is complete and can be compared with any other.
    """
    ends = np.flatnonzero(candidates.token == end)
    others = np.flatnonzero(candidates.token != end)
    if titles is None:
        ends = ends[ends < beams]
        others = others[others < beams] if last else others
    for place in ends[:beams]:
        leaf = titles.leaf(int(candidates.node[place])) if titles is not None else -1
        text = texts[candidates.beam[place]]
        done.append(Written(text.tokens, float(candidates.score[place]), leaf))
    nexts = []
    for place in others[:beams]:
        text = texts[candidates.beam[place]]
        tokens = (*text.tokens, int(candidates.token[place]))
        score, node = float(candidates.score[place]), int(candidates.node[place])
        nexts.append(_Beam(tokens, score, text.row, node))
    return nexts
