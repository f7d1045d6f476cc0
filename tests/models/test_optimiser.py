"""AdamW on both sides of the cut, clipped by the norm over all stages."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from fellrec.errors import RunError
from fellrec.models.optimiser import Optimiser, OptimiserSettings, without

SETTINGS = OptimiserSettings(learning_rate=0.02, weight_decay=0.1, clip=1.0)


def parameters(seed: int = 0) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a": (3, 4), "b": (5,), "c": (2, 2)}
    return {n: nn.Parameter(torch.randn(s, generator=generator)) for n, s in shapes.items()}


def give_gradients(own: dict[str, nn.Parameter], step: int, scale: float = 1.0) -> None:
    for number, parameter in enumerate(own.values()):
        generator = torch.Generator().manual_seed(100 * step + number)
        parameter.grad = scale * torch.randn(parameter.shape, generator=generator)


def values(own: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in own.items()}


@pytest.mark.parametrize(("scale", "clip"), [(5.0, 0.3), (0.01, 1.0), (5.0, 0.0)])
def test_two_sides_that_exchange_norms_are_one_adamw(scale: float, clip: float) -> None:
    settings = OptimiserSettings(0.02, 0.1, clip)
    whole = parameters()
    split = parameters()
    reference = torch.optim.AdamW(whole.values(), lr=0.02, weight_decay=0.1)
    client = Optimiser({"a": split["a"]}, settings)
    server = Optimiser({name: split[name] for name in ("b", "c")}, settings)
    for step in range(5):
        factor = scale * (step + 1)  # AdamW forgets a constant factor; clipping shows in the change
        give_gradients(whole, step, factor)
        give_gradients(split, step, factor)
        if clip:
            norm = nn.utils.clip_grad_norm_(whole.values(), clip)
            assert (float(norm) > clip) is (scale > 1)
        reference.step()
        mine, theirs = client.squared_norm(), server.squared_norm()
        client.step(mine + theirs)
        server.step(mine + theirs)
        for name, parameter in whole.items():
            torch.testing.assert_close(split[name], parameter, rtol=0, atol=1e-6)
            assert split[name].grad is None


def test_squared_norm() -> None:
    # 3² + 4² = 25 over one tensor, 2² = 4 over another; one without a gradient counts nothing.
    own = {
        "a": nn.Parameter(torch.zeros(2)),
        "b": nn.Parameter(torch.zeros(1)),
        "c": nn.Parameter(torch.zeros(1)),
    }
    optimiser = Optimiser(own, SETTINGS)
    assert optimiser.squared_norm() == 0.0
    own["a"].grad, own["b"].grad = torch.tensor([3.0, -4.0]), torch.tensor([2.0])
    assert optimiser.squared_norm() == pytest.approx(29.0)


def test_clipping_scales_by_the_norm_over_all_stages() -> None:
    # Own norm 3, other side's 4: together 5. Clipped to 0.5 the gradient is 3/10, and AdamW's first
    # moment is a tenth of it. (AdamW's steps alone forget any constant factor.)
    own = {"a": nn.Parameter(torch.zeros(1))}
    optimiser = Optimiser(own, OptimiserSettings(clip=0.5))
    own["a"].grad = torch.tensor([3.0])
    optimiser.step(9.0 + 16.0)
    assert float(optimiser.state()["exp_avg/a"]) == pytest.approx(0.03)


def test_state_and_load_resume_exactly() -> None:
    undisturbed, first = parameters(), parameters()
    one, two = Optimiser(undisturbed, SETTINGS), Optimiser(first, SETTINGS)
    for step in range(3):
        for own, optimiser in ((undisturbed, one), (first, two)):
            give_gradients(own, step)
            optimiser.step(optimiser.squared_norm())
    resumed = {name: nn.Parameter(p.detach().clone()) for name, p in first.items()}
    three = Optimiser(resumed, SETTINGS)
    saved = two.state()
    three.load(saved)
    kept = {key: value.clone() for key, value in saved.items()}
    for step in range(3, 6):
        for own, optimiser in ((undisturbed, one), (resumed, three)):
            give_gradients(own, step)
            optimiser.step(optimiser.squared_norm())
    for name, parameter in undisturbed.items():
        assert torch.equal(resumed[name], parameter)
    assert all(torch.equal(saved[key], value) for key, value in kept.items())  # not written to


def test_without_resets_what_it_names() -> None:
    own = parameters()
    optimiser = Optimiser(own, SETTINGS)
    give_gradients(own, 0)
    optimiser.step(1.0)
    state = optimiser.state()
    assert {key.partition("/")[2] for key in state} == {"a", "b", "c"}
    left = without(state, ["a"])
    assert left.keys() == {key for key in state if not key.endswith("/a")}
    before = values(own)
    optimiser.load(left)
    for parameter in own.values():
        parameter.grad = torch.full_like(parameter, 0.1)
    optimiser.step(0.0)
    # A first step of AdamW moves by the learning rate, whatever the gradient's size, after
    # decaying by learning rate x weight decay; the others go by their moments.
    expected = before["a"] * (1 - 0.02 * 0.1) - 0.02
    torch.testing.assert_close(own["a"].detach(), expected, rtol=0, atol=1e-6)
    assert float(optimiser.state()["step/a"]) == 1
    assert float(optimiser.state()["step/b"]) == 2


def test_load_forgets_what_was_there() -> None:
    own = parameters()
    optimiser = Optimiser(own, SETTINGS)
    give_gradients(own, 0)
    optimiser.step(1.0)
    optimiser.load({})
    assert optimiser.state() == {}


def test_load_refuses_what_does_not_belong() -> None:
    optimiser = Optimiser(parameters(), SETTINGS)
    for key, tensor in {
        "exp_avg/z": torch.zeros(1),
        "momentum/a": torch.zeros(3, 4),
        "exp_avg/a": torch.zeros(4, 3),
    }.items():
        with pytest.raises(RunError):
            optimiser.load({key: tensor})


def test_what_is_frozen_is_left_alone() -> None:
    own = parameters()
    own["a"].requires_grad_(False)
    before = own["a"].clone()
    optimiser = Optimiser(own, SETTINGS)
    give_gradients({n: p for n, p in own.items() if n != "a"}, 0)
    optimiser.step(1.0)
    assert torch.equal(own["a"], before)
    assert not any(key.endswith("/a") for key in optimiser.state())


def test_a_side_with_nothing_to_train() -> None:
    optimiser = Optimiser({}, SETTINGS)
    assert optimiser.squared_norm() == 0.0
    optimiser.step(math.pi)
    optimiser.load({})
    assert optimiser.state() == {}


def test_the_pull_golden() -> None:
    # μ (θ - anchor): 0.5 · (3 - 1) = 1 and 0.5 · (-1 - 0) = -0.5, on top of a gradient of 0.25.
    own = {"a": nn.Parameter(torch.tensor([3.0, -1.0])), "b": nn.Parameter(torch.tensor([7.0]))}
    anchors = {"a": torch.tensor([1.0, 0.0])}
    optimiser = Optimiser(own, OptimiserSettings(proximal=0.5), anchors)
    for parameter in own.values():
        parameter.grad = torch.full_like(parameter, 0.25)
    optimiser.pull()
    assert own["a"].grad is not None and own["b"].grad is not None
    assert own["a"].grad.tolist() == [1.25, -0.25]
    assert own["b"].grad.tolist() == [0.25]  # without an anchor


def test_anchors_are_copies() -> None:
    """The parameters themselves may be given: where they begin is what pulls."""
    own = {"a": nn.Parameter(torch.tensor([2.0]))}
    optimiser = Optimiser(own, OptimiserSettings(0.1, 0.0, proximal=1.0), own)
    own["a"].grad = torch.zeros(1)
    optimiser.pull()
    assert own["a"].grad.tolist() == [0.0]
    with torch.no_grad():
        own["a"].add_(3)
    optimiser.pull()
    assert own["a"].grad.tolist() == [3.0]


def test_moments_of_resting_parameters_are_kept() -> None:
    own = {"a": nn.Parameter(torch.ones(2)), "b": nn.Parameter(torch.ones(3))}
    first = Optimiser(own, SETTINGS)
    for parameter in own.values():
        parameter.grad = torch.ones_like(parameter)
    first.step(first.squared_norm())
    state = first.state()
    own["a"].requires_grad_(False)
    second = Optimiser(own, SETTINGS)
    second.load(state)
    own["b"].grad = torch.ones(3)
    second.step(second.squared_norm())
    after = second.state()
    assert after.keys() == state.keys()
    for key, value in after.items():
        assert torch.equal(value, state[key]) == key.endswith("/a")
