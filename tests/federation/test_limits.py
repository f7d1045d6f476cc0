"""Strategies at their limits, over whole small runs (METHOD section 1: limits, bit for bit)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from fellrec.errors import ConfigError
from fellrec.federation.observer import Observer
from fellrec.federation.runs import train
from fellrec.federation.store import RunStore
from fellrec.files import read_tensors
from fellrec.split.ledger import Ledger
from tests.toys import SHOPS, Toys

OWN = {"adapter": "clients", "private": "clients", "trunk": "server"}


def last(run: Path, client: str) -> dict[str, Tensor]:
    """Return all that a client's model trained, as the last round left it."""
    here = read_tensors(run / "clients" / client / "last_adapter.safetensors")
    private = read_tensors(run / "clients" / client / "last_private.safetensors")
    there = read_tensors(run / "server" / client / "last_adapter.safetensors")
    assert not here.keys() & there.keys()
    return {**here, **private, **there}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


@pytest.mark.parametrize("residual", ["shared", "local", "none"])
def test_alpha_0_is_local(toys: Toys, runs: Path, residual: str) -> None:
    shared = {"model.item_residual": residual}
    alone = train(toys.recipe({**shared, "balance.strategy": "local"}), runs / "local")
    assert not same(last(alone.path, "north"), last(alone.path, "south"))
    for merge in ("factors", "product"):
        cold = toys.recipe({**shared, "balance.alpha": 0.0, "balance.merge": merge})
        mixed = train(cold, runs / merge)
        for client in SHOPS:
            assert same(last(alone.path, client), last(mixed.path, client))
        assert alone.summary["overall"] == mixed.summary["overall"]


@pytest.mark.parametrize("weighting", ["uniform", "examples"])
def test_fedavg_gives_all_the_same(toys: Toys, runs: Path, weighting: str) -> None:
    overrides = {"balance.strategy": "fedavg", "balance.weighting": weighting}
    done = train(toys.recipe(overrides), runs / "run")
    first = last(done.path, "north")
    for client in SHOPS[1:]:
        assert same(first, last(done.path, client))
    start = train(toys.recipe({**overrides, "train.rounds": 1}), runs / "short")
    assert not same(first, last(start.path, "north"))


def test_fedavg_averages_what_local_training_gave(toys: Toys, runs: Path) -> None:
    """One round: the mean of the clients' local results, computed here in another way."""
    short = {"train.rounds": 1}
    alone = train(toys.recipe({**short, "balance.strategy": "local"}), runs / "local")
    mean = train(toys.recipe({**short, "balance.strategy": "fedavg"}), runs / "fedavg")
    own = [last(alone.path, client) for client in SHOPS]
    for name, value in last(mean.path, "east").items():
        wanted = torch.stack([each[name].double() for each in own]).mean(dim=0)
        torch.testing.assert_close(value.double(), wanted, rtol=1e-6, atol=1e-9)


def test_fellrec_keeps_clients_apart_and_private_tensors_at_home(toys: Toys, runs: Path) -> None:
    run = train(toys.recipe({"model.item_residual": "local"}), runs / "run").path
    first, second = last(run, "north"), last(run, "south")
    assert not any(torch.equal(first[n], second[n]) for n in first if "lora_B" in n)
    assert not torch.equal(first["item_residual"], second["item_residual"])


@pytest.mark.parametrize("strategy", ["fellrec", "fedavg"])
@pytest.mark.parametrize("merge", ["factors", "product"])
def test_one_client_is_local(toys: Toys, runs: Path, strategy: str, merge: str) -> None:
    one = {"clients.partition": "random", "clients.count": 1}
    alone = train(toys.recipe({**one, "balance.strategy": "local"}), runs / "local")
    other = {**one, "balance.strategy": strategy, "balance.merge": merge}
    federated = train(toys.recipe(other), runs / "federated")
    assert same(last(alone.path, "c0"), last(federated.path, "c0"))


def test_who_is_not_drawn_keeps_every_file(toys: Toys, runs: Path) -> None:
    drawn: list[set[str]] = []

    class Watch(Observer):
        def round_begins(self, round: int, rounds: int, names: object) -> None:
            drawn.append(set(names))  # type: ignore[call-overload]  # a sequence of names

    overrides = {"clients.per_round": 2, "train.rounds": 4, "evaluation.keep_rounds": 5}
    run = train(toys.recipe(overrides), runs / "run", observer=Watch()).path
    assert len(drawn) == 4 and all(len(names) == 2 for names in drawn)
    kept = 0
    for t in range(1, 4):
        for client in SHOPS:
            for side in ("clients", "server"):
                old, new = (run / "rounds" / str(n) / side / client for n in (t, t + 1))
                files = sorted(path.name for path in old.glob("*"))
                if client in drawn[t] or not files:
                    continue
                assert sorted(path.name for path in new.iterdir()) == files
                for file in files:
                    assert (old / file).samefile(new / file)
                    kept += 1
    assert kept


