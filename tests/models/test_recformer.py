"""RecFormer: what is read of a history, what is predicted, and when items are encoded."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from fellrec.data.interactions import Catalogue, Ragged
from fellrec.data.sampling import few_shot
from fellrec.errors import ModelError
from fellrec.models.adapters import adapter
from fellrec.models.item_texts import ItemTexts, item_texts
from fellrec.models.layout import Layout
from fellrec.models.recformer import Recformer, RecformerSettings
from fellrec.models.recommender import Batch, Kind
from tests.builders import (
    ENCODERS,
    TEXT_VOCABULARY,
    WIDTH,
    LocalTrunk,
    install,
    layout_of,
    random_factors,
    tiny,
    tiny_catalogue,
    tiny_recformer,
    tiny_tokenizer,
)

rows_of_items = st.lists(
    st.lists(st.integers(0, 11), min_size=1, max_size=15), min_size=1, max_size=8
)


def texts_of(item_tokens: int = 8, catalogue: Catalogue | None = None) -> ItemTexts:
    return item_texts(catalogue or tiny_catalogue(), tiny_tokenizer("cls", "pad"), item_tokens)


def expected_row(texts: ItemTexts, items: list[int], most: int, history: int) -> list[list[int]]:
    """Write down what is read of a history, item after item, in the plainest way."""
    row = [[texts.first, 0, 0]]
    for place, item in enumerate(reversed(items[-history:]), 1):
        pairs = zip(texts.tokens[item].tolist(), texts.types[item].tolist(), strict=True)
        own = [[token, place, kind] for token, kind in pairs]
        if place == 1:
            own = own[: most - 1]
        if len(row) + len(own) > most:
            break
        row += own
    return row


def rows_of(batch: Batch) -> dict[int, list[list[list[int]]]]:
    """Return the rows of a batch without padding, by history."""
    found: dict[int, list[list[list[int]]]] = {}
    pairs = zip(batch.rows.tolist(), batch.layout.lengths.tolist(), batch.inputs, strict=True)
    for row, length, inputs in pairs:
        found.setdefault(row, []).append(inputs[:length].tolist())
    return found


# --- what is read ---------------------------------------------------------------------------------


@given(rows=rows_of_items, most=st.integers(2, 40), history=st.integers(1, 8))
def test_serving_reads_the_newest_items_that_fit(
    rows: list[list[int]], most: int, history: int
) -> None:
    settings = RecformerSettings(history, most)
    model, _ = tiny_recformer(settings=settings)
    found: dict[int, list[list[list[int]]]] = {}
    for batch in model.serving_batches(Ragged.from_rows(rows), 3):
        assert len(batch.targets) == 0 and not batch.counts.any()
        assert batch.layout.side == "right" and batch.layout.width <= most
        found |= rows_of(batch)
    expected = {i: [expected_row(texts_of(), row, most, history)] for i, row in enumerate(rows)}
    assert found == expected


def test_the_base_bounds_a_history_too() -> None:
    model, _ = tiny_recformer(settings=RecformerSettings(50, 512))
    (batch,) = model.serving_batches(Ragged.from_rows([[0] * 50]), 4)
    each = int(texts_of().lengths()[0])
    assert batch.layout.width == 1 + (100 - 1) // each * each


def test_a_newest_item_too_long_for_the_context_loses_its_end() -> None:
    catalogue = Catalogue(("a", "b"), ("z" * 60, "sunfall"), {})
    settings = RecformerSettings(5, 20)
    model, _ = tiny_recformer(catalogue, settings=settings, item_tokens=64)
    (batch,) = model.serving_batches(Ragged.from_rows([[1, 0]]), 4)
    assert batch.layout.lengths.tolist() == [20]
    (row,) = rows_of(batch)[0]
    assert [token for token, _, _ in row[1:]] == texts_of(64, catalogue).tokens[0][:19].tolist()


@pytest.mark.parametrize("most", [1, 2])
def test_no_room_for_an_item(most: int) -> None:
    settings = RecformerSettings(max_tokens=most)
    if most == 2:
        tiny_recformer(settings=settings)
        return
    with pytest.raises(ModelError, match=r"max_tokens = 1 .*no room") as error:
        tiny_recformer(settings=settings)
    assert "\n" not in str(error.value)


def test_a_tokenizer_of_another_base() -> None:
    model, _ = tiny_recformer()
    texts = texts_of()
    foreign = ItemTexts(TEXT_VOCABULARY, texts.tokens, texts.types)
    with pytest.raises(ModelError, match=f"base's {TEXT_VOCABULARY}") as error:
        Recformer(model.head, model.tail, foreign, RecformerSettings())
    assert "\n" not in str(error.value)


# --- what is learned ------------------------------------------------------------------------------


def examples_of(batches: list[Batch]) -> dict[int, list[tuple[list[list[int]], int]]]:
    """Return (row, target) of each history."""
    found: dict[int, list[tuple[list[list[int]], int]]] = {}
    for batch in batches:
        assert batch.counts.tolist() == [1] * len(batch.rows)
        for i, row in enumerate(batch.rows.tolist()):
            inputs = batch.inputs[i, : batch.layout.lengths[i]].tolist()
            found.setdefault(row, []).append((inputs, int(batch.targets[i])))
    return found


@given(rows=rows_of_items, windows=st.integers(1, 4), size=st.integers(1, 5))
def test_targets_are_different_random_prefixes(
    rows: list[list[int]], windows: int, size: int
) -> None:
    # Each item of a row is another one, so that a target tells where it stood.
    rows = [list(dict.fromkeys(row)) for row in rows]
    model, _ = tiny_recformer()
    rng = np.random.default_rng(0)
    batches = model.training_batches(Ragged.from_rows(rows), size, windows, rng)
    assert all(len(batch.rows) <= size for batch in batches)
    found = examples_of(batches)
    assert set(found) == {i for i, row in enumerate(rows) if len(row) >= 2}
    for i, examples in found.items():
        assert len(examples) == min(windows, len(rows[i]) - 1)
        targets = [target for _, target in examples]
        assert len(set(targets)) == len(targets)
        for inputs, target in examples:
            prefix = rows[i][: rows[i].index(target)]
            assert prefix and inputs == expected_row(texts_of(), prefix, 100, 6)


def test_every_item_but_the_first_becomes_a_target() -> None:
    model, _ = tiny_recformer()
    rng = np.random.default_rng(0)
    histories = Ragged.from_rows([list(range(8))])
    counts: Counter[int] = Counter()
    for _ in range(700):
        for batch in model.training_batches(histories, 4, 1, rng):
            counts.update(batch.targets.tolist())
    assert set(counts) == set(range(1, 8))
    assert all(60 <= count <= 140 for count in counts.values())  # 100 each, 4 standard deviations


def test_a_sample_is_learned_as_it_was_drawn() -> None:
    model, _ = tiny_recformer(settings=RecformerSettings(6, random_prefixes=False))
    rng = np.random.default_rng(0)
    samples = few_shot(Ragged.from_rows([list(range(12)), [3, 1], [5]]), 6, rng)
    found = examples_of(model.training_batches(samples, 4, 3, rng))
    assert found == {
        i: [(expected_row(texts_of(), samples[i][:-1].tolist(), 100, 6), int(samples[i][-1]))]
        for i in range(6)
    }


def test_batches_hold_like_lengths() -> None:
    model, _ = tiny_recformer()
    rng = np.random.default_rng(0)
    histories = Ragged.from_rows([[0] * int(n) for n in rng.integers(2, 12, size=128)])
    batches = model.training_batches(histories, 8, 1, rng)
    places = sum(batch.layout.width * len(batch.rows) for batch in batches)
    assert places < 1.25 * sum(batch.layout.total for batch in batches)


# --- scores ---------------------------------------------------------------------------------------


def whole_text(model: Recformer, trunk: LocalTrunk, row: list[list[int]]) -> Tensor:
    """Run one text alone through all stages: the first position's output, (d,) float64."""
    token, place, kind = torch.tensor(row).unbind(-1)
    hidden = model.head.embed(token) + model.item_positions[place] + model.token_types[kind]
    hidden, layout = hidden[None], layout_of([len(row)])
    for part in (model.head, trunk.stage, model.tail):
        hidden = part(hidden, layout)
    vector: Tensor = hidden[0, 0].detach().double()
    return vector


