"""Strategies near FELLRec, over whole small runs: at its limit each is its neighbour."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fellrec.errors import ConfigError
from fellrec.federation.decisions import check_deployable
from fellrec.federation.dryrun import dry_run
from fellrec.federation.runs import RunResult, train
from fellrec.files import read_tensors
from fellrec.serving.rescore import rescore
from fellrec.serving.run import load_run
from fellrec.split.ledger import Ledger
from tests.federation.test_limits import last, same
from tests.toys import SHOPS, Toys

Run = Callable[..., RunResult]


@pytest.fixture(scope="module")
def run(toys: Toys, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Lend a function that trains a strategy, each once; `balance__space` is `balance.space`."""
    done: dict[str, RunResult] = {}
    folder = tmp_path_factory.mktemp("neighbours")

    def trained(**changes: object) -> RunResult:
        overrides = {key.replace("__", "."): value for key, value in changes.items()}
        name = repr(sorted(overrides.items()))
        if name not in done:
            done[name] = train(toys.recipe(overrides), folder / str(len(done)))
        return done[name]

    return trained


def best(path: Path, client: str) -> dict[str, Tensor]:
    here = read_tensors(path / "clients" / client / "best_adapter.safetensors")
    there = read_tensors(path / "server" / client / "best_adapter.safetensors")
    return {**here, **there}


def close(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float) -> bool:
    return all(torch.allclose(one[n], other[n], rtol=0, atol=tolerance) for n in one)


def moved(path: Path, client: str = "north") -> float:
    """Norm of the adapter's B, which starts at 0."""
    model = last(path, client)
    return float(sum(v.square().sum() for n, v in model.items() if "lora_B" in n) ** 0.5)


def test_without_a_pull_fedprox_is_fedavg(run: Run) -> None:
    plain = run(balance__strategy="fedavg")
    loose = run(balance__strategy="fedprox", balance__proximal=0.0)
    tight = run(balance__strategy="fedprox", balance__proximal=10.0)
    for client in SHOPS:
        assert same(last(plain.path, client), last(loose.path, client))
    assert moved(tight.path) < 0.7 * moved(plain.path)


def test_both_sides_of_the_split_are_pulled(run: Run) -> None:
    """With all blocks on the client there is one optimiser; the trunk's must do the same."""
    pulled = {"balance__strategy": "fedprox", "balance__proximal": 1.0, "train__rounds": 1}
    whole = run(model__k_in=2, **pulled)
    split = run(**pulled)
    assert close(last(whole.path, "north"), last(split.path, "north"), 1e-6)


def test_without_a_pull_ditto_is_local_beside_fedavg(toys: Toys, run: Run) -> None:
    own = {"model__item_residual": "local"}
    alone = run(balance__strategy="local", **own)
    mean = run(balance__strategy="fedavg", **own)
    both = run(balance__strategy="ditto", balance__proximal=0.0, **own)
    for client in SHOPS:
        assert same(best(alone.path, client), best(both.path, client))
        assert same(last(mean.path, client), last(both.path, client))  # private tensors, too
    assert alone.summary["overall"] == both.summary["overall"]
    steps = [each.summary["cost"]["steps"] for each in (alone, both)]
    assert steps[1] == 2 * steps[0]
    sent = [Ledger.read(each.path / "ledger.csv").totals(kind="gradient") for each in (mean, both)]
    assert sent[1] == {key: 2 * value for key, value in sent[0].items()}
    assert not rescore(load_run(both.path)).differences  # it is served by the own model
    foreseen = dry_run(toys.recipe({"balance.strategy": "ditto"}))
    assert sum(client["steps"] for client in foreseen["clients"]) == steps[1] / 2  # of a round


