"""What the recipe's [privacy] keeps at home, mixes no more, and draws over what crosses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from fellrec.config import RunConfig
from fellrec.errors import ConfigError
from fellrec.federation.deployment.place import Place
from fellrec.federation.runs import train
from fellrec.federation.shares import load_split
from fellrec.federation.workspace import Workspace
from fellrec.files import read_tensors
from fellrec.models.recommender import Kind
from fellrec.privacy import Secret
from fellrec.serving.rescore import rescore
from fellrec.serving.run import load_run
from tests.toys import Toys

PRIVATE: dict[str, object] = {"privacy.private_head": True, "model.item_residual": "local"}
TEXTS = {"recformer": "bert", "bigrec": "lm"}


def run_of(toys: Toys, out: Path, **overrides: object) -> Path:
    return train(toys.recipe({"train.rounds": 1, **overrides}), out).path


def tensors(run: Path, side: str, name: str) -> dict[str, dict[str, Tensor]]:
    return {
        client.name: read_tensors(client / f"{name}.safetensors")
        for client in sorted((run / side).iterdir())
    }


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def sent(run: Path) -> int:
    """Bytes of adapters and dense tensors that clients have sent."""
    ledger = pd.read_csv(run / "ledger.csv")
    chosen = ledger.kind.isin(["lora", "dense"]) & (ledger.direction == "up")
    return int(ledger.bytes[chosen].sum())


@pytest.mark.parametrize("recommender", ["hllm", "recformer", "bigrec"])
def test_a_private_head_stays_and_the_rest_is_exchanged(
    toys: Toys, tmp_path: Path, recommender: str
) -> None:
    base = str(getattr(toys, TEXTS.get(recommender, "bert")))
    common = {"model.recommender": recommender, "model.base": base, "model.item_residual": "local"}
    usual = run_of(toys, tmp_path / "usual", **common)
    private = run_of(toys, tmp_path / "private", **common, **{"privacy.private_head": True})
    exchanged = tensors(usual, "clients", "best_adapter")
    left = tensors(private, "clients", "best_adapter")
    kept = tensors(private, "clients", "best_private")
    head = load_run(private).workspace.recommender.before_the_cut()
    for client, all_tensors in exchanged.items():
        gone = head & all_tensors.keys()
        assert gone and left[client].keys() == all_tensors.keys() - gone
        assert gone <= kept[client].keys()
        missing = sum(4 * all_tensors[name].numel() for name in gone)
    assert sent(usual) - sent(private) == missing * len(exchanged)
    one, other, *_ = kept.values()
    assert not any(torch.equal(one[name], other[name]) for name in gone if ".lora_B." in name)


def test_a_trunk_that_is_not_exchanged_is_as_the_client_alone_has_it(
    toys: Toys, tmp_path: Path
) -> None:
    """The first round begins alike everywhere: each trunk then is what learning alone gives."""
    alone = run_of(toys, tmp_path / "alone", **{"balance.strategy": "local"})
    apart = run_of(toys, tmp_path / "apart", **{"privacy.exchange_trunk": False})
    mixed = run_of(toys, tmp_path / "mixed")
    at_home, not_mixed, usual = (
        tensors(each, "server", "best_adapter") for each in (alone, apart, mixed)
    )
    ours, theirs = (tensors(each, "clients", "best_adapter") for each in (alone, apart))
    for client in at_home:
        assert same(at_home[client], not_mixed[client])
        assert not same(at_home[client], usual[client])
        assert not same(ours[client], theirs[client])


def test_noise_is_the_same_for_the_same_seed_and_changes_what_is_learned(
    toys: Toys, tmp_path: Path
) -> None:
    noise: dict[str, object] = {"privacy.noise": 2.0}
    runs = [run_of(toys, tmp_path / f"{number}", **noise) for number in range(2)]
    plain = run_of(toys, tmp_path / "plain")
    assert rescore(load_run(runs[0])).differences == ()  # as noisy as the run's own test
    first, again, without = (tensors(each, "clients", "best_adapter") for each in (*runs, plain))
    for client in first:
        assert same(first[client], again[client])
        assert not same(first[client], without[client])


def test_a_simulation_repeats_a_turns_cover_and_a_deployment_does_not(toys: Toys) -> None:
    config = toys.recipe({"privacy.noise": 1.0})
    dataset = load_split(config)[0]
    for given, repeats in ((None, True), (Secret.drawn, False)):
        space = Workspace(config, dataset, noise=given)
        drawn = []
        for turn in ("serve", "serve", "test"):
            space.cover_anew("north", 0, turn)
            cover = space.cover
            drawn.append(
                tuple(each.normal((3,)) for each in (cover.noise, cover.order, cover.users))
            )
        first, again, other = drawn
        for one, same in zip(first, again, strict=True):
            assert torch.equal(one, same) == repeats
        assert not any(torch.equal(one, two) for one, two in zip(first, other, strict=True))
        assert not torch.equal(first[0], first[1])


def test_the_bound_is_what_anybody_works_out(toys: Toys) -> None:
    """It is of the public head, whatever secret the client starts from."""
    config = toys.recipe({**PRIVATE, "privacy.noise": 1.0, "privacy.secret_start": 0.5})
    dataset = load_split(config)[0]
    spaces = [Workspace(config, dataset, secret=each) for each in (None, Secret.drawn())]
    veils = [space.cover.veil for space in spaces]
    assert veils[0] is not None and veils[0] == veils[1]
    known, ours = (space.initial(Kind.PRIVATE) for space in spaces)
    assert same(known, spaces[1].public(Kind.PRIVATE)) and not same(known, ours)
    given = Workspace(toys.recipe({"privacy.noise": 1.0, "privacy.bound": 3.5}), dataset)
    assert given.cover.veil is not None and given.cover.veil.bound == 3.5


def test_shuffled_positions_give_the_same_scores(toys: Toys, tmp_path: Path) -> None:
    """Dropout's masks meet other positions in training, so the base as it comes is scored."""
    common: dict[str, object] = {
        "model.recommender": "recformer",
        "model.base": str(toys.bert),
        "train.rounds": 0,
    }
    usual = load_run(run_of(toys, tmp_path / "usual", **common))
    mixed = load_run(run_of(toys, tmp_path / "mixed", **common, **{"privacy.shuffle": True}))
    for one, other in zip(usual.clients(), mixed.clients(), strict=True):
        scores, again = one.evaluate(), other.evaluate()
        assert all(np.array_equal(scores[m], again[m], equal_nan=True) for m in scores)
    trained = run_of(
        toys, tmp_path / "trained", **{**common, "train.rounds": 1, "privacy.shuffle": True}
    )
    assert load_run(trained).summary["rounds"] == 1