def trained_model(settings: RecformerSettings | None = None) -> tuple[Recformer, LocalTrunk]:
    """Return a model of random factors and embeddings, in serving mode."""
    model, stage = tiny_recformer(settings=settings)
    for part in (model.head, stage, model.tail):
        install(part, random_factors(adapter(part)))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in (model.item_positions, model.token_types):
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    trunk = LocalTrunk(stage)
    model.eval()
    trunk.eval()
    return model, trunk


def test_scores_and_loss_equal_a_computation_by_hand() -> None:
    model, trunk = trained_model(RecformerSettings(6, temperature=0.1))
    texts = texts_of()
    items = torch.stack(
        [whole_text(model, trunk, expected_row(texts, [item], 100, 6)) for item in range(12)]
    )
    rows = [[1, 2, 3, 4], [5, 6], [7]]

    def cosines(row: list[int]) -> Tensor:
        vector = whole_text(model, trunk, expected_row(texts, row, 100, 6))
        cosine: Tensor = (items @ vector) / (items.norm(dim=1) * vector.norm())
        return cosine / 0.1

    histories = Ragged.from_rows(rows)
    model.begin_serving(trunk, histories)
    (batch,) = model.serving_batches(histories, 4)
    for row, scores in zip(batch.rows, model.score(trunk, batch, 3), strict=True):
        torch.testing.assert_close(scores, cosines(rows[row]).float(), rtol=1e-5, atol=1e-4)
    model.begin_epoch(trunk)
    (batch,) = model.training_batches(histories, 9, 9, np.random.default_rng(0))
    expected = sum(
        float(torch.logsumexp(cosines(row[:stop]), 0) - cosines(row[:stop])[row[stop]])
        for row in rows
        for stop in range(1, len(row))
    )
    assert len(batch.targets) == 4
    assert float(model.loss(trunk, batch).detach()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ENCODERS)