def test_ditto_is_pulled_towards_the_common_model(run: Run) -> None:
    """The stronger the pull, the closer to the model that the last round began with."""
    distances = []
    for pull in (0.0, 1.0, 100.0):
        done = run(
            balance__strategy="ditto",
            balance__proximal=pull,
            train__learning_rate=1e-3,
            train__rounds=2,
            evaluation__keep_rounds=2,
        ).path
        state = done / "rounds/2/clients/north/personal_adapter.safetensors"
        own, common = (
            read_tensors(state),
            read_tensors(done / "rounds/1/clients/north/adapter.safetensors"),
        )
        distances.append(sum(float((own[n] - common[n]).square().sum()) for n in own) ** 0.5)
    assert distances[0] > distances[1] > distances[2]


def test_ditto_is_not_deployed(toys: Toys) -> None:
    with pytest.raises(ConfigError, match="in one process"):
        check_deployable(toys.recipe({"balance.strategy": "ditto"}))
    check_deployable(toys.recipe({"balance.strategy": "fedamp"}))


def test_fedamp_at_its_limits(run: Run) -> None:
    free = {"balance__strategy": "fedamp", "balance__proximal": 0.0}
    alone = run(balance__strategy="local")
    itself = run(balance__self_weight=1.0, **free)
    mean = run(balance__strategy="fedavg")
    third = run(balance__self_weight=1 / 3, balance__space="none", **free)
    for client in SHOPS:
        assert same(last(alone.path, client), last(itself.path, client))
        assert close(last(mean.path, client), last(third.path, client), 1e-5)


@pytest.mark.parametrize("weighting", ["uniform", "examples"])
def test_fellrec_without_attention_and_heating_is_fedavg(run: Run, weighting: str) -> None:
    how = {} if weighting == "uniform" else {"balance__weighting": weighting}
    mean = run(balance__strategy="fedavg", **how)
    plain = run(balance__heating="none", balance__space="none", **how)
    for client in SHOPS:
        assert same(last(mean.path, client), last(plain.path, client))


def test_only_the_adapters_may_be_personal(run: Run) -> None:
    """With alpha = 0 each client keeps its own factors; other tensors are the plain mean."""
    short = {"train__rounds": 1}
    alone = run(balance__strategy="local", **short)
    mean = run(balance__strategy="fedavg", **short)
    both = run(balance__alpha=0.0, balance__dense="average", **short)
    for client in SHOPS:
        own, common, found = (last(each.path, client) for each in (alone, mean, both))
        for name, value in found.items():
            assert torch.equal(value, own[name] if ".lora_" in name else common[name])


def test_halves_of_the_adapter_take_turns(toys: Toys, run: Run) -> None:
    """Round 0 trains B and leaves A; round 1 trains A, and B stays what the first mixing gave."""
    turns = {"balance__strategy": "fedavg", "lora__alternate": True, "evaluation__keep_rounds": 3}
    done = run(**turns).path
    alone = run(**{**turns, "balance__strategy": "local", "train__rounds": 1})
    states = [
        {
            **read_tensors(done / f"rounds/{t}/clients/north/adapter.safetensors"),
            **read_tensors(done / f"rounds/{t}/server/north/adapter.safetensors"),
        }
        for t in (1, 2)
    ]
    factors = [name for name in states[0] if ".lora_" in name]
    assert any(
        name in read_tensors(done / "server/north/last_adapter.safetensors") for name in factors
    )
    own = [last(alone.path, client) for client in SHOPS]
    for name in factors:
        if ".lora_A." in name:
            assert torch.equal(states[0][name], own[0][name])  # as at the start
            assert not torch.equal(states[0][name], states[1][name])
            b = name.replace(".lora_A.", ".lora_B.")
            products = torch.stack([each[b].double() @ each[name].double() for each in own])
            mean = states[0][b].double() @ states[0][name].double()
            torch.testing.assert_close(mean, products.mean(dim=0), rtol=1e-5, atol=1e-8)
        else:
            assert states[0][name].any()
            assert torch.equal(states[0][name], states[1][name])
    with pytest.raises(ConfigError, match=r"lora\.alternate"):
        toys.recipe({"lora.alternate": True, "balance.merge": "product"})
