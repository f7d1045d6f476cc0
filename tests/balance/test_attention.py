"""M1 against hand-worked values, a naive loop, and products that are really built."""

from __future__ import annotations

import math
import operator
from importlib import import_module

import numpy as np
import pytest
import torch
from torch import Tensor

from fellrec.balance import Gram, Spread, attention, lora_pairs, spread
from fellrec.errors import ConfigError, ModelError

A, B = "layers.0.q.lora_A.weight", "layers.0.q.lora_B.weight"


def make_updates(clients: int, seed: int = 0, dense: bool = True) -> list[dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {A: (3, 7), B: (5, 3), "layers.1.v.lora_A.weight": (2, 4)}
    shapes |= {"layers.1.v.lora_B.weight": (6, 2)}
    if dense:
        shapes["norm.weight"] = (11,)
    return [{n: torch.randn(s, generator=draw) for n, s in shapes.items()} for _ in range(clients)]


def naive(vectors: list[Tensor]) -> Tensor:
    out = torch.ones(len(vectors), len(vectors), dtype=torch.float64)
    for c, one in enumerate(vectors):
        for j, other in enumerate(vectors):
            if c != j:
                out[c, j] = (torch.cosine_similarity(one, other, dim=0) + 1) / 2
    return out


def test_known_angles() -> None:
    # Client 0 is (1, 0 | 0), client 1 (0, 1 | 0): cosine 0 -> 0.5. Client 2 is (-2, 0 | 0):
    # cosine -1 with client 0 -> 0. Client 3 is (1, 1 | 0): cosine 1/sqrt(2) with 0 -> 0.853553...
    rows = [[1.0, 0.0], [0.0, 1.0], [-2.0, 0.0], [1.0, 1.0]]
    updates = [{A: torch.tensor([row]), B: torch.zeros(1, 1)} for row in rows]
    found = attention(updates)
    assert found.dtype == torch.float64
    expected = [[1, 0.5, 0, 0.8535533905932737], [0.5, 1, 0.5, 0.8535533905932737]]
    torch.testing.assert_close(found[:2], torch.tensor(expected, dtype=torch.float64))
    assert torch.equal(found, found.T)


def test_factors_match_flattening() -> None:
    updates = make_updates(4)
    names = [name for name in updates[0] if "lora" in name]
    flat = [torch.cat([u[n].double().flatten() for n in names]) for u in updates]
    torch.testing.assert_close(attention(updates), naive(flat))


def test_update_matches_building_the_products() -> None:
    updates = make_updates(4)
    flat = [
        torch.cat([(u[b].double() @ u[a].double()).flatten() for a, b in lora_pairs(u)])
        for u in updates
    ]
    torch.testing.assert_close(attention(updates, "update"), naive(flat))


def test_update_does_not_see_how_a_product_is_factored() -> None:
    updates = make_updates(2)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)))[0]
    refactored = dict(updates[0], **{A: turn.T @ updates[0][A], B: updates[0][B] @ turn})
    assert attention([updates[0], refactored], "update")[0, 1] > 1 - 1e-6
    assert attention([updates[0], refactored], "factors")[0, 1] < 0.95


def test_change_takes_each_clients_own_start() -> None:
    updates, start = make_updates(3), make_updates(3, seed=1)
    names = [name for name in updates[0] if "lora" in name]
    flat = [
        torch.cat([(u[n] - s[n]).double().flatten() for n in names])
        for u, s in zip(updates, start, strict=True)
    ]
    torch.testing.assert_close(attention(updates, "change", start), naive(flat))


def test_change_tells_apart_what_a_shared_start_hides() -> None:
    shared = {A: torch.full((1, 50), 10.0), B: torch.zeros(2, 1)}
    moves = torch.tensor([[0.1], [-0.1]])
    updates = [{A: shared[A].clone(), B: shared[B] + move} for move in moves]
    assert not spread(attention(updates, "factors")).active
    assert attention(updates, "factors")[0, 1] > 0.999
    assert attention(updates, "change", [shared, shared])[0, 1] < 1e-15  # opposite moves


def test_dense_tensors_are_not_compared() -> None:
    torch.testing.assert_close(
        attention(make_updates(3, dense=True)[:1] * 2),
        torch.ones(2, 2, dtype=torch.float64),
    )
    one = make_updates(1)[0]
    other = dict(one, **{"norm.weight": -one["norm.weight"]})
    assert attention([one, other])[0, 1] == pytest.approx(1)


@pytest.mark.parametrize("space", ["factors", "update"])
def test_a_zero_update_has_cosine_0(space: str) -> None:
    updates = make_updates(3)
    updates[1] = {name: torch.zeros_like(value) for name, value in updates[1].items()}
    found = attention(updates, space)  # type: ignore[arg-type]  # parametrised over the literals
    assert found[1].tolist() == [0.5, 1.0, 0.5]


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_cosines_do_not_depend_on_scale(scale: float) -> None:
    # Squares of 1e-30 or 1e30 leave float32: only float64 sums survive.
    block = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    small, plain = Gram(2), Gram(2)
    small.add(block * scale)
    plain.add(block)
    torch.testing.assert_close(small.attention(), plain.attention())


