"""Whole rounds with one malicious client of five: what each setting of [robust] lets through."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.parts.attacks import ATTACKS, Attack, Scene, WithAttacker, nothing
from fellrec.balance import change_norms, is_lora
from fellrec.errors import TrainingError
from fellrec.federation.coordinator import Coordinator
from fellrec.federation.ditto import FILES, PERSONAL, Ditto
from fellrec.federation.members import Trained
from fellrec.federation.rounds import Books
from fellrec.federation.runs import train
from fellrec.federation.shares import share_data
from fellrec.federation.simulation import Simulation
from fellrec.federation.store import RunState, RunStore
from fellrec.federation.turns import stored_model
from fellrec.federation.workspace import Workspace
from fellrec.files import read_tensors
from tests.federation.test_divergence import Records
from tests.toys import Toys

FIVE = {"clients.partition": "random", "clients.count": 5, "train.rounds": 1}
CLIENTS = [f"c{i}" for i in range(5)]
VICTIM, ATTACKER = "c0", "c2"
HONEST = [name for name in CLIENTS if name != ATTACKER]
OFF = {"robust.clip": 0.0, "robust.refuse": 0.0}
Tensors = Mapping[str, Tensor]


class Attacked:
    """A finished run under attack: its log, its notes, its mixtures after a round."""

    def __init__(
        self, toys: Toys, path: Path, attack: Attack, overrides: Mapping[str, object]
    ) -> None:
        config = toys.recipe({**FIVE, "evaluation.keep_rounds": 9, **overrides})
        two = config.balance.strategy == "ditto"
        self.store = RunStore(path, 9, FILES, PERSONAL) if two else RunStore(path, 9)
        self.watch = Records()
        shares = share_data(config)
        self.workspace = Workspace(config, shares.dataset)
        kind = Ditto if two else Simulation
        members = kind(config, shares, self.workspace, self.store, self.watch)
        self.sent: dict[str, Trained] = {}

        def seen(scene: Scene) -> Trained:
            self.sent = {VICTIM: scene.victim, ATTACKER: attack(scene)}
            return self.sent[ATTACKER]

        books = Books(self.store, self.workspace.ledger, self.watch)
        lying = WithAttacker(members, seen, ATTACKER, VICTIM, lambda t: self.model(t, ATTACKER))
        self.state = Coordinator(config, books).run(RunState(), lying)
        self.lines: list[dict[str, Any]] = [
            json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()
        ]

    def model(self, t: int, client: str) -> Tensors:
        """Return what a client has after `t` rounds, on both sides."""
        model = stored_model(self.store, self.workspace, t, client)
        return {**model.exchanged, **model.trunk}

    def line(self, client: str, t: int = 0) -> dict[str, Any]:
        (found,) = [e for e in self.lines if e["client"] == client and e["round"] == t]
        return found

    def weight(self, client: str, giver: str = ATTACKER) -> float:
        order = [e["client"] for e in self.lines if e["round"] == 0 and "failed" not in e]
        return float(self.line(client)["weights"][order.index(giver)])


@pytest.fixture(scope="module")
def attack(toys: Toys, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Lend a function that runs an attack under some settings, each once."""
    folder, done = tmp_path_factory.mktemp("attacks"), dict[str, Attacked]()

    def run(how: str | Attack = nothing, **changes: object) -> Attacked:
        overrides = {key.replace("__", "."): value for key, value in changes.items()}
        key = repr((how, sorted(overrides.items())))
        if key not in done:
            chosen = ATTACKS[how] if isinstance(how, str) else how
            done[key] = Attacked(toys, folder / str(len(done)), chosen, overrides)
        return done[key]

    return run


def far(one: Tensors, other: Tensors) -> float:
    squares = [float((one[n].double() - other[n].double()).square().sum()) for n in one]
    return math.sqrt(sum(squares))


def dense(model: Tensors) -> Tensors:
    return {name: value for name, value in model.items() if not is_lora(name)}


def harm(run: Attacked, calm: Attacked) -> float:
    """Return how far honest mixtures are from those without an attack, on average.

    Of dense tensors: the same product can be factored in many ways.
    """
    pairs = [(dense(run.model(1, n)), dense(calm.model(1, n))) for n in HONEST]
    return sum(far(one, other) for one, other in pairs) / len(HONEST)


