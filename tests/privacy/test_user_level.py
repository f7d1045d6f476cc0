"""Private steps: nobody adds more than the clip, noise is as large as it says, limits are exact."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fellrec.config import RunConfig
from fellrec.errors import ConfigError, RunError, TrainingError
from fellrec.federation.deployment.client_store import ClientStore
from fellrec.federation.runs import train
from fellrec.federation.shares import share_data
from fellrec.federation.store import RunStore
from fellrec.federation.turns import ClientModel, turn
from fellrec.federation.workspace import Workspace
from fellrec.models.recommender import Kind
from fellrec.privacy import Draws, PrivateSum, UserLevel, drawn
from tests.toys import Toys

Users = list[tuple[Tensor, Tensor]]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def stream(seed: int = 0) -> Draws:
    return Draws.by(np.random.default_rng(seed))


def summed(
    users: list[tuple[Tensor, Tensor]], settings: UserLevel, expected: float
) -> list[Tensor]:
    parameters = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2, 2))]
    total = PrivateSum(parameters, settings)
    for gradients in users:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.clone()
        total.add()
        assert all(parameter.grad is None for parameter in parameters)
    total.release(expected, stream())
    found = [parameter.grad for parameter in parameters]
    assert found[0] is not None and found[1] is not None
    return [each for each in found if each is not None]


def test_a_long_gradient_is_scaled_over_all_tensors_and_a_short_one_is_not() -> None:
    """Lengths 5 and 0.5 with a clip of 1: (0.6, 0.8) and as it is; over 4 expected users."""
    first = torch.tensor([3.0, 0, 0]), torch.tensor([[4.0, 0], [0, 0]])
    second = torch.tensor([0, 0.5, 0]), torch.zeros(2, 2)
    one, two = summed([first, second], UserLevel(0.0, 1.0), 4.0)
    assert torch.allclose(one, torch.tensor([0.6, 0.5, 0]) / 4)
    assert torch.allclose(two, torch.tensor([[0.8, 0], [0, 0]]) / 4)


@given(st.integers(0, 2**31), st.floats(0.01, 10), st.floats(0.01, 100))
def test_nobody_moves_the_sum_by_more_than_the_clip(seed: int, clip: float, size: float) -> None:
    rng = seeded(seed)
    users = [
        (size * torch.randn(3, generator=rng), size * torch.randn(2, 2, generator=rng))
        for _ in range(4)
    ]
    settings = UserLevel(0.0, clip)
    with_all, without = summed(users, settings, 1.0), summed(users[:-1], settings, 1.0)
    moved = torch.cat([(a - b).flatten() for a, b in zip(with_all, without, strict=True)])
    assert float(moved.norm()) <= clip * (1 + 1e-4) + 1e-6


def test_noise_is_of_its_size_also_where_nobody_was_drawn() -> None:
    parameter = nn.Parameter(torch.zeros(40_000))
    PrivateSum([parameter], UserLevel(1.5, 2.0)).release(4.0, stream())
    assert parameter.grad is not None
    assert float(parameter.grad.std()) == pytest.approx(1.5 * 2 / 4, rel=0.02)
    assert abs(float(parameter.grad.mean())) < 0.01


def test_each_user_is_drawn_by_itself() -> None:
    """Of 2,000 draws of ten, each is there in about 0.3, and how many vary as a binomial does."""
    rng = stream()
    draws = np.array([np.isin(np.arange(10), drawn(10, 0.3, rng)) for _ in range(2000)])
    assert draws.mean(axis=0).tolist() == pytest.approx([0.3] * 10, abs=0.04)
    assert draws.sum(axis=1).var() == pytest.approx(10 * 0.3 * 0.7, rel=0.1)
    assert drawn(5, 1.0, rng).tolist() == [0, 1, 2, 3, 4]


def one_step(config: RunConfig, users: int) -> dict[str, Tensor]:
    """Let one client make one step on users with histories of one length."""
    shares = share_data(config)
    workspace = Workspace(config, shares.dataset)
    lengths = shares.split.train.lengths()
    alike = np.flatnonzero(lengths == np.bincount(lengths).argmax())[:users]
    client = workspace.client("alone", shares.split.take(alike))
    start = workspace.start()
    model = ClientModel(start.exchanged, workspace.initial(Kind.PRIVATE), start.trunk)
    with turn(workspace, client, 0, model) as it:
        report = client.train(0)
    assert report.steps == 1
    return {**it.finished().exchanged}


def test_without_noise_and_clipping_a_step_is_the_usual_one(toys: Toys) -> None:
    """All users are drawn, and each has as many targets: means of means are means."""
    common: dict[str, object] = {
        "train.batch_size": 4,
        "train.local_epochs": 1,
        "train.clip": 0.0,
        "train.learning_rate": 1e-3,
        "model.dropout": 0.0,
        "lora.dropout": 0.0,
    }
    usual = one_step(toys.recipe(common), 4)
    # The least noise a recipe may ask for, over a clip that makes it nothing beside any gradient.
    faint = {"privacy.user_noise": 0.3, "privacy.user_clip": 1e-30}
    nothing = one_step(toys.recipe({**common, **faint}), 4)
    private = one_step(_loose(toys.recipe({**common, **faint})), 4)
    for name, tensor in usual.items():
        assert torch.allclose(tensor, private[name], atol=2e-5)
    assert any(not torch.allclose(usual[name], nothing[name], atol=2e-5) for name in usual)


def _loose(config: RunConfig) -> RunConfig:
    """No noise, and a clip that nothing reaches: what no recipe may ask for."""
    privacy = config.privacy.model_copy(update={"user_noise": 1e-30, "user_clip": 1e20})
    return config.model_copy(update={"privacy": privacy})


PRIVATE: dict[str, object] = {
    "privacy.user_noise": 1.0,
    "train.batch_size": 3,
    "train.rounds": 4,
    "train.local_epochs": 1,
}


def test_a_client_whose_budget_is_spent_stops_and_the_run_ends(toys: Toys, tmp_path: Path) -> None:
    every = train(toys.recipe(PRIVATE), tmp_path / "every")
    spent = every.summary["privacy"]["uploads"]["epsilon"]
    assert every.summary["rounds"] == 4 and len(spent) == 3
    after_two = train(toys.recipe({**PRIVATE, "train.rounds": 2}), tmp_path / "two")
    ((name, least), *_) = after_two.summary["privacy"]["uploads"]["epsilon"].items()
    assert least < spent[name]
    budget = 1.001 * max(after_two.summary["privacy"]["uploads"]["epsilon"].values())
    assert budget < min(spent.values())
    done = train(toys.recipe({**PRIVATE, "privacy.epsilon": budget}), tmp_path / "done")
    told = done.summary["privacy"]["uploads"]
    assert 2 <= done.summary["rounds"] < 4 and told["budget"] == budget
    assert all(0 < value <= budget for value in told["epsilon"].values())
    state = RunStore(done.path).state()
    assert all(standing.stopped for standing in state.standings.values())
    assert state.contributed.keys() == told["epsilon"].keys()


def test_a_budget_that_covers_no_round_says_so(toys: Toys, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"does not cover round 0.*raise privacy.epsilon"):
        train(toys.recipe({**PRIVATE, "privacy.epsilon": 0.01}), tmp_path / "run")


def test_the_trunk_rests_and_the_client_learns(toys: Toys, tmp_path: Path) -> None:
    run = train(toys.recipe({**PRIVATE, "train.rounds": 1}), tmp_path / "run").path
    store = RunStore(run)
    config = toys.recipe()
    workspace = Workspace(config, share_data(config).dataset)
    start, own = workspace.initial_trunk(), workspace.initial(Kind.LORA)
    for client in ("north", "south", "east"):
        trunk = store.tensors(1, "server", client, "adapter")
        assert trunk is not None and trunk.keys() == start.keys()
        assert all(torch.equal(trunk[name], start[name]) for name in start)
        adapter = store.tensors(1, "clients", client, "adapter")
        assert adapter is not None
        assert not any(torch.equal(adapter[name], own[name]) for name in own)


def test_what_a_client_may_have_sent_is_counted_before_it_trains(tmp_path: Path) -> None:
    store = ClientStore(tmp_path / "run", "north")
    assert [store.contribute() for _ in range(3)] == [0, 1, 2]
    (tmp_path / "run" / "contributed.json").write_text("-1")
    with pytest.raises(RunError, match="not known any more"):
        store.contribute()


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ({"privacy.epsilon": 1.0}, "privacy.user_noise"),
        ({"privacy.user_noise": 0.01}, "next to nothing"),
        ({"privacy.user_noise": 1.0, "train.windows": 2}, "train.windows = 1"),
        ({"privacy.user_noise": 1.0, "train.samples": 9}, "train.samples = 0"),
        ({"privacy.delta": 0.0}, "privacy.delta"),
    ],
)
def test_what_makes_no_sense_is_refused(
    toys: Toys, overrides: dict[str, object], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        toys.recipe(overrides)