def test_who_is_never_drawn_has_the_common_start(toys: Toys, runs: Path) -> None:
    done = train(toys.recipe({"clients.per_round": 1, "train.rounds": 1}), runs / "run")
    standings = RunStore(done.path).state().standings
    absent = [client for client in SHOPS if client not in standings]
    assert len(absent) == 2
    for client in absent:
        start = last(done.path, client)
        assert all(not value.any() for name, value in start.items() if "lora_B" in name)
        (entry,) = [c for c in done.summary["clients"] if c["id"] == client]
        assert entry["valid"] is None and entry["best_round"] == 0


class Spy(Observer):
    """Copies the coordinator's file of updates while it is there."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.updates: list[bytes] = []
        self.private: list[bytes] = []

    def scoring(self, client: str, what: str) -> None:
        for file in self.run.glob("rounds/*.partial/updates.f32"):
            self.updates.append(file.read_bytes())
        for file in self.run.glob("rounds/*.partial/clients/*/private.safetensors"):
            for tensor in read_tensors(file).values():
                self.private += [row.numpy().tobytes() for row in tensor if row.count_nonzero()]


def test_private_tensors_never_leave(toys: Toys, runs: Path) -> None:
    spy = Spy(runs / "run")
    done = train(toys.recipe({"model.item_residual": "local"}), runs / "run", observer=spy)
    assert len(spy.private) > 50 and spy.updates
    exchanged = read_tensors(done.path / "clients/north/last_adapter.safetensors")
    trunk = read_tensors(done.path / "server/north/last_adapter.safetensors")
    assert "item_residual" not in exchanged.keys() | trunk.keys()
    size = sum(tensor.numel() for tensor in (*exchanged.values(), *trunk.values()))
    held_by_server = [file.read_bytes() for file in (done.path / "server").rglob("*.safetensors")]
    for update in spy.updates:
        assert len(update) == 4 * size * len(SHOPS)
    for secret in set(spy.private):
        assert not any(secret in seen for seen in {*spy.updates, *held_by_server})
    dense = Ledger.read(done.path / "ledger.csv").totals(kind="dense", client="north")
    # 24 x 32 values of the projection and the scale, in two rounds
    assert dense["bytes_up"] == dense["bytes_down"] == 2 * 4 * (24 * 32 + 1)


def test_a_shared_residual_travels(toys: Toys, runs: Path) -> None:
    done = train(toys.recipe({"train.rounds": 1}), runs / "run")
    dense = Ledger.read(done.path / "ledger.csv").totals(kind="dense", client="north")
    assert dense["bytes_up"] == 4 * (24 * 32 + 1 + 36 * 32)


def test_frozen_a_is_neither_sent_nor_mixed(toys: Toys, runs: Path) -> None:
    both = train(toys.recipe({"train.rounds": 1}), runs / "both")
    frozen = {"train.rounds": 1, "lora.freeze_a": True}
    half = train(toys.recipe(frozen), runs / "half")
    model = last(half.path, "north")
    factors = {name: value for name, value in model.items() if ".lora_" in name}
    for client in SHOPS[1:]:
        other = last(half.path, client)
        assert all(torch.equal(factors[n], other[n]) for n in factors if ".lora_A." in n)
    on_client = read_tensors(half.path / "clients/north/last_adapter.safetensors")
    sizes = {
        letter: sum(t.numel() for n, t in on_client.items() if f".lora_{letter}." in n)
        for letter in "AB"
    }
    assert min(sizes.values()) > 0  # the file is a whole adapter all the same
    sent = Ledger.read(half.path / "ledger.csv").totals(kind="lora", client="north")
    assert sent["bytes_up"] == sent["bytes_down"] == 4 * sizes["B"]
    full = Ledger.read(both.path / "ledger.csv").totals(kind="lora", client="north")
    assert full["bytes_up"] == 4 * (sizes["A"] + sizes["B"])
    with pytest.raises(ConfigError, match=r"balance\.space"):
        train(toys.recipe({**frozen, "balance.space": "update"}), runs / "refused")


def test_local_training_exchanges_nothing(toys: Toys, runs: Path) -> None:
    done = train(toys.recipe({"balance.strategy": "local"}), runs / "run")
    kinds = {row.kind for row in Ledger.read(done.path / "ledger.csv").rows()}
    assert kinds == {"activation", "gradient", "layout", "scalar", "metrics"}


@pytest.mark.parametrize("merge", ["factors", "product"])
def test_optimisers_go_on_where_they_stopped(toys: Toys, runs: Path, merge: str) -> None:
    """Steps add up over rounds; M4 begins the moments of re-factored tensors anew (METHOD M4)."""
    run = train(toys.recipe({"balance.merge": merge}), runs / "run").path
    steps_a_round = 3  # 9 users in batches of 4
    for side, tensor in (("clients", "projection"), ("server", "")):
        moments = read_tensors(run / "rounds/2" / side / "north" / "optimiser.safetensors")
        steps = {n.removeprefix("step/"): int(v) for n, v in moments.items() if "step/" in n}
        factors = {name for name in steps if ".lora_" in name}
        if merge == "product":
            assert factors == set()  # reset, and nobody has trained since
        else:
            assert factors and {steps[name] for name in factors} == {2 * steps_a_round}
        if tensor:
            assert steps[tensor] == 2 * steps_a_round