def test_the_untrained_model_is_the_bases_own_encoder(kind: str) -> None:
    model, stage = tiny_recformer(kind=kind)
    trunk = LocalTrunk(stage).eval()
    model.eval()
    (batch,) = model.serving_batches(Ragged.from_rows([[1, 2, 3]]), 4)
    model.begin_serving(trunk, Ragged.from_rows([]))
    found = model.score(trunk, batch, 3)
    base = tiny(kind, 3, TEXT_VOCABULARY, 100)
    options: dict[str, Tensor] = {}
    if kind == "longformer":
        options["global_attention_mask"] = torch.zeros_like(batch.inputs[..., 0])
        options["global_attention_mask"][:, 0] = 1

    def encode(tokens: Tensor) -> Tensor:
        mask = torch.ones_like(tokens)
        places = torch.arange(tokens.shape[1])[None] + (0 if kind == "bert" else 2)
        own = {name: value[:, : tokens.shape[1]] for name, value in options.items()}
        output = base(tokens, attention_mask=mask, position_ids=places, **own)
        return F.normalize(output.last_hidden_state[:, 0], dim=-1)

    texts = texts_of()
    items = [torch.tensor([[texts.first, *texts.tokens[item]]]) for item in range(12)]
    table = torch.cat([encode(item) for item in items])
    expected = encode(batch.inputs[..., 0]) @ table.T / 0.05
    torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=1e-4)


def test_the_token_embeddings_stay_with_the_client() -> None:
    model, stage = tiny_recformer()
    name = "embeddings.word_embeddings.weight"
    assert name in dict(model.head.body.named_parameters())
    for other in (stage, model.tail):
        assert all("embeddings" not in found for found, _ in other.body.named_parameters())


def test_nothing_is_scored_before_items_are_encoded() -> None:
    model, stage = tiny_recformer()
    (batch,) = model.serving_batches(Ragged.from_rows([[1]]), 4)
    with pytest.raises(RuntimeError, match="comes first"):
        model.score(LocalTrunk(stage), batch, 3)


