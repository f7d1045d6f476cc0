"""BIGRec: what is learned, what is written, how it is brought back to items."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fellrec.data.interactions import Catalogue, Ragged
from fellrec.errors import ModelError
from fellrec.models.adapters import adapter
from fellrec.models.bigrec import Bigrec, BigrecSettings
from fellrec.models.optimiser import Optimiser, OptimiserSettings
from fellrec.models.prompts import PromptSettings
from fellrec.models.recommender import Batch, Kind
from fellrec.models.stages import Stage
from fellrec.split.trunk import SessionSettings
from tests.builders import (
    LocalTrunk,
    connect,
    install,
    layout_of,
    random_factors,
    serve,
    tiny_bigrec,
    tiny_catalogue,
)

HISTORIES = Ragged.from_rows([[0, 1, 2, 3], [4, 5], [6, 7, 8, 9, 10, 11, 0, 1], [3]])


def built(catalogue: Catalogue | None = None, **settings: Any) -> tuple[Bigrec, LocalTrunk]:
    """Return a model in serving mode, with random adapters, that has counted nothing."""
    model, stage = tiny_bigrec(catalogue, settings=BigrecSettings(**settings))
    for part in (model.head, stage, model.tail):
        install(part, random_factors(adapter(part)))
    trunk = LocalTrunk(stage).eval()
    model.eval()
    model.begin_serving(trunk, Ragged.from_rows([]))
    return model, trunk


def read(model: Bigrec, trunk: LocalTrunk, tokens: list[int]) -> tuple[Tensor, Tensor]:
    """Read one text alone: last hidden states (positions, d), logits (positions, words)."""
    layout = layout_of([len(tokens)])
    with torch.no_grad():
        hidden = model.head(model.head.embed(torch.tensor([tokens])), layout)
        states = model.tail(trunk(hidden, layout), layout)[0].double()
    return states, states @ model.output.T.double()


def scored(model: Bigrec, trunk: LocalTrunk, histories: Ragged = HISTORIES, k: int = 5) -> Tensor:
    found: dict[int, Tensor] = {}
    for batch in model.serving_batches(histories, 3):
        found |= dict(zip(batch.rows.tolist(), model.score(trunk, batch, k), strict=True))
    return torch.stack([found[row] for row in range(len(histories))])


# --- learning -------------------------------------------------------------------------------------


def examples(batches: list[Batch]) -> list[tuple[list[int], list[int]]]:
    """Return every (text, learned tokens)."""
    found = []
    for batch in batches:
        ends = np.concatenate([[0], np.cumsum(batch.counts)])
        for i, length in enumerate(batch.layout.lengths.tolist()):
            targets = batch.targets[ends[i] : ends[i + 1]].tolist()
            found.append(([*batch.inputs[i, :length].tolist(), targets[-1]], targets))
    return found


@pytest.mark.parametrize("loss_on", ["response", "prompt+response"])
def test_an_example_is_a_prompt_with_the_next_title(loss_on: str) -> None:
    model, _ = built(loss_on=loss_on)
    made = model.training_batches(HISTORIES, 2, 1, np.random.default_rng(0))
    expected = []
    for row in ([0, 1, 2, 3], [4, 5], [6, 7, 8, 9, 10, 11, 0, 1]):
        prompt = model.prompts.prompt(np.array(row[:-1])).tolist()
        response = model.prompts.responses[row[-1]].tolist()
        whole = [*prompt, *response]
        expected.append((whole, response if loss_on == "response" else whole[1:]))
    assert sorted(examples(made)) == sorted(expected)


def test_more_windows_are_more_targets_and_none_twice() -> None:
    model, _ = built()
    for windows in (1, 2, 3, 20):
        batches = model.training_batches(HISTORIES, 4, windows, np.random.default_rng(0))
        rows = np.concatenate([batch.rows for batch in batches])
        targets = [min(windows, int(n) - 1) for n in HISTORIES.lengths()]
        assert np.bincount(rows, minlength=4).tolist() == targets
        learned = [tuple(text) for text, _ in examples(batches)]
        assert len(set(learned)) == len(learned)


@pytest.mark.parametrize("loss_on", ["response", "prompt+response"])
def test_the_loss_is_that_of_the_learned_tokens(loss_on: str) -> None:
    model, trunk = built(loss_on=loss_on)
    (batch,) = model.training_batches(HISTORIES, 4, 1, np.random.default_rng(0))
    expected = 0.0
    for text, learned in examples([batch]):
        steps = torch.log_softmax(read(model, trunk, text[:-1])[1], -1)[-len(learned) :]
        expected -= sum(float(step[token]) for step, token in zip(steps, learned, strict=True))
    assert float(model.loss(trunk, batch).detach()) == pytest.approx(expected, rel=1e-5)


def test_it_learns_what_to_write() -> None:
    model, stage = tiny_bigrec(settings=BigrecSettings(beams=3))
    trunk = LocalTrunk(stage)
    histories = Ragged.from_rows([[0, 1, 2], [3, 4, 5], [6, 7, 8]])
    own = {name: p for name, (_, p) in model.trained().items()}
    optimiser = Optimiser(own | adapter(stage), OptimiserSettings(learning_rate=1e-2))
    (batch,) = model.training_batches(histories, 3, 1, np.random.default_rng(0))
    for _ in range(60):
        (model.loss(trunk, batch) / len(batch.targets)).backward()
        optimiser.step(optimiser.squared_norm())
    model.eval()
    model.begin_serving(trunk.eval(), histories)
    found = scored(model, trunk, Ragged.from_rows([[0, 1], [3, 4], [6, 7]]), k=3)
    assert found.argmax(1).tolist() == [2, 5, 8]


# --- serving --------------------------------------------------------------------------------------


def test_prompts_are_padded_on_the_left() -> None:
    model, _ = built(prompts=2)
    for batch in model.serving_batches(HISTORIES, 4):
        assert len(batch.rows) <= 2 and batch.layout.side == "left" and batch.seen is not None
        for i, row in enumerate(batch.rows.tolist()):
            prompt = model.prompts.prompt(HISTORIES[row]).tolist()
            assert batch.inputs[i, batch.layout.width - len(prompt) :].tolist() == prompt
            assert batch.seen[i].tolist() == HISTORIES[row].tolist()


def test_trie_ranks_titles_by_their_probability() -> None:
    model, trunk = built(decode="trie", beams=12)
    for row, scores in enumerate(scored(model, trunk, k=12)):
        seen = set(HISTORIES[row].tolist())
        prompt = model.prompts.prompt(HISTORIES[row]).tolist()
        for item in set(range(12)) - seen:
            response = model.prompts.responses[item].tolist()
            logits = read(model, trunk, [*prompt, *response[:-1]])[1]
            steps = torch.log_softmax(logits, -1)[-len(response) :]
            expected = sum(float(s[t]) for s, t in zip(steps, response, strict=True))
            assert float(scores[item]) == pytest.approx(expected, abs=1e-3)


def test_what_was_not_written_stands_behind_by_distance() -> None:
    model, trunk = built(decode="trie", beams=2)
    table = torch.stack([read(model, trunk, row.tolist())[0][-1] for row in bare(model)])
    whole = scored(built(decode="trie", beams=12)[0], trunk, k=12)
    for row, scores in enumerate(scored(model, trunk)):
        new = [item for item in range(12) if item not in HISTORIES[row]]
        first, second = sorted(new, key=lambda item: -float(scores[item]))[:2]
        assert float(scores[first]) == pytest.approx(float(whole[row, first]), abs=1e-3)
        rest = [item for item in new if item not in (first, second)]
        assert max(float(scores[item]) for item in rest) < float(scores[second])
        distance = (table - table[first]).norm(dim=1)
        by_distance = sorted(rest, key=lambda item: float(distance[item]))
        assert sorted(rest, key=lambda item: -float(scores[item])) == by_distance


def test_titles_that_are_not_read_are_not_encoded() -> None:
    model, trunk = built(decode="trie", beams=4)
    scores = scored(model, trunk, k=3)
    assert model._vectors is None
    assert all(int(row.isfinite().sum()) >= 3 for row in scores)
    scored(model, trunk, k=9)
    assert model._vectors is not None


def bare(model: Bigrec) -> list[Any]:
    return [model.prompts.bare[item] for item in range(len(model.prompts.bare))]


def test_retrieve_ranks_by_distance_to_the_prompt() -> None:
    model, trunk = built(decode="retrieve")
    table = torch.stack([read(model, trunk, row.tolist())[0][-1] for row in bare(model)])
    for row, scores in enumerate(scored(model, trunk)):
        state = read(model, trunk, model.prompts.prompt(HISTORIES[row]).tolist())[0][-1]
        expected = -(table - state).norm(dim=1)
        torch.testing.assert_close(scores.double(), expected, rtol=1e-3, atol=1e-3)


def test_ground_ranks_by_distance_to_the_best_text() -> None:
    model, trunk = built(decode="ground", beams=3)
    table = torch.stack([read(model, trunk, row.tolist())[0][-1] for row in bare(model)])
    found = scored(model, trunk)
    grounded = 0
    for batch in model.serving_batches(HISTORIES, 1):
        longest = int(model.prompts.responses.lengths().max())
        text = model.write(trunk, batch, beams=3, longest=longest)[0][0]
        title = model.prompts.title_of(text.tokens)
        if title:
            state = read(model, trunk, model.prompts.texts([title])[0].tolist())[0][-1]
            grounded += 1
        else:
            state = read(model, trunk, batch.inputs[0].tolist())[0][-1]
        expected = -(table - state).norm(dim=1)
        row = int(batch.rows[0])
        torch.testing.assert_close(found[row].double(), expected, rtol=1e-3, atol=1e-3)
    assert grounded


def twins(count: int) -> Catalogue:
    """Twelve items, of which the first `count` share a title."""
    catalogue = tiny_catalogue()
    titles = ("sunfall",) * count + catalogue.titles[count:]
    return Catalogue(catalogue.ids, titles, {})


@pytest.mark.parametrize("decode", ["trie", "ground", "retrieve"])
def test_items_of_one_title_share_its_place_fairly(decode: str) -> None:
    model, trunk = built(twins(3), decode=decode, beams=12)
    rng = np.random.default_rng(0)
    histories = Ragged.from_rows([rng.integers(3, 12, 4).astype(np.int32) for _ in range(40)])
    first = np.zeros(12)
    for row, scores in enumerate(scored(model, trunk, histories)):
        three = scores[:3]
        assert len(set(three.tolist())) == 3  # an order of their own
        assert float(three.max() - three.min()) < 1e-4 * float(three.abs().max())
        between = [scores[i] for i in range(3, 12) if i not in histories[row].tolist()]
        assert not any(three.min() < value < three.max() for value in between)
        first[int(three.argmax())] += 1
    # 13.3 each on average, with a standard deviation of 3.0: five of them either way.
    assert first[:3].min() > 0 and first[:3].max() < 29
    assert torch.equal(scored(model, trunk, histories), scored(model, trunk, histories))


def test_a_title_is_written_as_long_as_one_of_its_items_is_new() -> None:
    model, trunk = built(twins(2), decode="trie", beams=1)
    others = [*range(2, 12)]
    for seen, left in (([*others, 0], 1), ([*others, 1], 0)):
        scores = scored(model, trunk, Ragged.from_rows([seen]), k=1)[0]
        scores[seen] = -torch.inf
        assert int(scores.argmax()) == left and bool(scores[left].isfinite())


# --- popularity -----------------------------------------------------------------------------------


def test_popularity_reweighting_is_the_papers() -> None:
    model, trunk = built(strengths=(0.0, 2.0))
    model.begin_serving(trunk, Ragged.from_rows([[0, 0, 1], [0, 2], [0, 1]]))
    scores = torch.tensor([[-5.0, -3.0, -1.0, *[-4.0] * 9]])
    assert model.reweighted(scores, 0) is scores
    found = model.reweighted(scores, 1)
    # distances 4, 2, 0, 3 … of 4; counts 4, 2, 1, 0 … of 4
    expected = [-1.0 / 2**2, -0.5 / 1.5**2, 0.0, *[-0.75] * 9]
    torch.testing.assert_close(found[0], torch.tensor(expected))


def test_the_chosen_strength_is_the_clients_own() -> None:
    model, _ = built(strengths=(0.0, 1.0, 2.0))
    assert model.choices == 3
    kind, strength = model.own_tensors()["popularity_strength"]
    assert kind is Kind.PRIVATE and not strength.requires_grad and float(strength) == 0.0
    scores = torch.randn(2, 12, generator=torch.Generator().manual_seed(0))
    model.choose(2)
    assert torch.equal(model.reweighted(scores), model.reweighted(scores, 2))
    alone, _ = built(strengths=(1.0,))
    assert alone.own_tensors() == {} and alone.choices == 1
    assert torch.equal(alone.reweighted(scores), model.reweighted(scores, 1))


# --- the split ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen3", "smollm3", "gemma"])
@pytest.mark.parametrize("cut", [(0, 0), (1, 1), (2, 0)], ids=str)
def test_texts_are_written_alike_wherever_the_model_is_cut(kind: str, cut: tuple[int, int]) -> None:
    def party(k_in: int, k_out: int) -> tuple[Bigrec, Stage]:
        model, stage = tiny_bigrec(kind=kind, k_in=k_in, k_out=k_out)
        for part in (model.head, stage, model.tail):
            install(part, random_factors(adapter(part)))
        return model.eval(), stage.eval()

    whole, trunk = party(1, 0)
    parted, stage = party(*cut)
    server = serve(stage, SessionSettings(), factors=adapter(stage))
    remote = connect(server).eval()
    batch = next(iter(whole.serving_batches(HISTORIES, 4)))
    for free in (True, False):
        first = whole.write(LocalTrunk(trunk).eval(), batch, beams=3, longest=12, free=free)
        second = parted.write(remote, batch, beams=3, longest=12, free=free)
        for texts, others in zip(first, second, strict=True):
            assert [text.tokens for text in texts] == [text.tokens for text in others]
            for text, other in zip(texts, others, strict=True):
                assert text.score == pytest.approx(other.score, abs=1e-4)


def test_a_new_token_is_one_position_of_each_beam_each_way() -> None:
    model, stage = tiny_bigrec()
    remote = connect(serve(stage, SessionSettings())).eval()
    model.eval()
    (batch,) = model.serving_batches(Ragged.from_rows([[0, 1]]), 1)
    sizes = []
    for longest in (1, 2, 3, 4):
        before = remote.ledger.totals()
        model.write(remote, batch, beams=4, longest=longest)
        after = remote.ledger.totals()
        sizes.append([after[key] - before[key] for key in ("bytes_up", "bytes_down")])
    steps = np.diff(np.array(sizes), axis=0)
    # 4 beams of 32 channels as float32, a header of 35 bytes with the client's name, and up, for
    # each beam, a length, a position and the row it continues.
    assert steps.tolist() == [[4 * 32 * 4 + 36 + 4 * 12, 4 * 32 * 4 + 36]] * 3


# --- what does not fit ----------------------------------------------------------------------------


def test_an_encoder_cannot_write() -> None:
    with pytest.raises(ModelError, match=r"causal language model.*llama.*qwen3") as error:
        tiny_bigrec(kind="bert")
    assert "\n" not in str(error.value)


def test_a_base_too_short_for_a_prompt() -> None:
    with pytest.raises(ModelError, match=r"lower bigrec\.title_tokens"):
        tiny_bigrec(prompts=PromptSettings(max_tokens=20))