@pytest.mark.parametrize("space", ["factors", "update"])
def test_order_of_clients_only_permutes(space: str) -> None:
    updates, order = make_updates(5), [3, 0, 4, 1, 2]
    found = attention([updates[i] for i in order], space)  # type: ignore[arg-type]  # literals
    expected = attention(updates, space)[order][:, order]  # type: ignore[arg-type]  # literals
    torch.testing.assert_close(found, expected)


def test_blocks_larger_than_the_working_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(0)
    a, b = torch.randn(5, 3, 40, generator=draw), torch.randn(5, 30, 3, generator=draw)
    whole = Gram(5)
    whole.add(a)
    whole.add_product(a, b)
    # By module: the package's name `attention` is the function.
    monkeypatch.setattr(import_module("fellrec.balance.attention"), "_WORKING_ELEMENTS", 64)
    pieces = Gram(5)
    pieces.add(a)
    pieces.add_product(a, b)
    torch.testing.assert_close(pieces.cosine(), whole.cosine())


@pytest.mark.parametrize("clients", [1, 2, 127, 128, 129, 300])
def test_any_number_of_clients(clients: int) -> None:
    draw = torch.Generator().manual_seed(clients)
    values = torch.randn(clients, 50, generator=draw)
    gram = Gram(clients)
    for part in values.split([20, 30], dim=1):
        gram.add(part)
    wide = values.numpy().astype(np.float64)
    norms = np.sqrt(np.square(wide).sum(axis=1))
    expected = torch.from_numpy(wide @ wide.T / np.outer(norms, norms))
    found = gram.cosine()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(found, found.T, rtol=0, atol=1e-15)
    assert (found.diagonal() == 1).all()


def test_clients_that_differ_by_a_billionth_are_told_apart() -> None:
    # Steps of 4.5e-5 across unit values: 1 - cos = 4.5e-5² / 2 = 1.0e-9, which float32 cannot hold.
    draw = torch.Generator().manual_seed(0)
    values = torch.randn(1, 20_000, generator=draw).repeat(140, 1)
    values += 4.5e-5 * torch.randn(140, 20_000, generator=draw) * (torch.arange(140) > 0)[:, None]
    gram = Gram(140)
    gram.add(values)
    found = gram.cosine()
    for one, other in [(0, 1), (0, 139), (3, 100), (130, 135)]:
        x, y = (values[c].double().tolist() for c in (one, other))
        # Products of float32 values are exact in float64, and fsum rounds once; the sums that are
        # tried may be off by 20,000 · 1.1e-16.
        xx, yy, xy = (math.fsum(map(operator.mul, a, b)) for a, b in ((x, x), (y, y), (x, y)))
        expected = 1 - xy / math.sqrt(xx) / math.sqrt(yy)
        assert 0.9e-9 < expected < 2.2e-9
        assert 1 - found[one, other].item() == pytest.approx(expected, abs=2e-12)


@pytest.mark.parametrize("client", [0, 127, 128, 299])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_is_found_among_many(client: int, value: float) -> None:
    values = torch.ones(300, 3)
    values[client, 2] = value
    with pytest.raises(ModelError, match="NaN or infinity"):
        Gram(300).add(values)


def test_spread() -> None:
    # Off the diagonal: 0.4, 0.5, 0.4, 0.9, 0.5, 0.9 -> median 0.5.
    matrix = torch.tensor([[1, 0.4, 0.5], [0.4, 1, 0.9], [0.5, 0.9, 1]], dtype=torch.float64)
    assert spread(matrix) == Spread(0.4, 0.5, 0.9, True)
    assert not spread(torch.tensor([[1, 0.7], [0.7, 1]])).active
    assert spread(torch.ones(1, 1)) == Spread(0.0, 0.0, 0.0, False)
    near = torch.tensor([[1, 0.5, 0.5], [0.5, 1, 0.519], [0.5, 0.519, 1]])
    assert not spread(near).active


def test_refusals() -> None:
    one, other = make_updates(2)
    with pytest.raises(ConfigError, match="choose one of factors, update, change"):
        attention([one], "angles")  # type: ignore[arg-type]  # what is tested
    with pytest.raises(ConfigError, match="start"):
        attention([one, other], "change")
    with pytest.raises(ModelError, match="no client completed"):
        attention([])
    with pytest.raises(ModelError, match=r"norm\.weight is not in all"):
        attention([one, {k: v for k, v in other.items() if k != "norm.weight"}])
    with pytest.raises(ModelError, match=r"shape \(1,\) at client 1"):
        attention([one, dict(other, **{A: torch.ones(1)})])
    with pytest.raises(ModelError, match="no LoRA tensor"):
        attention([{"norm.weight": torch.ones(2)}])
    with pytest.raises(ModelError, match="NaN or infinity"):
        attention([one, dict(other, **{A: torch.full((3, 7), torch.nan)})])
    with pytest.raises(ModelError, match=r"lora_A\.weight is missing"):
        attention([{B: torch.ones(2, 1)}], "update")
    with pytest.raises(ModelError, match="one row for each of 2"):
        Gram(2).add(torch.ones(3, 4))
    with pytest.raises(ModelError, match="do not pair"):
        Gram(2).add_product(torch.ones(2, 3, 4), torch.ones(2, 4, 2))