# --- the two stages -------------------------------------------------------------------------------


class CountingTrunk(LocalTrunk):
    """Counts the texts that pass."""

    texts = 0

    def forward(self, hidden: Tensor, layout: Layout) -> Tensor:
        self.texts += len(layout.lengths)
        return super().forward(hidden, layout)


def move(model: Recformer) -> None:
    """Change the model as training would."""
    with torch.no_grad():
        model.token_types.add_(torch.ones(1, WIDTH).cumsum(1).sin())


def test_items_are_encoded_anew_until_they_are_fixed() -> None:
    model, stage = tiny_recformer(settings=RecformerSettings(6, fixed_after=2))
    trunk = CountingTrunk(stage)
    model.eval()
    trunk.eval()
    table = model.item_table
    assert table is not None and table.shape == (12, WIDTH) and not table.requires_grad
    tables: list[Tensor] = []
    for round in range(4):
        model.head.key.round = round
        move(model)
        for epoch in range(2):
            trunk.texts = 0
            model.begin_epoch(trunk)
            assert trunk.texts == (12 if round < 2 or (round, epoch) == (2, 0) else 0)
            assert model._table is not None
            tables.append(model._table.clone())
            assert bool(table.any()) is (round >= 2)
    assert not torch.allclose(tables[0], tables[2], atol=1e-3)
    assert not torch.allclose(tables[2], tables[4], atol=1e-3)
    assert torch.equal(tables[4], tables[5]) and torch.equal(tables[4], tables[7])
    assert torch.equal(table, tables[4])
    trunk.texts = 0
    model.begin_serving(trunk, Ragged.from_rows([]))
    assert trunk.texts == 0 and model._table is not None
    assert torch.equal(model._table, table)


def test_a_model_that_was_not_fixed_serves_items_of_its_own() -> None:
    model, trunk = trained_model(RecformerSettings(6, fixed_after=1))
    histories = Ragged.from_rows([[1, 2, 3]])
    (batch,) = model.serving_batches(histories, 4)
    model.begin_serving(trunk, histories)
    fresh = model.score(trunk, batch, 3)
    model.head.key.round = 1
    model.begin_epoch(trunk)
    move(model)
    model.begin_serving(trunk, histories)
    fixed = model.score(trunk, batch, 3)
    assert model.item_table is not None
    with torch.no_grad():
        model.item_table.zero_()  # what another client's turn, or an older best model, installs
    model.begin_serving(trunk, histories)
    moved = model.score(trunk, batch, 3)
    assert not torch.allclose(fixed, moved, atol=1e-3)
    assert not torch.allclose(fresh, moved, atol=1e-3)


def test_kinds() -> None:
    for fixed_after in (0, 1):
        model, _ = tiny_recformer(settings=RecformerSettings(6, fixed_after=fixed_after))
        own = {name: kind for name, (kind, _) in model.own_tensors().items()}
        assert own.pop("item_table", None) is (Kind.PRIVATE if fixed_after else None)
        assert own == {"item_positions": Kind.DENSE, "token_types": Kind.DENSE}
        assert model.item_positions.shape == (7, WIDTH) and model.token_types.shape == (3, WIDTH)
        assert not model.item_positions.any() and not model.token_types.any()


def test_items_too_many_for_one_batch_are_encoded_in_several() -> None:
    catalogue = Catalogue(
        tuple(f"i{i}" for i in range(1200)), tuple(f"sun {i}" for i in range(1200)), {}
    )
    model, stage = tiny_recformer(catalogue)
    trunk = CountingTrunk(stage)
    model.eval()
    trunk.eval()
    model.begin_epoch(trunk)
    assert trunk.texts == 1200 and model._table is not None
    torch.testing.assert_close(model._table.norm(dim=1), torch.ones(1200))
    row = expected_row(texts_of(8, catalogue), [777], 100, 6)
    alone = F.normalize(whole_text(model, LocalTrunk(stage), row), dim=0).float()
    torch.testing.assert_close(model._table[777], alone, rtol=1e-4, atol=1e-4)
