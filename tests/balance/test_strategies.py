"""Strategies are M3 with something held fixed; their limits meet exactly."""

from __future__ import annotations

import math

import pytest
import torch

from fellrec.balance import (
    Ditto,
    FedAmp,
    FedAvg,
    FedProx,
    FellRec,
    Local,
    RoundReport,
    Strategy,
    combine,
    heating,
    make_strategy,
    mixture,
    sharpen,
)
from fellrec.errors import ConfigError


def make_report(t: int = 0, clients: int = 4) -> RoundReport:
    draw = torch.Generator().manual_seed(0)
    square = torch.rand(clients, clients, generator=draw, dtype=torch.float64)
    return RoundReport(
        t=t,
        losses=torch.linspace(1, 2, clients, dtype=torch.float64),
        examples=torch.arange(1, clients + 1),
        attention=((square + square.T) / 2).fill_diagonal_(1),
    )


def test_fellrec_is_m1_m2_m3() -> None:
    report = make_report(t=2)
    found = FellRec(alpha=0.4, beta=3, heating="reference", tau=0.5).mixture(report)
    warmth = heating(report.losses, 2, alpha=0.4, beta=3, kind="reference", tau=0.5)
    assert torch.equal(found.warmth, warmth)
    assert torch.equal(found.weights, mixture(report.attention, warmth))
    assert torch.equal(found.attention, report.attention)
    assert found.spread.active


def test_local_is_fellrec_without_heat() -> None:
    report = make_report()
    local = Local().mixture(report)
    assert torch.equal(local.weights, torch.eye(4, dtype=torch.float64))
    assert torch.equal(FellRec(alpha=0).mixture(report).weights, local.weights)


def test_fedavg_is_fellrec_hot_and_uniform() -> None:
    report = make_report(t=50)
    uniform = RoundReport(report.t, report.losses, report.examples, torch.ones(4, 4))
    average, hot = FedAvg().mixture(report), FellRec().mixture(uniform)
    values = torch.randn(4, 100, generator=torch.Generator().manual_seed(0))
    assert torch.equal(combine(average.weights, values), combine(hot.weights, values))
    assert average.weights.tolist() == [[0.25] * 4] * 4
    assert torch.equal(average.attention, report.attention)  # logged, not used


def test_fedavg_by_examples() -> None:
    # Examples 1, 2, 3, 4: shares 0.1, 0.2, 0.3, 0.4 for everyone.
    found = FedAvg(weighting="examples").mixture(make_report()).weights
    assert found.tolist() == [[0.1, 0.2, 0.3, 0.4]] * 4
    none = RoundReport(0, torch.ones(2), torch.zeros(2), torch.ones(2, 2))
    with pytest.raises(ConfigError, match="can't weigh"):
        FedAvg(weighting="examples").mixture(none)


def test_fellrec_by_examples() -> None:
    report = make_report()
    warmth = heating(report.losses, 0, alpha=0.7, beta=1)
    found = FellRec(weighting="examples", dense="average").mixture(report)
    assert torch.equal(found.weights, mixture(report.attention, warmth, report.examples))
    average = FedAvg("examples").mixture(report).weights
    assert found.dense is not None and torch.equal(found.dense, average)
    hot = FellRec(weighting="examples", heating="none", space=None).mixture(report)
    assert torch.equal(hot.weights, average)
    apart = FellRec(weighting="examples", alpha=0).mixture(report)
    assert torch.equal(apart.weights, Local().mixture(report).weights)


def test_heating_alone_and_attention_alone() -> None:
    report = make_report()
    ones = torch.ones(4, 4, dtype=torch.float64)
    heated = FellRec(space=None).mixture(report)
    warmth = heating(report.losses, 0, alpha=0.7, beta=1)
    assert torch.equal(heated.weights, mixture(ones, warmth))
    attentive = FellRec(heating="none").mixture(report)
    assert torch.equal(attentive.weights, mixture(report.attention, torch.ones(4)))
    assert torch.equal(FellRec(space=None, heating="none").mixture(report).weights, ones / 4)


