"""Strategies are M3 with something held fixed; their limits meet exactly."""

from __future__ import annotations

import pytest
import torch

from fellrec.balance import (
    FedAvg,
    FellRec,
    Local,
    RoundReport,
    combine,
    heating,
    make_strategy,
    mixture,
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
    assert found.tolist() == [pytest.approx([0.1, 0.2, 0.3, 0.4])] * 4
    none = RoundReport(0, torch.ones(2), torch.zeros(2), torch.ones(2, 2))
    with pytest.raises(ConfigError, match="can't weigh"):
        FedAvg(weighting="examples").mixture(none)


@pytest.mark.parametrize("strategy", [Local(), FedAvg(), FedAvg("examples"), FellRec()])
def test_one_client_gets_its_own_back(strategy: Local | FedAvg | FellRec) -> None:
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


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("fedsgd", {}, "choose one of fellrec, fedavg, local"),
        ("fellrec", {"gamma": 1}, "no option 'gamma': it takes alpha, beta"),
        ("local", {"alpha": 1}, "it takes no options"),
        ("fellrec", {"alpha": -1.0}, "alpha is -1"),
        ("fellrec", {"beta": 0.0}, "beta is 0"),
        ("fellrec", {"space": "angles"}, "unknown space"),
        ("fellrec", {"merge": "sum"}, "unknown merge"),
        ("fellrec", {"heating": "oven"}, "unknown heating"),
        ("fedavg", {"weighting": "users"}, "unknown weighting"),
    ],
)
def test_refusals(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_strategy(name, **options)
