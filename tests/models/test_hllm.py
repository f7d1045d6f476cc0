"""HLLM: which items are read, what is predicted, how items are scored."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fellrec.data.interactions import Ragged
from fellrec.errors import ModelError
from fellrec.models.adapters import adapter
from fellrec.models.hllm import Hllm, HllmSettings, ItemResidual
from fellrec.models.optimiser import Optimiser, OptimiserSettings
from fellrec.models.recommender import Batch, Kind
from tests.builders import (
    WIDTH,
    LocalTrunk,
    install,
    layout_of,
    random_factors,
    text_vectors,
    tiny_hllm,
)

HISTORY = 6
rows_of_items = st.lists(
    st.lists(st.integers(0, 11), min_size=1, max_size=20), min_size=1, max_size=9
)


@pytest.fixture(scope="module")
def model() -> Hllm:
    return tiny_hllm()[0]


def windows_of(batches: list[Batch]) -> dict[int, list[list[int]]]:
    """Return each history's windows, rebuilt from inputs and targets."""
    found: dict[int, list[list[int]]] = {}
    for batch in batches:
        ends = np.concatenate([[0], np.cumsum(batch.layout.lengths)])
        assert batch.inputs.shape == (len(batch.rows), batch.layout.width)
        assert len(batch.targets) == batch.layout.total
        for i, row in enumerate(batch.rows.tolist()):
            inputs = batch.inputs[i, : batch.layout.lengths[i]].tolist()
            targets = batch.targets[ends[i] : ends[i + 1]].tolist()
            assert inputs[1:] == targets[:-1]  # each position's target is the next item
            found.setdefault(row, []).append([*inputs, targets[-1]])
    return found


# --- batches --------------------------------------------------------------------------------------