def test_sharpened_attention_golden() -> None:
    # Cosines of client 0 to the others: 0.5 and 0.1, so at temperature 0.2 s = e^0 and e^-2; those
    # of client 1: 0.5 and -0.3, e^0 and e^-4; of client 2: 0.1 and -0.3, e^0 and e^-2.
    cosines = torch.tensor([[1, 0.5, 0.1], [0.5, 1, -0.3], [0.1, -0.3, 1]], dtype=torch.float64)
    report = RoundReport(0, torch.ones(3), torch.ones(3), (cosines + 1) / 2)
    found = FellRec(temperature=0.2, heating="none").mixture(report)
    one, two, four = 1.0, math.exp(-2), math.exp(-4)
    wanted = torch.tensor([[1, one, two], [one, 1, four], [one, two, 1]], dtype=torch.float64)
    torch.testing.assert_close(found.attention, wanted)
    torch.testing.assert_close(found.weights, wanted / wanted.sum(dim=1, keepdim=True))
    assert found.spread.active
    flat = sharpen(report.attention, 1e12)
    torch.testing.assert_close(flat, torch.ones(3, 3, dtype=torch.float64))
    nearest = sharpen(report.attention, 1e-6)
    assert nearest.round().tolist() == [[1, 1, 0], [1, 1, 0], [1, 0, 1]]
    assert sharpen(torch.ones(1, 1), 0.1).tolist() == [[1.0]]
    for wrong in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ConfigError, match="temperature"):
            sharpen(report.attention, wrong)


def test_fedamp_weights_golden() -> None:
    # As above: 0.4 of itself, and 0.6 by 1 : e^-2, that is 0.6 / (1 + e^-2) and the rest.
    cosines = torch.tensor([[1, 0.5, 0.1], [0.5, 1, -0.3], [0.1, -0.3, 1]], dtype=torch.float64)
    report = RoundReport(0, torch.ones(3), torch.ones(3), (cosines + 1) / 2)
    found = FedAmp(self_weight=0.4, temperature=0.2).mixture(report).weights
    first = 0.6 / (1 + math.exp(-2))
    assert found[0].tolist() == pytest.approx([0.4, first, 0.6 - first])
    assert found.sum(dim=1).tolist() == pytest.approx([1, 1, 1])
    assert FedAmp(self_weight=1.0).mixture(report).weights.tolist() == torch.eye(3).tolist()


def test_dense_tensors_may_be_averaged() -> None:
    report = make_report()
    assert FellRec().mixture(report).dense is None
    found = FellRec(alpha=0, dense="average").mixture(report)
    assert found.weights.tolist() == torch.eye(4).tolist()
    assert found.dense is not None and found.dense.tolist() == [[0.25] * 4] * 4


@pytest.mark.parametrize(
    "strategy",
    [Local(), FedAvg(), FedAvg("examples"), FedAmp(), FellRec(), FellRec(temperature=0.1)],
)
def test_one_client_gets_its_own_back(strategy: Strategy) -> None:
    found = strategy.mixture(make_report(clients=1))
    assert found.weights.tolist() == [[1.0]]
    assert not found.spread.active


def test_what_a_strategy_needs() -> None:
    assert (Local().space, Local().merge, Local().exchanges) == (None, "factors", False)
    assert (FedAvg().space, FedAvg().merge, FedAvg().exchanges) == (None, "factors", True)
    fellrec = FellRec(space="update", merge="product")
    assert (fellrec.space, fellrec.merge, fellrec.exchanges) == ("update", "product", True)


def test_make_strategy() -> None:
    assert make_strategy("fellrec", alpha=0.5, beta=5.0) == FellRec(alpha=0.5, beta=5.0)
    assert make_strategy("fedavg", weighting="examples") == FedAvg("examples")
    assert make_strategy("local") == Local()
    assert make_strategy("fedprox", weighting="examples") == FedProx("examples")
    assert type(make_strategy("ditto")) is Ditto


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("fedsgd", {}, "choose one of fellrec, fedavg, fedprox, ditto"),
        ("fellrec", {"gamma": 1}, "no option 'gamma': it takes alpha, beta"),
        ("local", {"alpha": 1}, "it takes no options"),
        ("fellrec", {"alpha": -1.0}, "alpha is -1"),
        ("fellrec", {"beta": 0.0}, "beta is 0"),
        ("fellrec", {"space": "angles"}, "unknown space"),
        ("fellrec", {"merge": "sum"}, "unknown merge"),
        ("fellrec", {"heating": "oven"}, "unknown heating"),
        ("fellrec", {"dense": "none"}, "unknown dense"),
        ("fellrec", {"weighting": "users"}, "unknown weighting"),
        ("fedavg", {"weighting": "users"}, "unknown weighting"),
        ("fedamp", {"self_weight": 1.5}, "self_weight is 1.5"),
        ("fedamp", {"space": "angles"}, "unknown space"),
    ],
)
def test_refusals(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_strategy(name, **options)