def same(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


@pytest.mark.parametrize("strategy", ["fellrec", "fedavg", "fedamp"])
def test_an_honest_run_is_what_it_was_bit_for_bit(
    toys: Toys, tmp_path: Path, strategy: str
) -> None:
    """All is on by default, and a rule that leaves nothing out is no rule."""
    plain = {**FIVE, "train.rounds": 2, "balance.strategy": strategy}
    off = train(toys.recipe({**plain, **OFF}), tmp_path / "off").path
    files = sorted(off.glob("*/*/last_*.safetensors"))
    assert len(files) > 10
    for name, settings in {
        "on": {},
        "trim": {"robust.rule": "trimmed-mean", "robust.malicious": 0},
        "krum": {"robust.rule": "krum", "robust.malicious": 0},
    }.items():
        path = train(toys.recipe({**plain, **settings}), tmp_path / name).path
        for file in files:
            assert same(read_tensors(file), read_tensors(path / file.relative_to(off)))
        assert "clipped" not in (path / "metrics.jsonl").read_text()


@pytest.mark.parametrize("how", ["NaN", "change x 1000"])
def test_what_is_beyond_measure_is_refused_and_named(attack: Any, how: str) -> None:
    run = attack(how)
    (record,) = run.watch.records
    reason = {"NaN": "NaN or infinite", "change x 1000": "as far as the median client"}[how]
    assert list(record.failed) == [ATTACKER] and reason in record.failed[ATTACKER]
    assert any(ATTACKER in note and "keeps the model it had" in note for note in run.watch.notes)
    assert run.line(ATTACKER)["failed"] == record.failed[ATTACKER]
    assert list(record.reports) == HONEST
    # The others are mixed as if the client had not been there, row for row.
    silent = attack(lambda scene: TrainingError("client c2: gone"))
    for name in HONEST:
        assert same(run.model(1, name), silent.model(1, name))
    assert ATTACKER not in run.state.standings
    assert same(run.model(1, ATTACKER), run.model(0, ATTACKER))


def test_it_refuses_whoever_claims_no_loss(attack: Any) -> None:
    def odd(scene: Scene) -> Trained:
        report = scene.own.report.__class__(**{**vars(scene.own.report), "loss": float("nan")})
        return scene.own.__class__(**{**vars(scene.own), "report": report})

    run = attack(odd)
    assert "its loss is nan" in run.line(ATTACKER)["failed"]


def test_a_round_that_compares_changes_forgets_the_refused_client_too(attack: Any) -> None:
    runs = [
        attack(how, balance__space="change")
        for how in ("change x 1000", lambda scene: TrainingError("gone"))
    ]
    for name in HONEST:
        assert runs[0].line(name)["attention"] == runs[1].line(name)["attention"]
        assert same(runs[0].model(1, name), runs[1].model(1, name))


@pytest.mark.parametrize(
    ("strategy", "merge"),
    [("fellrec", "factors"), ("fellrec", "product"), ("fedamp", "factors"), ("ditto", "factors")],
)
def test_what_is_too_long_is_clipped(attack: Any, strategy: str, merge: str) -> None:
    plain = {"balance__strategy": strategy, "balance__merge": merge}
    run = attack("change x 20", **plain)
    assert not run.watch.records[0].failed
    factor = run.line(ATTACKER)["clipped"]
    # Its change was about as long as the others': 3 medians of 20, but for how clients differ.
    assert 0.5 * 3 / 20 < factor < 2 * 3 / 20
    assert any(f"client {ATTACKER}: it changed more than 3 times" in n for n in run.watch.notes)
    assert not any("clipped" in run.line(name) for name in HONEST)
    calm, naive = attack(**plain), attack("change x 20", **plain, robust__clip=0.0)
    assert "clipped" not in naive.line(ATTACKER)
    # A seventh, had it the same weight; FedAMP gives less to the longer one.
    assert harm(run, calm) < 0.5 * harm(naive, calm)


def test_a_clipped_change_is_as_long_as_the_setting_says(attack: Any) -> None:
    """With alpha 0 a client gets its own back: what the coordinator made of it."""
    run = attack("change x 20", balance__alpha=0.0, robust__clip=2.0)
    begun, found = run.model(0, ATTACKER), run.model(1, ATTACKER)
    norms = torch.stack([change_norms(run.model(1, name), run.model(0, name)) for name in CLIENTS])
    before = change_norms(run.sent[ATTACKER].tensors, begun)
    factor = run.line(ATTACKER)["clipped"]
    torch.testing.assert_close(norms[2], factor * before, rtol=1e-4, atol=0)
    # The others' medians are those of the five, as both extremes are on the far side of them.
    times = norms[2] / torch.stack([before if i == 2 else norms[i] for i in range(5)]).median(0)[0]
    assert times.max().item() == pytest.approx(2, rel=1e-4)
    assert far(found, begun) > 0


@pytest.mark.parametrize("how", ["change turned around", "the same, loss of 100"])
def test_what_turns_around_is_no_longer_than_others(attack: Any, how: str) -> None:
    """Neither length nor attention tells it from an honest client: it goes through as shipped."""
    calm, run = attack(), attack(how)
    assert "clipped" not in run.line(ATTACKER) and not run.watch.records[0].failed
    shipped = harm(run, calm)
    assert shipped == pytest.approx(harm(attack(how, robust__clip=0.0), calm))
    assert shipped > 0.1 * float(change_norms(calm.model(1, VICTIM), calm.model(0, VICTIM)).norm())


@pytest.mark.parametrize("rule", ["median", "trimmed-mean"])
def test_trimming_bounds_what_an_attacker_adds(attack: Any, rule: str) -> None:
    """However large it is, each value that honest clients are given is between honest ones."""
    run = attack("change x 1000", **{"robust__rule": rule}, robust__clip=0.0, robust__refuse=0.0)
    alone = attack(balance__alpha=0.0)  # what each client learned
    for name in HONEST:
        mixed = run.model(1, name)
        for key, value in mixed.items():
            own = torch.stack([alone.model(1, other)[key] for other in HONEST])
            slack = 1e-6 * own.abs().max()
            assert (value <= own.max(dim=0)[0] + slack).all()
            assert (value >= own.min(dim=0)[0] - slack).all()


def test_krum_leaves_out_what_is_far(attack: Any) -> None:
    run = attack("change x 20", robust__rule="krum", robust__clip=0.0)
    assert run.line(ATTACKER)["left_out"] is True
    assert [name for name in HONEST if run.weight(name)] == []
    assert run.weight(ATTACKER) > 0  # it keeps what it sent, and takes from others
    assert any(f"client {ATTACKER}: far from the others" in note for note in run.watch.notes)
    assert not any("left_out" in run.line(name) for name in HONEST)
    # In an honest round it leaves out an honest client: that is what it costs.
    calm = attack(robust__rule="krum")
    assert sum("left_out" in calm.line(name) for name in CLIENTS) == 1


def test_a_copy_gains_the_victims_attention(attack: Any) -> None:
    plain = {"balance__space": "change", "balance__temperature": 0.1}
    calm, run = attack(**plain), attack("copy of the victim", **plain)
    assert run.line(VICTIM)["attention"][2] == pytest.approx(1)
    assert run.weight(VICTIM) > 1.5 * calm.weight(VICTIM)
    # It looks like an honest client, so nothing is refused, clipped or left out by Krum.
    for rule in ("none", "krum"):
        found = attack("copy of the victim", **plain, robust__rule=rule)
        assert found.weight(VICTIM) > calm.weight(VICTIM)
        assert "clipped" not in found.line(ATTACKER) and "left_out" not in found.line(ATTACKER)


def test_a_disguise_carries_other_dense_tensors_in(attack: Any) -> None:
    """Factors are compared, dense tensors are not: the copy's attention mixes them all the same."""
    plain = {"balance__space": "change", "balance__temperature": 0.1}
    calm, run = attack(**plain), attack("copy, other dense tensors", **plain)
    assert run.weight(VICTIM) > 1.5 * calm.weight(VICTIM)
    typical = float(change_norms(calm.model(1, VICTIM), calm.model(0, VICTIM))[1])
    assert far(dense(run.model(1, VICTIM)), dense(calm.model(1, VICTIM))) > 0.2 * typical
    krum = attack("copy, other dense tensors", **plain, robust__rule="krum")
    assert krum.line(ATTACKER)["left_out"] is True and krum.weight(VICTIM) == 0


def test_too_few_for_the_rule_keep_to_themselves(attack: Any) -> None:
    run = attack(lambda scene: TrainingError("client c2: gone"), robust__rule="krum")
    assert any("4 of the 5 clients that" in note for note in run.watch.notes)
    alone = attack(balance__alpha=0.0)
    for name in HONEST:
        assert same(run.model(1, name), alone.model(1, name))


@pytest.mark.parametrize("rule", ["krum", "trimmed-mean"])
def test_who_is_refused_was_the_one_that_was_expected(attack: Any, rule: str) -> None:
    """Else a single NaN would keep all others apart, with five clients and Krum."""
    run, plain = attack("NaN", robust__rule=rule), attack("NaN")
    for name in HONEST:
        assert same(run.model(1, name), plain.model(1, name))


def test_a_round_that_refuses_too_many_ends_the_run(attack: Any) -> None:
    with pytest.raises(TrainingError, match=r"4 of 5 clients completed round 0: client c2: its"):
        attack("NaN", clients__minimum=5)


def test_local_training_looks_at_nobody(attack: Any) -> None:
    run = attack("change x 1000", balance__strategy="local")
    assert not run.watch.records[0].failed and "clipped" not in run.line(ATTACKER)


def test_later_rounds_measure_from_each_clients_own_model(attack: Any) -> None:
    run = attack("change x 20", train__rounds=3)
    for t in range(3):
        assert run.line(ATTACKER, t)["clipped"] < 0.4
        assert not any("clipped" in run.line(name, t) for name in HONEST)
