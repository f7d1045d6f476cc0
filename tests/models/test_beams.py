"""Beam search: the texts of `transformers`, and of a brute-force search through all titles."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from fellrec.data.interactions import Ragged
from fellrec.models.beams import beam_search
from fellrec.models.layout import Layout
from fellrec.models.titles import TitleTrie
from tests.builders import layout_of, tiny_config

END, WORDS = 7, 12


def language_model(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = tiny_config("llama", 2, WORDS, 60)
    config.initializer_range = 0.7  # else all words are about as likely
    model = LlamaForCausalLM(cast(LlamaConfig, config))
    model.eval()
    return model


class Reader:
    """A writer without memory: reads every row from its beginning, alone."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        self.model = model
        self.rows: list[list[int]] = []
        self.frames: list[int] = []

    def start(self, tokens: Tensor, layout: Layout) -> Tensor:
        self.rows = [
            row[layout.width - n :] for row, n in zip(tokens.tolist(), layout.lengths, strict=True)
        ]
        return self.read()

    def step(self, tokens: Tensor, beams: npt.NDArray[np.int32]) -> Tensor:
        pairs = zip(beams.tolist(), tokens.tolist(), strict=True)
        self.rows = [[*self.rows[beam], token] for beam, token in pairs]
        return self.read()

    def read(self) -> Tensor:
        self.frames.append(len(self.rows))
        with torch.no_grad():
            return torch.stack([self.model(torch.tensor([row])).logits[0, -1] for row in self.rows])


def prompts(lengths: tuple[int, ...] = (4, 1, 6, 3)) -> tuple[Tensor, Layout]:
    layout = layout_of(lengths, "left")
    tokens = torch.randint(
        0, WORDS, (len(lengths), layout.width), generator=torch.Generator().manual_seed(1)
    )
    return tokens * layout.valid, layout


@pytest.mark.parametrize("beams", [1, 2, 4])
@pytest.mark.parametrize("longest", [1, 3, 9])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_free_texts_are_those_of_transformers(beams: int, longest: int, seed: int) -> None:
    model = language_model(seed)
    tokens, layout = prompts()
    found = beam_search(Reader(model), tokens, layout, beams=beams, longest=longest, end=END)
    untyped: Any = model
    theirs = untyped.generate(
        input_ids=tokens,
        attention_mask=layout.valid.long(),
        num_beams=beams,
        num_return_sequences=beams,
        max_new_tokens=longest,
        do_sample=False,
        length_penalty=0.0,
        eos_token_id=END,
        pad_token_id=END,
        return_dict_in_generate=True,
        output_scores=True,
    )
    for prompt, texts in enumerate(found):
        assert len(texts) == beams
        for place, text in enumerate(texts):
            row = prompt * beams + place
            sequence = theirs.sequences[row, layout.width :].tolist()
            expected = sequence[: sequence.index(END)] if END in sequence else sequence
            assert list(text.tokens) == expected
            if beams > 1:
                assert text.score == pytest.approx(float(theirs.sequences_scores[row]), abs=1e-4)


def probability(model: LlamaForCausalLM, prompt: list[int], title: tuple[int, ...]) -> float:
    """Sum the log-probabilities of a title and its end after a prompt."""
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *title]])).logits[0].double()
    steps = torch.log_softmax(logits[len(prompt) - 1 :], -1)
    return float(sum(step[token] for step, token in zip(steps, [*title, END], strict=True)))


def titles_of(count: int, seed: int = 0) -> list[tuple[int, ...]]:
    rng = np.random.default_rng(seed)
    words = [word for word in range(WORDS) if word != END]
    drawn: dict[tuple[int, ...], None] = {}
    while len(drawn) < count:
        drawn[tuple(rng.choice(words, int(rng.integers(1, 5))).tolist())] = None
    return list(drawn)


@pytest.mark.parametrize("taken", [(), (0, 3, 4), tuple(range(19))])
def test_enough_beams_find_every_title_in_the_order_of_its_probability(
    taken: tuple[int, ...],
) -> None:
    model, titles = language_model(), titles_of(20)
    trie = TitleTrie(Ragged.from_rows([[*title, END] for title in titles]))
    tokens, layout = prompts()
    live = trie.without(np.array(taken, np.int32))
    found = beam_search(
        Reader(model), tokens, layout, beams=40, longest=trie.depth, end=END, titles=[live] * 4
    )
    left = {title for item, title in enumerate(titles) if item not in taken}
    for prompt, texts in enumerate(found):
        row = tokens[prompt, layout.width - layout.lengths[prompt] :].tolist()
        scored = sorted(((probability(model, row, title), title) for title in left), reverse=True)
        assert [text.tokens for text in texts] == [title for _, title in scored]
        for text, (score, title) in zip(texts, scored, strict=True):
            assert text.score == pytest.approx(score, abs=1e-4)
            assert titles[int(trie.members[text.leaf][0])] == title


def test_few_beams_find_titles_only_and_none_twice() -> None:
    titles = titles_of(30)
    trie = TitleTrie(Ragged.from_rows([[*title, END] for title in titles]))
    tokens, layout = prompts()
    for beams in (1, 2, 5):
        found = beam_search(
            Reader(language_model()), tokens, layout,
            beams=beams, longest=trie.depth, end=END, titles=[trie.without(np.array([1]))] * 4,
        )  # fmt: skip
        for texts in found:
            written = [text.tokens for text in texts]
            assert len(set(written)) == len(written) == beams
            assert set(written) <= set(titles) - {titles[1]}
            assert [t.score for t in texts] == sorted((t.score for t in texts), reverse=True)


def test_nothing_may_be_written() -> None:
    trie = TitleTrie(Ragged.from_rows([[1, END]]))
    tokens, layout = prompts((2,))
    none = trie.without(np.array([0]))
    found = beam_search(
        Reader(language_model()), tokens, layout, beams=3, longest=2, end=END, titles=[none]
    )
    assert found == [[]]


def test_finished_prompts_give_their_rows_back() -> None:
    """One prompt may write one short title, the other long ones: its rows are read no further."""
    long = [(1, 2, 3, 4, 5, 6, 8, word) for word in (0, 9, 10)]
    trie = TitleTrie(Ragged.from_rows([[11, END], *([*title, END] for title in long)]))
    tokens, layout = prompts((2, 2))
    reader = Reader(language_model())
    short, whole = trie.without(np.array([1, 2, 3])), trie.without(np.array([0]))
    found = beam_search(
        reader, tokens, layout, beams=3, longest=trie.depth, end=END, titles=[short, whole]
    )
    assert [(text.tokens, text.leaf) for text in found[0]] == [((11,), 0)]
    assert {text.tokens for text in found[1]} == set(long)
    # Both prompts; then one row each; then the second prompt's path, which splits at its last word.
    assert reader.frames == [2, 2, 1, 1, 1, 1, 1, 1, 3]
