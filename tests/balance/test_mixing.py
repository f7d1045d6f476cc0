"""M3 against a naive loop and its limits bit for bit; M4 against an SVD of the dense mixture.

Up to 64 clients M3 is a sum in a fixed order, above a matrix product: both are held to its limits.
"""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fellrec.balance import Mixer, combine, heating, merge_products, mix, mixture
from fellrec.errors import ModelError

NAMES = {"q.lora_A.weight": (3, 7), "q.lora_B.weight": (5, 3), "norm.weight": (11,), "scale": ()}


def make_updates(clients: int, seed: int = 0) -> list[dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    return [{n: torch.randn(s, generator=draw) for n, s in NAMES.items()} for _ in range(clients)]


def make_weighing(clients: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    square = torch.rand(clients, clients, generator=draw, dtype=torch.float64)
    pull = ((square + square.T) / 2).fill_diagonal_(1)
    return pull, torch.rand(clients, generator=draw, dtype=torch.float64)


def naive(
    updates: list[dict[str, Tensor]], pull: Tensor, warmth: Tensor
) -> list[dict[str, Tensor]]:
    """M3 as it is written, one client at a time, from a snapshot."""
    mixed = []
    for c, own in enumerate(updates):
        others = [j for j in range(len(updates)) if j != c]
        below = 1 + warmth[c] * sum(pull[c, j] for j in others)
        mixed.append(
            {
                n: (
                    own[n].double()
                    + warmth[c] * sum(pull[c, j] * updates[j][n].double() for j in others)
                )
                / below
                for n in own
            }
        )
    return mixed


def assert_same_bits(found: Tensor, expected: Tensor) -> None:
    assert torch.equal(found.view(torch.int32), expected.view(torch.int32))


def test_weights_by_hand() -> None:
    # w_0 = 0.5, s_01 = 0.8, s_02 = 0.2: 1 + 0.5 * 1.0 = 1.5 -> (1, 0.4, 0.1) / 1.5.
    pull = torch.tensor([[1, 0.8, 0.2], [0.8, 1, 0.5], [0.2, 0.5, 1]], dtype=torch.float64)
    found = mixture(pull, torch.tensor([0.5, 0.0, 1.0], dtype=torch.float64))
    expected = [[1 / 1.5, 0.4 / 1.5, 0.1 / 1.5], [0, 1, 0], [0.2 / 1.7, 0.5 / 1.7, 1 / 1.7]]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_weights_of_clients_of_unequal_size_by_hand() -> None:
    # Row 0 of the weights above, times sizes 10, 30, 20: (10, 0.4 * 30, 0.1 * 20) of 24.
    pull = torch.tensor([[1, 0.8, 0.2], [0.8, 1, 0.5], [0.2, 0.5, 1]], dtype=torch.float64)
    warmth, sizes = torch.tensor([0.5, 0.0, 1.0], dtype=torch.float64), torch.tensor([10, 30, 20])
    expected = [[10 / 24, 12 / 24, 2 / 24], [0, 1, 0], [2 / 37, 15 / 37, 20 / 37]]
    torch.testing.assert_close(
        mixture(pull, warmth, sizes), torch.tensor(expected, dtype=torch.float64)
    )
    assert torch.equal(mixture(pull, warmth, torch.full((3,), 8)), mixture(pull, warmth))
    none = mixture(pull, warmth, torch.tensor([0, 0, 20]))
    assert none.tolist() == [[0, 0, 1], [0, 1, 0], [0, 0, 1]]  # the second takes from nobody


def test_mix_matches_the_formula() -> None:
    updates, (pull, warmth) = make_updates(5), make_weighing(5)
    for found, expected in zip(
        mix(updates, pull, warmth), naive(updates, pull, warmth), strict=True
    ):
        assert found.keys() == expected.keys()
        for name in NAMES:
            assert found[name].dtype == torch.float32
            torch.testing.assert_close(found[name], expected[name].float(), rtol=1.2e-7, atol=0)


@settings(max_examples=50)
@given(clients=st.integers(1, 8), seed=st.integers(0, 10**6), alone=st.booleans())
def test_weights_are_convex(clients: int, seed: int, alone: bool) -> None:
    pull, warmth = make_weighing(clients, seed)
    if alone:
        warmth[0] = 0
    weights = mixture(pull, warmth)
    assert (weights >= 0).all()
    assert weights.sum(dim=1).tolist() == pytest.approx([1.0] * clients, abs=1e-14)
    values = torch.randn(clients, 4, generator=torch.Generator().manual_seed(seed))
    mixed = combine(weights, values)
    assert (mixed <= values.max(dim=0).values + 1e-6).all()
    assert (mixed >= values.min(dim=0).values - 1e-6).all()


def test_order_of_clients_only_permutes() -> None:
    updates, (pull, warmth), order = make_updates(5), make_weighing(5), [4, 2, 0, 1, 3]
    straight = mix(updates, pull, warmth)
    turned = mix([updates[i] for i in order], pull[order][:, order], warmth[order])
    for found, client in zip(turned, order, strict=True):
        for name in NAMES:
            torch.testing.assert_close(found[name], straight[client][name], rtol=1e-6, atol=0)


@pytest.mark.parametrize("clients", [6, 200])
def test_clients_that_agree_stay_where_they_are(clients: int) -> None:
    updates, (pull, warmth) = make_updates(1) * clients, make_weighing(clients)
    for found in mix(updates, pull, warmth):
        for name in NAMES:
            assert_same_bits(found[name], updates[0][name])


@settings(max_examples=30)
@given(clients=st.integers(1, 300), columns=st.integers(1, 30), seed=st.integers(0, 10**6))
def test_any_number_of_clients_matches_the_formula(clients: int, columns: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    weights = mixture(*make_weighing(clients, seed))
    values = torch.randn(clients, columns, generator=draw)
    expected = (weights[:, :, None] * values.double()).sum(dim=1)
    # Half a step of float32, and what sums of 300 terms may differ by in float64.
    torch.testing.assert_close(combine(weights, values).double(), expected, rtol=6e-8, atol=1e-13)


@pytest.mark.parametrize("clients", [1, 2, 5, 64])
def test_few_clients_are_added_in_order(clients: int) -> None:
    # The bits that earlier runs were made with, on whatever machine.
    weights = mixture(*make_weighing(clients))
    values = torch.randn(clients, 33, generator=torch.Generator().manual_seed(0))
    for found, row in zip(combine(weights, values), weights.tolist(), strict=True):
        total = np.zeros(33)
        for weight, given_ in zip(row, values.numpy().astype(np.float64), strict=True):
            total += weight * given_
        if clients > 1:
            assert_same_bits(found, torch.from_numpy(total.astype(np.float32)))


@pytest.mark.parametrize("clients", [5, 64, 65, 200])
def test_equal_weights_give_equal_bits(clients: int) -> None:
    draw = torch.Generator().manual_seed(0)
    kinds = torch.rand(4, clients, generator=draw, dtype=torch.float64)
    kinds /= kinds.sum(dim=1, keepdim=True)
    kind = torch.randint(4, (clients,), generator=draw)
    values = torch.randn(clients, 501, generator=draw)
    weights = kinds[kind]
    mixed = combine(weights, values)
    for client, found in enumerate(mixed):
        first = int((kind == kind[client]).nonzero()[0])
        assert_same_bits(found, mixed[first])
    torch.testing.assert_close(mixed, (weights @ values.double()).float(), rtol=1.2e-7, atol=1e-12)


@pytest.mark.parametrize("clients", [4, 150])
def test_among_others_a_client_on_its_own_keeps_every_bit(clients: int) -> None:
    pull, warmth = make_weighing(clients)
    warmth[::2] = 0
    values = torch.randn(clients, 40, generator=torch.Generator().manual_seed(0))
    values[:, 0], values[:, 1] = -0.0, 1e-45
    mixed = combine(mixture(pull, warmth), values)
    assert_same_bits(mixed[::2], values[::2])
    assert (mixed[1::2, 2:] != values[1::2, 2:]).all()


@pytest.mark.parametrize("clients", [3, 150])
def test_all_on_their_own_may_hold_anything(clients: int) -> None:
    values = torch.randn(clients, 4, generator=torch.Generator().manual_seed(0))
    values[1], values[2] = torch.nan, torch.inf
    mixed = combine(torch.eye(clients, dtype=torch.float64), values)
    assert_same_bits(mixed, values)
    assert mixed.data_ptr() != values.data_ptr()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("taken", [True, False])
@pytest.mark.parametrize("clients", [4, 150])
def test_what_is_not_finite_is_refused(clients: int, taken: bool, value: float) -> None:
    # Also where nobody takes from the client: it should have been left out of the round.
    weights = mixture(*make_weighing(clients))
    values = torch.randn(clients, 9, generator=torch.Generator().manual_seed(0))
    for client in (0, clients - 1):
        broken, given_ = values.clone(), weights.clone()
        broken[client, 5] = value
        if not taken:
            given_[:, client] = 0
            given_[client, client] = 1
        with pytest.raises(ModelError, match="NaN or infinity"):
            combine(given_, broken)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("clients", [5, 90])
def test_dtype_stays_and_a_mixer_serves_many_tensors(clients: int, dtype: torch.dtype) -> None:
    weights = mixture(*make_weighing(clients))
    mixer = Mixer(weights)
    for shape in [(3, 4), (), (11,)]:
        draw = torch.Generator().manual_seed(0)
        values = torch.randn(clients, *shape, generator=draw).to(dtype)
        found = mixer(values)
        assert (found.shape, found.dtype) == (values.shape, dtype)
        assert torch.equal(found, combine(weights, values))
        step = torch.finfo(dtype).eps
        expected = torch.tensordot(weights, values.double(), dims=1)
        torch.testing.assert_close(found.double(), expected, rtol=step, atol=1e-12)


@pytest.mark.parametrize("cold", ["alpha", "attention"])
def test_local_only_limit_bit_for_bit(cold: str) -> None:
    updates, (pull, warmth) = make_updates(4), make_weighing(4)
    if cold == "alpha":
        warmth = heating([1.0, 2.0, 3.0, 4.0], 9, alpha=0, beta=1)
    else:
        pull = torch.eye(4, dtype=torch.float64)
    for found, own in zip(mix(updates, pull, warmth), updates, strict=True):
        for name in NAMES:
            assert_same_bits(found[name], own[name])
            assert found[name].data_ptr() != own[name].data_ptr()


@pytest.mark.parametrize("clients", [1, 2, 3, 5, 7, 10, 49, 64, 65, 300])
def test_fedavg_limit_is_exactly_one_nth(clients: int) -> None:
    ones = torch.ones(clients, clients, dtype=torch.float64)
    weights = mixture(ones, torch.ones(clients, dtype=torch.float64))
    assert torch.equal(weights, torch.full_like(ones, 1 / clients))
    mixed = combine(weights, torch.randn(clients, 1001, generator=torch.Generator().manual_seed(0)))
    for row in mixed:  # one global model, to the last bit
        assert_same_bits(row, mixed[0])


def test_a_client_without_weight_on_others_keeps_every_bit() -> None:
    values = torch.tensor([[-0.0, 1e-45, 3.0], [1.0, 2.0, 4.0], [5.0, 6.0, 7.0]])
    weights = torch.tensor([[1, 0, 0], [0.5, 0.5, 0], [0, 0.5, 0.5]], dtype=torch.float64)
    mixed = combine(weights, values)
    assert_same_bits(mixed[0], values[0])
    assert mixed[1:].tolist() == [[0.5, 1.0, 3.5], [3.0, 4.0, 5.5]]


def test_all_clients_read_one_snapshot() -> None:
    values = torch.tensor([[1.0], [3.0]])
    swap = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    assert combine(swap, values).tolist() == [[3.0], [1.0]]
    assert values.tolist() == [[1.0], [3.0]]


@pytest.mark.parametrize(
    ("clients", "name", "size"), [(5, "_ORDERED_ELEMENTS", 35), (90, "_MULTIPLIED_ELEMENTS", 650)]
)
def test_blocks_larger_than_the_working_memory(
    monkeypatch: pytest.MonkeyPatch, clients: int, name: str, size: int
) -> None:
    weights = mixture(*make_weighing(clients))
    values = torch.randn(clients, 10, 10, generator=torch.Generator().manual_seed(0))
    whole = combine(weights, values)
    monkeypatch.setattr(import_module("fellrec.balance.mixing"), name, size)
    found = combine(weights, values)
    if clients <= 64:
        assert_same_bits(found, whole)
    torch.testing.assert_close(found, whole, rtol=1.2e-7, atol=1e-12)


def test_refusals() -> None:
    one, other = make_updates(2)
    ones = torch.ones(2, 2, dtype=torch.float64)
    with pytest.raises(ModelError, match="do not fit"):
        mixture(ones, torch.ones(3))
    with pytest.raises(ModelError, match="not negative"):
        mixture(-ones, torch.ones(2))
    with pytest.raises(ModelError, match="finite"):
        mixture(ones, torch.tensor([1.0, torch.nan]))
    with pytest.raises(ModelError, match=r"sizes .* do not fit"):
        mixture(ones, torch.ones(2), torch.ones(3))
    with pytest.raises(ModelError, match="not negative"):
        mixture(ones, torch.ones(2), torch.tensor([1, -1]))
    with pytest.raises(ModelError, match="do not fit"):
        combine(ones, torch.ones(3, 1))
    with pytest.raises(ModelError, match="no client completed"):
        mix([], torch.ones(0, 0), torch.ones(0))
    with pytest.raises(ModelError, match="NaN or infinity"):
        mix([one, dict(other, scale=torch.tensor(torch.inf))], ones, torch.ones(2))


def make_factors(clients: int, rank: int, width: int, height: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(rank)
    return (
        torch.randn(clients, rank, width, generator=draw),
        torch.randn(clients, height, rank, generator=draw),
    )


@pytest.mark.parametrize(
    ("clients", "rank", "width", "height"),
    # Thin QR; N·r = d; N·r above d; more rank than the matrix has.
    [(3, 2, 20, 15), (3, 2, 6, 9), (5, 4, 12, 10), (3, 5, 4, 9)],
)
def test_product_merge_is_the_truncated_svd_of_the_dense_mixture(
    clients: int, rank: int, width: int, height: int
) -> None:
    a, b = make_factors(clients, rank, width, height)
    weights = mixture(*make_weighing(clients))
    new_a, new_b, dropped = merge_products(a, b, weights)
    assert (new_a.shape, new_b.shape, new_a.dtype) == (a.shape, b.shape, torch.float32)
    for c in range(clients):
        dense = sum(weights[c, j] * (b[j].double() @ a[j].double()) for j in range(clients))
        assert isinstance(dense, Tensor)
        u, s, vt = torch.linalg.svd(dense, full_matrices=False)
        best = (u[:, :rank] * s[:rank]) @ vt[:rank]
        torch.testing.assert_close(new_b[c] @ new_a[c], best.float(), rtol=1e-4, atol=1e-5)
        lost = (dense - best).square().sum() / dense.square().sum()
        assert dropped[c].item() == pytest.approx(lost.item(), abs=1e-12)


def test_product_merge_keeps_every_rank_alive() -> None:
    a, b = make_factors(3, 4, 20, 15)
    new_a, new_b, _ = merge_products(a, b, mixture(*make_weighing(3)))
    torch.testing.assert_close(new_a @ new_a.mT, torch.eye(4).expand(3, 4, 4), rtol=0, atol=1e-5)
    assert (new_b.norm(dim=1) > 0).all()
    # Also when the mixture itself is 0, as before any training: B may be 0, A may not.
    new_a, new_b, dropped = merge_products(a, torch.zeros_like(b), mixture(*make_weighing(3)))
    torch.testing.assert_close(new_a @ new_a.mT, torch.eye(4).expand(3, 4, 4), rtol=0, atol=1e-5)
    assert not new_b.any()
    assert not dropped.any()


def test_product_merge_of_equal_clients_drops_nothing() -> None:
    a, b = make_factors(1, 3, 30, 20)
    same_a, same_b = a.repeat(4, 1, 1), b.repeat(4, 1, 1)
    new_a, new_b, dropped = merge_products(same_a, same_b, mixture(*make_weighing(4)))
    torch.testing.assert_close(new_b @ new_a, same_b @ same_a, rtol=1e-4, atol=1e-5)
    assert dropped.max() < 1e-12


def test_product_merge_leaves_a_lone_client_untouched() -> None:
    a, b = make_factors(3, 2, 20, 15)
    pull, warmth = make_weighing(3)
    warmth[1] = 0
    new_a, new_b, dropped = merge_products(a, b, mixture(pull, warmth))
    assert_same_bits(new_a[1], a[1])
    assert_same_bits(new_b[1], b[1])
    assert dropped[1] == 0
    assert (dropped[[0, 2]] > 0).all()
    new_a, new_b, dropped = merge_products(a, b, torch.eye(3, dtype=torch.float64))
    assert_same_bits(new_a, a)
    assert_same_bits(new_b, b)


def test_product_merge_does_not_depend_on_the_order_of_clients() -> None:
    (a, b), (pull, warmth), order = make_factors(4, 2, 20, 15), make_weighing(4), [2, 0, 3, 1]
    straight = merge_products(a, b, mixture(pull, warmth))
    turned = merge_products(a[order], b[order], mixture(pull[order][:, order], warmth[order]))
    for found, expected in zip(turned, straight, strict=True):
        torch.testing.assert_close(found, expected[order], rtol=1e-4, atol=1e-5)


def test_product_merge_refusals() -> None:
    a, b = make_factors(3, 2, 20, 15)
    weights = mixture(*make_weighing(3))
    with pytest.raises(ModelError, match="do not pair"):
        merge_products(a, b.mT, weights)
    with pytest.raises(ModelError, match="do not fit"):
        merge_products(a[:2], b, weights)
    with pytest.raises(ModelError, match="NaN or infinity"):
        merge_products(a * torch.inf, b, weights)
