"""M2 against worked values and at the ends of its range."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fellrec.balance import heating
from fellrec.errors import ConfigError

finite = st.floats(allow_nan=False, allow_infinity=False)


@pytest.mark.parametrize(
    ("t", "expected"),
    # Equal losses over 5 clients: L = 1/5, w = tanh(0.7 * 5^t) = tanh(0.7), tanh(3.5), tanh(17.5).
    [(0, 0.6043677771), (1, 0.9981778976), (2, 1.0)],
)
def test_paper_heating_ends_within_rounds(t: int, expected: float) -> None:
    found = heating([2.5] * 5, t, alpha=0.7, beta=1)
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx([expected] * 5, abs=1e-9)


def test_beta_5_passes_095_at_round_3() -> None:
    # tanh(0.7 * 5^(2/5)) = tanh(1.3326) = 0.8699; tanh(0.7 * 5^(3/5)) = tanh(1.8386) = 0.9506.
    warmth = [heating([1.0] * 5, t, alpha=0.7, beta=5)[0].item() for t in (2, 3)]
    assert warmth == pytest.approx([0.8699, 0.9506], abs=1e-4)


def test_unequal_losses_by_hand() -> None:
    # losses ln 1, ln 3 with tau 1: L = (1/4, 3/4). t = 1, beta = 2: w = tanh(0.5 / sqrt(L)).
    found = heating([0.0, math.log(3)], 1, alpha=0.5, beta=2)
    expected = [math.tanh(0.5 / math.sqrt(0.25)), math.tanh(0.5 / math.sqrt(0.75))]
    assert found.tolist() == pytest.approx(expected)
    assert found[0] > found[1]  # the struggling client takes in less


def test_reference_by_hand() -> None:
    # losses differ by 0.05 ln 3, tau 0.05: L = (1/4, 3/4). t = 1, beta = 5: exponent 1.2.
    losses = [1.0, 1.0 + 0.05 * math.log(3)]
    found = heating(losses, 1, alpha=0.1, beta=5, kind="reference")
    assert found.tolist() == pytest.approx([math.tanh(0.1 / p**1.2) for p in (0.25, 0.75)])


def test_reference_with_beta_1_does_not_heat() -> None:
    assert heating([1.0, 5.0], 0, alpha=0.7, beta=1, kind="reference").tolist() == [1.0, 1.0]


@pytest.mark.parametrize("kind", ["paper", "reference"])
def test_alpha_0_is_exactly_0(kind: str) -> None:
    found = heating([1.0, 2.0], 3, alpha=0, beta=1, kind=kind)  # type: ignore[arg-type]  # literals
    assert found.tolist() == [0.0, 0.0]


@given(
    losses=st.lists(finite, min_size=1, max_size=6),
    t=st.integers(0, 10**6),
    alpha=st.floats(0, 1e308),
    beta=st.floats(0, 1e308, exclude_min=True),
    kind=st.sampled_from(["paper", "reference"]),
    tau=st.none() | st.floats(0, 1e308, exclude_min=True),
)
def test_never_leaves_0_to_1(losses, t, alpha, beta, kind, tau) -> None:  # type: ignore[no-untyped-def]  # drawn
    found = heating(losses, t, alpha=alpha, beta=beta, kind=kind, tau=tau)
    assert found.shape == (len(losses),)
    assert torch.isfinite(found).all()
    assert ((found >= 0) & (found <= 1)).all()


@given(
    losses=st.lists(st.floats(0, 20), min_size=2, max_size=6), t=st.integers(0, 50),
    kind=st.sampled_from(["paper", "reference"]),
)  # fmt: skip
def test_grows_with_the_round_and_falls_with_the_loss(losses, t, kind) -> None:  # type: ignore[no-untyped-def]  # drawn
    now = heating(losses, t, alpha=0.7, beta=5, kind=kind)
    later = heating(losses, t + 1, alpha=0.7, beta=5, kind=kind)
    assert (later >= now).all()
    by_loss = now[torch.tensor(losses, dtype=torch.float64).argsort()]
    assert (by_loss.diff() <= 1e-12).all()


def test_losses_at_the_ends_of_the_floats() -> None:
    # Their difference overflows: all of L is the first client's. Round 0 has exponent 0: L^0 = 1.
    losses = [1.7e308, -1.7e308]
    assert heating(losses, 0, alpha=0.7, beta=1).tolist() == pytest.approx([math.tanh(0.7)] * 2)
    assert heating(losses, 10**6, alpha=0.7, beta=1).tolist() == pytest.approx([math.tanh(0.7), 1])


def test_order_of_clients_only_permutes() -> None:
    losses, order = [3.0, 1.0, 2.0, 2.5], [2, 0, 3, 1]
    found = heating([losses[i] for i in order], 1, alpha=0.3, beta=2)
    torch.testing.assert_close(found, heating(losses, 1, alpha=0.3, beta=2)[order])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"losses": [1.0, math.nan]}, "client 1 is nan"),
        ({"losses": [math.inf, 1.0]}, "client 0 is inf"),
        ({"losses": []}, "one for each client"),
        ({"beta": 0.0}, "beta is 0"),
        ({"beta": math.nan}, "beta is nan"),
        ({"alpha": -0.1}, "alpha is -0.1"),
        ({"alpha": math.inf}, "alpha is inf"),
        ({"t": -1}, "round -1"),
        ({"tau": 0.0}, "tau is 0"),
        ({"kind": "oven"}, "choose one of paper, reference"),
    ],
)
def test_refusals(change: dict[str, object], message: str) -> None:
    options: dict[str, object] = {"losses": [1.0, 2.0], "t": 0, "alpha": 0.7, "beta": 1.0}
    with pytest.raises(ConfigError, match=message):
        heating(**(options | change))  # type: ignore[arg-type]  # what is tested