def test_an_order_that_matters_is_not_shuffled(toys: Toys, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs the order of positions"):
        toys.recipe({"privacy.shuffle": True})


def test_settings_that_defeat_each_other_are_refused(toys: Toys) -> None:
    for overrides, reason in (
        ({"privacy.bound": 1.0}, "privacy.bound"),
        ({"privacy.noise": 1.0, "train.micro_batches": 2, "train.in_flight": 2}, "in_flight"),
        ({"privacy.private_head": True}, "item_residual"),
        ({"privacy.secret_start": 0.5}, "privacy.private_head"),
        ({**PRIVATE, "privacy.secret_start": 0.5, "model.quantize": "8bit"}, "quantize"),
    ):
        with pytest.raises(ConfigError, match=reason):
            toys.recipe(overrides)


def test_the_exported_adapter_has_the_private_head(toys: Toys, tmp_path: Path) -> None:
    from fellrec.serving.export import export_adapter

    run = run_of(toys, tmp_path / "run", **PRIVATE)
    folder = export_adapter(run, "north", tmp_path / "out")
    written = read_tensors(folder / "adapter_model.safetensors")
    kept = tensors(run, "clients", "best_private")["north"]
    head = {name: tensor for name, tensor in kept.items() if ".lora_" in name}
    assert head
    for name, tensor in head.items():
        assert torch.equal(written[f"base_model.model.{name}"], tensor)


@pytest.mark.parametrize("given", ["", 3, True])
def test_a_secret_of_a_node_is_a_path(given: object) -> None:
    values = dict.fromkeys(("data", "folder", "certificate", "key", "authority"), "x")
    with pytest.raises(ConfigError, match="secret of --node-config"):
        Place.of({**values, "secret": given})


def test_every_setting_survives_writing_and_reading(toys: Toys, tmp_path: Path) -> None:
    config = toys.recipe({**PRIVATE, "privacy.noise": 0.5, "privacy.secret_start": 0.25})
    (tmp_path / "recipe.toml").write_text(config.to_toml())
    assert RunConfig.from_toml(tmp_path / "recipe.toml").privacy == config.privacy
