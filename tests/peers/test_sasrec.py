"""The SASRec model: what it may look at, its loss, its size, and whose random numbers it draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fellrec.data.interactions import Ragged
from fellrec.errors import DataError
from fellrec.peers.sasrec import SasRec, SasRecSettings, pad
from tests.peers.tastes import random_histories

ITEMS = 12
SETTINGS = SasRecSettings(width=8, blocks=2, heads=2, dropout=0.5, history=6)


def make_model(seed: int = 0) -> SasRec:
    generator = torch.Generator().manual_seed(seed)
    model = SasRec(ITEMS, SETTINGS, generator).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # as initialised, attention is nearly uniform
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    return model


def test_later_items_are_not_looked_at() -> None:
    model = make_model().requires_grad_(True)
    inputs = torch.tensor([[1, 2, 3, 4, 5, 6]])
    changed = torch.tensor([[1, 2, 3, 9, 5, 6]])
    left, right = (model(items, torch.tensor([6])) for items in (inputs, changed))
    torch.testing.assert_close(left[:, :3], right[:, :3], rtol=0, atol=1e-6)
    assert not torch.isclose(left[:, 3:], right[:, 3:]).all(dim=-1).any()


def test_padding_changes_nothing() -> None:
    model, histories = make_model(), random_histories(9, ITEMS, 6)
    together = model.scores(histories)
    for user in range(len(histories)):
        alone = model.scores(histories.take([user]))[0]
        torch.testing.assert_close(together[user], alone, rtol=1e-5, atol=1e-5)


def test_the_latest_items_are_read_in_order() -> None:
    model = make_model()
    long = Ragged.from_rows([[7, 8, 1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6], [2, 1, 3, 4, 5, 6]])
    longer, cut, swapped = model.scores(long)
    assert torch.equal(longer, cut)
    assert not torch.allclose(cut, swapped)


def test_the_score_is_the_outputs_product_with_the_embedding() -> None:
    model = make_model()
    outputs = model(torch.tensor([[3, 1, 4]]), torch.tensor([3]))
    expected = (outputs[0, 2] @ model.items.weight.T).detach()
    torch.testing.assert_close(model.scores(Ragged.from_rows([[3, 1, 4]]))[0], expected)


def test_the_loss_by_hand() -> None:
    model = make_model()
    inputs, lengths = torch.tensor([[3, 1, 4], [5, 0, 0]]), torch.tensor([3, 1])
    targets = [1, 4, 2, 7]
    with torch.no_grad():
        logits = model(inputs, lengths) @ model.items.weight.T
        rows = logits.softmax(dim=-1)[[0, 0, 0, 1], [0, 1, 2, 0]].numpy()
        found = float(model.loss(inputs, lengths, torch.tensor(targets)))
    assert found == pytest.approx(-np.log(rows[range(4), targets]).mean(), rel=1e-5)


def test_size() -> None:
    # d = 8: a block has 4 d² + 4 d for attention, 8 d² + 5 d for the layer inside, 4 d for norms.
    block = 12 * 64 + 13 * 8
    assert make_model().size() == (ITEMS + 6) * 8 + 2 * block + 2 * 8


def test_draws_are_its_own() -> None:
    before = torch.get_rng_state()
    model = SasRec(ITEMS, SETTINGS, torch.Generator().manual_seed(0)).train()
    inputs, lengths = torch.tensor([[3, 1, 4]]), torch.tensor([3])
    first = model(inputs, lengths)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(model(inputs, lengths), first)
    model.key.step += 1
    assert not torch.equal(model(inputs, lengths), first)


def test_values_are_copies() -> None:
    model, other = make_model(0), make_model(1)
    values = other.values()
    model.load(values)
    with torch.no_grad():
        other.items.weight.zero_()
    values["items.weight"].zero_()
    histories = random_histories(3, ITEMS, 6)
    assert torch.equal(model.scores(histories), make_model(1).scores(histories))


def test_scoring_leaves_the_mode() -> None:
    model = make_model().train()
    first = model.scores(Ragged.from_rows([[1, 2]]))
    assert model.training
    assert torch.equal(model.eval().scores(Ragged.from_rows([[1, 2]])), first)
    assert not model.training


def test_padded_rows() -> None:
    values = np.arange(10, dtype=np.int32)
    inputs, lengths = pad(values, np.array([1, 6]), np.array([3, 10]))
    assert lengths.tolist() == [2, 4]
    assert inputs[0, :2].tolist() == [1, 2]
    assert inputs[1].tolist() == [6, 7, 8, 9]


def test_an_empty_history_is_refused() -> None:
    with pytest.raises(DataError, match="one item or more"):
        make_model().scores(Ragged.from_rows([[1], []]))
