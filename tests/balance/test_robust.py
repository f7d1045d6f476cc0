"""Clipping, refusal, Krum and trimming: by hand, against other formulas, and at their limits."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fellrec.balance import (
    Gram,
    Mixer,
    Trimmer,
    change_norms,
    clip_factors,
    excess,
    joint_distances,
    krum,
    mixture,
    shrink,
    sources,
)
from fellrec.errors import ConfigError, ModelError


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weights_of(clients: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    pull = torch.rand(clients, clients, generator=generator, dtype=torch.float64)
    return mixture(pull, torch.rand(clients, generator=generator, dtype=torch.float64))


def assert_same_bits(found: Tensor, expected: Tensor) -> None:
    assert torch.equal(found.view(torch.int32), expected.view(torch.int32))


def squares_of(values: Tensor) -> Tensor:
    """Distances by the definition, without inner products."""
    return (values[:, None].double() - values[None].double()).square().sum(dim=2)


def test_norms_of_a_change_by_hand() -> None:
    begun = {"m.lora_A.weight": torch.ones(1, 2), "m.lora_B.weight": torch.zeros(2, 1)}
    begun |= {"scale": torch.tensor(10.0), "frozen": torch.ones(3)}
    values = {
        "m.lora_A.weight": torch.tensor([[1.0, 3.0]]),  # 2
        "m.lora_B.weight": torch.tensor([[2.0], [1.0]]),  # and 2, 1: a norm of 3
        "scale": torch.tensor(6.0),
    }
    assert change_norms(values, begun).tolist() == [3.0, 4.0]
    assert change_norms(begun, begun).tolist() == [0.0, 0.0]
    for odd in (torch.nan, torch.inf):
        found = change_norms({**values, "scale": torch.tensor(odd)}, begun)
        assert found[0] == 3 and not torch.isfinite(found[1])


def test_norms_of_large_tensors_are_added_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    values, begun = {"table": draw(31, 7)}, {"table": draw(31, 7, seed=1)}
    whole = float((values["table"].double() - begun["table"].double()).norm())
    monkeypatch.setattr(import_module("fellrec.balance.robust"), "_NORM_ELEMENTS", 10)
    assert change_norms(values, begun).tolist() == pytest.approx([0, whole], rel=1e-12)
    # Differences that float32 has no number for, and whose squares float64 has.
    far = {"table": torch.full((2,), 3e38)}
    found = change_norms(far, {"table": -far["table"]})
    assert found[1].item() == pytest.approx(6e38 * 2**0.5, rel=1e-6)


def test_excess_by_hand() -> None:
    # Medians 2 and 20; client 3's dense change stands out, not its factors.
    norms = torch.tensor([[1.0, 10], [2, 20], [3, 30], [2, 400], [4, 10]])
    assert excess(norms).tolist() == [0.5, 1.0, 1.5, 20.0, 2.0]
    # Of an even number the median is the mean of the two in the middle: 1.5.
    assert excess(torch.tensor([[1.0], [2], [1], [30]])).tolist() == pytest.approx(
        [2 / 3, 4 / 3, 2 / 3, 20]
    )


def test_who_did_not_move_has_no_part_in_the_median() -> None:
    still = torch.tensor([[0.0], [0], [0], [2], [2], [50]])
    assert excess(still).tolist() == [0, 0, 0, 1, 1, 25]
    # Of two or fewer that moved nobody can say which is odd; nor where nobody moved.
    assert excess(torch.tensor([[0.0], [1], [1000]])).tolist() == [0, 0, 0]
    assert excess(torch.zeros(4, 2)).tolist() == [0, 0, 0, 0]
    assert excess(torch.tensor([[1.0, 1], [9, 900]])).tolist() == [0, 0]
    assert excess(torch.zeros(1, 2)).tolist() == [0]


@settings(max_examples=60)
@given(
    honest=st.lists(st.floats(1e-3, 1e3), min_size=3, max_size=9),
    attacks=st.lists(st.floats(1e-9, 1e30), max_size=4),
)
def test_a_minority_cannot_make_honest_clients_look_long(
    honest: list[float], attacks: list[float]
) -> None:
    attacks = attacks[: (len(honest) - 1) // 2]
    found = excess(torch.tensor([[n] for n in honest + attacks], dtype=torch.float64))
    # Honest clients are at most as many medians long as the longest is of the shortest one.
    assert found[: len(honest)].max() <= max(honest) / min(honest) * (1 + 1e-12)
    # And what is left of an attacker's change is at most `clip` times the longest honest one.
    factors = clip_factors(found, 3.0)
    left = factors * torch.tensor(honest + attacks, dtype=torch.float64)
    assert left.max() <= 3 * max(honest) * (1 + 1e-12)


def test_clip_factors() -> None:
    times = torch.tensor([0.0, 1.0, 3.0, 4.0, 60.0], dtype=torch.float64)
    assert clip_factors(times, 3.0).tolist() == [1, 1, 1, 0.75, 0.05]
    assert clip_factors(times, 0.0).tolist() == [1] * 5


def test_shrink_by_hand() -> None:
    begun, values = torch.tensor([1.0, -2.0]), torch.tensor([5.0, -4.0])
    assert shrink(values, begun, 0.25).tolist() == [2.0, -2.5]
    assert shrink(values, begun, 0.25).dtype == torch.float32
    far = torch.full((2,), 3e38)
    assert shrink(far, -far, 0.5).tolist() == [0, 0]


def test_distances_are_those_of_the_definition() -> None:
    values = 3 + draw(6, 40)
    gram = Gram(6)
    gram.add(values[:, :13])
    gram.add(values[:, 13:])
    torch.testing.assert_close(gram.distances(), squares_of(values), rtol=1e-11, atol=1e-11)
    assert torch.equal(gram.distances(), gram.distances().T)
    assert not gram.distances().diagonal().any()


def test_each_kind_counts_in_its_own_unit() -> None:
    factors, table = squares_of(draw(5, 4)), squares_of(draw(5, 400, seed=1))
    joint = joint_distances([factors, table])
    torch.testing.assert_close(joint_distances([factors, 1e9 * table]), joint)
    # A kind that nobody has, or that all agree on, changes nothing.
    nothing = torch.zeros(5, 5, dtype=torch.float64)
    assert torch.equal(joint_distances([factors, table, nothing]), joint)
    # Where most agree, one that does not stands out all the same.
    odd = squares_of(torch.tensor([[0.0], [0], [0], [0], [7]]))
    assert joint_distances([nothing, odd])[4, 0] == 1


def test_krum_by_hand() -> None:
    # On a line at 0, 1, 2, 4, 20; f = 1: scores are sums of the 5 - 1 - 2 = 2 smallest squares:
    # 1 + 4, 1 + 1, 1 + 4, 4 + 9, 256 + 324.
    values = torch.tensor([[0.0], [1], [2], [4], [20]])
    assert krum(squares_of(values), 1).tolist() == [True, True, True, True, False]
    # Seven and f = 2: the two highest scores go.
    values = torch.tensor([[0.0], [1], [2], [4], [3], [50], [-60]])
    assert krum(squares_of(values), 2).tolist() == [True] * 5 + [False] * 2


def test_krum_at_its_limits() -> None:
    assert krum(squares_of(draw(2, 3)), 0).tolist() == [True, True]
    assert krum(torch.zeros(5, 5), 1).all()  # clients that agree all stay
    with pytest.raises(ConfigError, match="needs 5, got 4"):
        krum(squares_of(draw(4, 3)), 1)


@settings(max_examples=40)
@given(malicious=st.integers(1, 3), extra=st.integers(0, 4), seed=st.integers(0, 10**6))
def test_krum_finds_far_clients_in_any_order(malicious: int, extra: int, seed: int) -> None:
    clients = 2 * malicious + 3 + extra
    values = draw(clients, 5, seed=seed)
    values[:malicious] += 100 * draw(malicious, 5, seed=seed + 1).sign()
    order = torch.randperm(clients, generator=torch.Generator().manual_seed(seed))
    straight = krum(squares_of(values), malicious)
    assert torch.equal(krum(squares_of(values[order]), malicious), straight[order])
    assert straight.tolist() == [False] * malicious + [True] * (clients - malicious)


def test_who_is_not_selected_gives_to_itself_alone() -> None:
    weights = torch.tensor([[0.5, 0.3, 0.2], [0.0, 0.5, 0.5], [0.2, 0.2, 0.6]]).double()
    found = sources(weights, torch.tensor([True, True, False]))
    expected = [[0.625, 0.375, 0], [0, 1, 0], [0.2, 0.2, 0.6]]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    assert sources(weights, torch.ones(3, dtype=torch.bool)) is weights
    # Where a client had no weight on itself and nothing else is left, it keeps what it has.
    only = torch.tensor([[0.0, 1.0], [0.0, 1.0]]).double()
    assert sources(only, torch.tensor([True, False])).tolist() == [[1, 0], [0, 1]]


def test_sources_are_m3_without_attention() -> None:
    generator = torch.Generator().manual_seed(3)
    pull = torch.rand(6, 6, generator=generator, dtype=torch.float64)
    warm = torch.rand(6, generator=generator, dtype=torch.float64)
    selected = torch.tensor([True, False, True, True, False, True])
    expected = mixture(torch.where(selected[None, :], pull, 0.0), warm)
    torch.testing.assert_close(sources(mixture(pull, warm), selected), expected)


def naive_trim(weights: Tensor, values: Tensor, malicious: int) -> Tensor:
    """Trim one value at a time, by sorting positions instead of comparing with bounds."""
    mixed = np.empty(values.shape)
    clients = len(values)
    for column in range(values.shape[1]):
        kept = np.argsort(values[:, column].numpy())[malicious : clients - malicious]
        for c in range(clients):
            own, others = float(weights[c, c]), [j for j in kept.tolist() if j != c]
            weight = sum(float(weights[c, j]) for j in others)
            mean = sum(float(weights[c, j] * values[j, column]) for j in others)
            mine = float(values[c, column])
            mixed[c, column] = own * mine + (1 - own) * mean / weight if weight else mine
    return torch.from_numpy(mixed)


@pytest.mark.parametrize(("clients", "malicious"), [(3, 1), (5, 1), (5, 2), (6, 2), (70, 20)])
def test_trimming_matches_the_formula(clients: int, malicious: int) -> None:
    weights, values = weights_of(clients), draw(clients, 41)
    found = Trimmer(weights, malicious)(values)
    expected = naive_trim(weights, values, malicious)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-7)
    assert not torch.allclose(found, Mixer(weights)(values), atol=1e-3)


def test_with_equal_weights_it_is_the_trimmed_mean_and_the_median() -> None:
    # Who is trimmed itself takes 1/5 of its own and 4/5 of the mean of the three that are left;
    # who is not, of the other two.
    values = torch.tensor([[1.0], [2], [3], [7], [100]])
    weights = torch.full((5, 5), 0.2, dtype=torch.float64)
    found = Trimmer(weights, 1)(values).flatten().tolist()
    assert found == pytest.approx([0.2 + 3.2, 0.4 + 4, 0.6 + 3.6, 1.4 + 2, 20 + 3.2])
    # f = 2 leaves the median alone; the client that has it keeps it.
    found = Trimmer(weights, 2)(values).flatten().tolist()
    assert found == pytest.approx([0.2 + 2.4, 0.4 + 2.4, 3, 1.4 + 2.4, 20 + 2.4])


@settings(max_examples=60)
@given(
    clients=st.integers(3, 9), seed=st.integers(0, 10**6), scale=st.sampled_from([1e-6, 1.0, 1e30])
)
def test_what_is_given_lies_between_honest_values(clients: int, seed: int, scale: float) -> None:
    malicious = (clients - 1) // 2
    values, weights = draw(clients, 6, seed=seed), weights_of(clients, seed)
    values[:malicious] = scale * draw(malicious, 6, seed=seed + 1)
    mixed = Trimmer(weights, malicious)(values)[malicious:]
    honest = values[malicious:]
    assert (mixed <= honest.max(dim=0).values + 1e-6).all()
    assert (mixed >= honest.min(dim=0).values - 1e-6).all()


@pytest.mark.parametrize("clients", [1, 5, 90])
def test_trimming_nothing_is_the_published_mixture_bit_for_bit(clients: int) -> None:
    weights, values = weights_of(clients), draw(clients, 3, 11)
    assert_same_bits(Trimmer(weights, 0)(values), Mixer(weights)(values))


@pytest.mark.parametrize("clients", [5, 90])
def test_trimming_keeps_what_needs_no_change(clients: int) -> None:
    weights = weights_of(clients)
    agreed = draw(1, 30).repeat(clients, 1)
    assert_same_bits(Trimmer(weights, 2)(agreed), agreed)
    weights[0] = 0
    weights[0, 0] = 1
    values = draw(clients, 30)
    values[0, 0], values[0, 1] = -0.0, 1e-45
    mixed = Trimmer(weights, 2)(values)
    assert_same_bits(mixed[0], values[0])
    assert (mixed[1:] != values[1:]).any(dim=1).all()


@pytest.mark.parametrize("clients", [5, 90])
def test_trimming_only_follows_the_order_of_clients(clients: int) -> None:
    weights, values = weights_of(clients), draw(clients, 25)
    order = torch.randperm(clients, generator=torch.Generator().manual_seed(0))
    straight = Trimmer(weights, 2)(values)
    turned = Trimmer(weights[order][:, order], 2)(values[order])
    torch.testing.assert_close(turned, straight[order], rtol=1e-6, atol=1e-9)


def test_trimming_in_blocks_is_trimming_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, values = weights_of(5), draw(5, 4, 10)
    whole = Trimmer(weights, 1)(values)
    monkeypatch.setattr(import_module("fellrec.balance.robust"), "_TRIMMED_ELEMENTS", 35)
    assert_same_bits(Trimmer(weights, 1)(values), whole)
    assert Trimmer(weights, 1)(draw(5)).shape == (5,)


def test_refusals() -> None:
    with pytest.raises(ModelError, match="finite"):
        excess(torch.tensor([[1.0], [torch.nan], [1.0]]))
    with pytest.raises(ModelError, match="clients, kinds"):
        excess(torch.ones(3))
    with pytest.raises(ConfigError, match="needs 5 clients, got 4"):
        Trimmer(weights_of(4), 2)
    with pytest.raises(ModelError, match="do not fit"):
        Trimmer(weights_of(5), 1)(draw(4, 2))
    broken = draw(5, 3)
    broken[2, 1] = torch.nan
    with pytest.raises(ModelError, match="NaN or infinity"):
        Trimmer(weights_of(5), 1)(broken)