@given(rows=rows_of_items, size=st.integers(1, 4), seed=st.integers(0, 5))
def test_one_window_is_each_historys_end_once(
    model: Hllm, rows: list[list[int]], size: int, seed: int
) -> None:
    batches = model.training_batches(Ragged.from_rows(rows), size, 1, np.random.default_rng(seed))
    expected = {i: [row[-HISTORY - 1 :]] for i, row in enumerate(rows) if len(row) >= 2}
    assert windows_of(batches) == expected
    assert all(1 <= len(batch.rows) <= size for batch in batches)
    assert len(batches) == -(-len(expected) // size)


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6), windows=st.integers(1, 4))
def test_earlier_windows_lie_in_their_own_history(
    model: Hllm, lengths: list[int], windows: int
) -> None:
    # Every item is its own place in the data here, so a window tells where it was cut.
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    histories = Ragged(offsets, np.arange(offsets[-1]))
    batches = model.training_batches(histories, 3, windows, np.random.default_rng(0))
    for row, found in windows_of(batches).items():
        start, stop = int(offsets[row]), int(offsets[row + 1])
        last = list(range(max(start, stop - HISTORY - 1), stop))
        assert found.count(last) == 1  # always there, and no extra window repeats it
        for window in found:
            assert window == list(range(window[0], window[-1] + 1))
            assert start <= window[0] and window[-1] < stop
            assert window == last or len(window) == HISTORY + 1
        # One more window for every HISTORY targets that the others can't hold.
        assert len(found) == min(windows, max(1, -(-(lengths[row] - 1) // HISTORY)))


def test_extra_windows_reach_every_part_of_a_history(model: Hllm) -> None:
    histories = Ragged.from_rows([list(range(20))])
    rng = np.random.default_rng(0)
    ends = {
        window[-1]
        for _ in range(300)
        for window in windows_of(model.training_batches(histories, 4, 2, rng))[0]
    }
    assert ends == set(range(HISTORY, 20))


def test_the_same_generator_gives_the_same_batches(model: Hllm) -> None:
    histories = Ragged.from_rows([list(range(n)) for n in (3, 12, 9, 7, 12, 5, 2, 8, 11)])

    def batches(seed: int) -> list[tuple[list[int], list[int]]]:
        found = model.training_batches(histories, 2, 3, np.random.default_rng(seed))
        return [(batch.rows.tolist(), batch.targets.tolist()) for batch in found]

    assert batches(0) == batches(0)
    assert batches(0) != batches(1)


def test_batches_hold_like_lengths_in_random_order(model: Hllm) -> None:
    rng = np.random.default_rng(0)
    histories = Ragged.from_rows([[1] * n for n in rng.integers(2, 8, size=64)])
    batches = model.training_batches(histories, 8, 1, rng)
    padded = sum(batch.inputs.numel() for batch in batches)
    assert padded < 1.1 * sum(batch.layout.total for batch in batches)
    widths = [batch.layout.width for batch in batches]
    assert widths != sorted(widths)


@given(rows=rows_of_items, size=st.integers(1, 4))
def test_serving_reads_the_latest_items_of_each_history(
    model: Hllm, rows: list[list[int]], size: int
) -> None:
    found = {}
    for batch in model.serving_batches(Ragged.from_rows(rows), size):
        assert len(batch.targets) == 0
        for i, row in enumerate(batch.rows.tolist()):
            assert row not in found
            found[row] = batch.inputs[i, : batch.layout.lengths[i]].tolist()
    assert found == {i: row[-HISTORY:] for i, row in enumerate(rows)}


# --- items and scores -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("residual", "kind"), [("shared", Kind.DENSE), ("local", Kind.PRIVATE), ("none", None)]
)
def test_kinds(residual: ItemResidual, kind: Kind | None) -> None:
    model, _ = tiny_hllm(settings=HllmSettings(HISTORY, residual))
    trained = model.trained()
    assert {name for name, (k, _) in trained.items() if k is Kind.LORA} == {
        name for name in trained if ".lora_" in name
    }
    assert trained["projection"][0] is trained["scale"][0] is Kind.DENSE
    assert trained.get("item_residual", (None,))[0] is kind
    sent = model.parameters_of(Kind.LORA, Kind.DENSE)
    assert ("item_residual" in sent) is (residual == "shared")
    # Exactly these are trained, and no tensor twice.
    learning = {id(p) for p in model.parameters() if p.requires_grad}
    assert learning == {id(p) for _, p in trained.values()}


def test_item_vectors_start_from_the_texts() -> None:
    model, _ = tiny_hllm(items=5)
    assert torch.equal(model.item_vectors(), text_vectors(5))
    assert model.item_residual is not None
    with torch.no_grad():
        model.item_residual[2] = 1.0
        model.projection.mul_(2.0)
    expected = 2 * text_vectors(5)
    expected[2] += 1
    torch.testing.assert_close(model.item_vectors(), expected)


@pytest.mark.parametrize("text_width", [8, 48])
def test_other_widths_of_text_are_projected(text_width: int) -> None:
    model, _ = tiny_hllm(text_width=text_width)
    assert model.projection.shape == (WIDTH, text_width)
    gram = model.projection.T @ model.projection if text_width < WIDTH else None
    gram = gram if gram is not None else model.projection @ model.projection.T
    torch.testing.assert_close(gram, torch.eye(len(gram)), rtol=0, atol=1e-5)
    torch.manual_seed(3)
    assert torch.equal(tiny_hllm(text_width=text_width)[0].projection, model.projection)


def test_scores_and_loss_equal_a_computation_by_hand() -> None:
    model, stage = tiny_hllm()
    trunk = LocalTrunk(stage)
    for part in (model.head, stage, model.tail):
        install(part, random_factors(adapter(part)))
    with torch.no_grad():
        model.scale.fill_(3.0)
    model.eval()
    trunk.eval()
    model.begin_serving(trunk, Ragged.from_rows([]))
    rows = [[1, 2, 3, 4], [5, 6], [7]]
    items = model.item_vectors().detach().double()

    def cosines(row: list[int]) -> Tensor:
        """Run one history alone, without padding: (positions, items) float64, times the scale."""
        layout = layout_of([len(row)])
        hidden = items[row].float()[None]
        for part in (model.head, stage, model.tail):
            hidden = part(hidden, layout)
        outputs = hidden[0].detach().double()
        scale = outputs.norm(dim=1)[:, None] * items.norm(dim=1)[None, :]
        cosine: Tensor = (outputs @ items.T) / scale
        return 3.0 * cosine

    for batch in model.serving_batches(Ragged.from_rows(rows), 4):
        for row, scores in zip(batch.rows, model.score(trunk, batch, 3), strict=True):
            torch.testing.assert_close(scores, cosines(rows[row])[-1].float(), rtol=1e-5, atol=1e-5)
    expected = 0.0
    for row in rows:
        for logits, target in zip(cosines(row[:-1]) if row[1:] else [], row[1:], strict=True):
            expected += float(torch.logsumexp(logits, 0) - logits[target])
    (batch,) = model.training_batches(Ragged.from_rows(rows), 4, 1, np.random.default_rng(0))
    found = float(model.loss(trunk, batch).detach())
    assert found == pytest.approx(expected, rel=1e-5)
    assert float(model.loss(trunk, batch) / 8) == pytest.approx(expected / 8, rel=1e-5)


def test_a_base_too_short_for_the_history() -> None:
    tiny_hllm(settings=HllmSettings(history=40))
    with pytest.raises(ModelError, match=r"model\.history = 41 .* 40 positions"):
        tiny_hllm(settings=HllmSettings(history=41))


def train(model: Hllm, trunk: LocalTrunk, histories: Ragged, epochs: int) -> list[float]:
    parameters = {name: p for name, (_, p) in model.trained().items()}
    optimiser = Optimiser(parameters, OptimiserSettings(learning_rate=5e-3))
    model.train()
    losses = []
    for epoch in range(epochs):
        total, targets = 0.0, 0
        for batch in model.training_batches(histories, 8, 1, np.random.default_rng(epoch)):
            loss = model.loss(trunk, batch) / len(batch.targets)
            loss.backward()
            optimiser.step(optimiser.squared_norm())
            total, targets = (
                total + float(loss.detach()) * len(batch.targets),
                targets + len(batch.targets),
            )
        losses.append(total / targets)
    return losses


def ring(users: int, items: int = 12) -> Ragged:
    rng = np.random.default_rng(0)
    return Ragged.from_rows(
        [(rng.integers(items) + np.arange(rng.integers(3, 7))) % items for _ in range(users)]
    )


def test_a_learnable_task_is_learned() -> None:
    model, stage = tiny_hllm()
    losses = train(model, LocalTrunk(stage), ring(48), 15)
    # Chance is log(12) = 2.48; the next item on the ring is certain.
    assert losses[-1] < 0.5 * losses[0]
    model.eval()
    model.begin_serving(LocalTrunk(stage), Ragged.from_rows([]))
    batch = next(iter(model.serving_batches(Ragged.from_rows([[3, 4, 5], [9, 10]]), 2)))
    best = model.score(LocalTrunk(stage).eval(), batch, 3).argmax(1)
    assert {int(row): int(item) for row, item in zip(batch.rows, best, strict=True)} == {
        0: 6,
        1: 11,
    }


def test_a_catalogue_of_one_item_and_a_client_of_one_user() -> None:
    model, stage = tiny_hllm(items=1)
    histories = Ragged.from_rows([[0, 0, 0]])
    losses = train(model, LocalTrunk(stage), histories, 1)
    assert losses == [pytest.approx(0.0, abs=1e-6)]  # there is nothing else to choose
    model.eval()
    model.begin_serving(LocalTrunk(stage), histories)
    (batch,) = model.serving_batches(histories, 4)
    assert model.score(LocalTrunk(stage).eval(), batch, 3).shape == (1, 1)


def test_a_client_without_a_history_long_enough_has_no_batches(model: Hllm) -> None:
    rng = np.random.default_rng(0)
    for rows in ([], [[1]], [[1], [2]]):
        assert model.training_batches(Ragged.from_rows(rows), 4, 3, rng) == []
    assert list(model.serving_batches(Ragged.from_rows([]), 4)) == []


def test_the_table_of_a_serving_model_follows_its_tensors() -> None:
    model, stage = tiny_hllm()
    trunk = LocalTrunk(stage).eval()
    histories = Ragged.from_rows([[1, 2, 3]])
    (batch,) = model.serving_batches(histories, 4)
    model.eval()
    model.begin_serving(trunk, histories)
    before = model.score(trunk, batch, 3)
    model.train()
    assert model.item_residual is not None
    with torch.no_grad():
        model.item_residual.add_(torch.randn(12, WIDTH, generator=torch.Generator().manual_seed(0)))
    model.eval()
    model.begin_serving(trunk, histories)
    assert not torch.allclose(model.score(trunk, batch, 3), before)
