"""A dry run against the run itself: sizes and bytes are the same, memory is what autograd keeps."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fellrec.config import RunConfig
from fellrec.errors import ConfigError, FellrecError, ModelError
from fellrec.federation.dryrun import dry_run
from fellrec.federation.memory.blocks import kept_by_blocks
from fellrec.federation.runs import train
from fellrec.federation.settings import lora_settings
from fellrec.files import read_tensors
from fellrec.models.adapters import attach
from fellrec.models.cutting import build_stage
from fellrec.models.placement import DTYPES, Placement
from fellrec.models.stages import Stage
from fellrec.models.weights import MemoryWeights
from fellrec.split.ledger import Ledger
from tests.builders import layout_of, random_hidden, tiny
from tests.toys import BLOCKS, SHOPS, Toys

Overrides = dict[str, object]
RECOMMENDERS: Mapping[str, Overrides] = {
    "hllm": {},
    "hllm, private": {"model.item_residual": "local", "train.micro_batches": 3},
    "hllm, llama": {"model.base": "llama", "lora.freeze_a": True},
    "recformer": {"model.recommender": "recformer", "train.samples": 12},
    "recformer, fixed": {"model.recommender": "recformer", "recformer.fixed_after": 1},
    "bigrec": {
        "model.recommender": "bigrec",
        "model.base": "lm",
        "bigrec.popularity": [0.0, 0.5],
        "evaluation.valid_users": 3,
        "evaluation.test_users": 3,
    },
    "bigrec, bf16": {
        "model.recommender": "bigrec",
        "model.base": "lm",
        "model.dtype": "bf16",
        "bigrec.loss_on": "prompt+response",
        "evaluation.valid_users": 3,
        "evaluation.test_users": 3,
    },
}
DECODERS = ("llama", "mistral", "qwen3")
CUTS = {"split": (1, 1), "no head": (0, 1), "no trunk": (2, 1)}


def recipe(toys: Toys, name: str, overrides: Overrides | None = None) -> RunConfig:
    values = {**RECOMMENDERS[name], "train.rounds": 1, **(overrides or {})}
    if "model.base" in values:
        values["model.base"] = str(getattr(toys, str(values["model.base"])))
    return toys.recipe(values)


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("name", RECOMMENDERS)
def test_it_agrees_with_the_run(toys: Toys, runs: Path, name: str, cut: str) -> None:
    k_in, k_out = CUTS[cut]
    changed = {"model.k_in": k_in, "model.k_out": k_out, "split.codec": "int8"}
    config = recipe(toys, name, {**changed, "evaluation.keep_rounds": 1})
    found = dry_run(config)
    done = train(config, runs / "run")
    for key in ("dataset", "recommender", "users", "users_dropped", "items"):
        assert found[key] == done.summary[key]
    cost = done.summary["cost"]
    sizes = {key: value for key, value in found["cost"].items() if "trained" not in key}
    assert len(sizes) == 11 and sizes == {key: cost[key] for key in sizes}
    assert sum(client["steps"] for client in found["clients"]) == cost["steps"]
    rows = Ledger.read(done.path / "ledger.csv").rows()
    for client, finished in zip(found["clients"], done.summary["clients"], strict=True):
        assert (client["id"], client["users"]) == (finished["id"], finished["users"])
        for direction in ("up", "down"):
            crossed = {
                kind: sum(
                    row.bytes
                    for row in rows
                    if (row.client, row.direction) == (client["id"], direction)
                    and row.kind in kinds
                )
                for kind, kinds in (("adapter", ("lora", "dense")), ("gradient", ("gradient",)))
            }
            assert client["adapter_bytes"] == crossed["adapter"]
            if name != "recformer, fixed":  # whose targets are drawn anew, here the first time
                assert client["gradient_bytes"] == crossed["gradient"]
        assert (client["gradient_bytes"] > 0) is (cut != "no trunk")
    for side, key in (("clients", "client"), ("server", "server")):
        # What is trained is what has an optimiser.
        state = done.path / "rounds" / "1" / side / SHOPS[0] / "optimiser.safetensors"
        assert found["cost"][f"{key}_trained_parameters"] == _moments(state)


def _moments(path: Path) -> int:
    if not path.is_file():
        return 0
    return sum(t.numel() for name, t in read_tensors(path).items() if name.startswith("exp_avg/"))


def test_more_rounds_and_epochs_and_no_exchange(toys: Toys) -> None:
    once = dry_run(recipe(toys, "hllm"))
    twice = dry_run(recipe(toys, "hllm", {"train.local_epochs": 2, "train.rounds": 7}))
    alone = dry_run(recipe(toys, "hllm", {"balance.strategy": "local"}))
    for a, b, c in zip(once["clients"], twice["clients"], alone["clients"], strict=True):
        for key in ("steps", "positions", "activation_bytes", "gradient_bytes"):
            assert b[key] == 2 * a[key] and c[key] == a[key]
        assert a["sequences"] == b["sequences"] > 0
        assert a["adapter_bytes"] == b["adapter_bytes"] > c["adapter_bytes"] == 0
    assert once["memory"] == twice["memory"] == alone["memory"]


def test_items_that_are_encoded_each_epoch_cross_forward_only(toys: Toys) -> None:
    found = dry_run(recipe(toys, "recformer"))
    (items,) = {c["activation_bytes"] - c["gradient_bytes"] for c in found["clients"]}
    positions, rest = divmod(items, 4 * 32)
    assert rest == 0 and positions >= 3 * found["items"]


# --- what it needs, and what it leaves ------------------------------------------------------------


@pytest.mark.parametrize("name", RECOMMENDERS)
def test_no_weights_are_read_and_nothing_is_left(
    toys: Toys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    config = recipe(toys, name)
    whole = dry_run(config)
    cached = sorted(toys.cache.rglob("*"))
    bare: Overrides = {}
    for key in ("base", "item_encoder"):
        source = getattr(config.model, key)
        bare[f"model.{key}"] = str(tmp_path / key)
        shutil.copytree(source, tmp_path / key, ignore=shutil.ignore_patterns("*.safetensors"))
    files = sorted(tmp_path.rglob("*"))
    found = dry_run(toys.recipe({**RECOMMENDERS[name], "train.rounds": 1, **bare}))
    assert {**found, "base": ""} == {**whole, "base": ""}
    assert sorted(tmp_path.rglob("*")) == files and sorted(toys.cache.rglob("*")) == cached


def test_lengths_say_where_they_are_from(toys: Toys) -> None:
    assert dry_run(recipe(toys, "hllm"))["lengths"] == "exact"
    assert dry_run(recipe(toys, "bigrec"))["lengths"] == "tokenised"


@pytest.mark.parametrize(
    ("recommender", "base", "parameters", "cut"),
    [("bigrec", "llama-7b", 6_738_415_616, (20, 1)), ("recformer", "longformer", None, (10, 1))],
)
def test_a_base_that_is_not_here(
    toys: Toys, recommender: str, base: str, parameters: int | None, cut: tuple[int, int]
) -> None:
    changes: Overrides = {"model.recommender": recommender, "model.base": base}
    changes |= {"model.k_in": cut[0], "model.k_out": cut[1], "lora.rank": 8}
    found = dry_run(toys.recipe(changes))
    cost = found["cost"]
    assert found["lengths"] == "estimated"
    assert all(client["positions"] > 0 for client in found["clients"])
    if parameters:  # what is known of LLaMA-7B; two modules of 32 blocks; rotary tables of 3 stages
        held = cost["client_parameters"] + cost["server_parameters"]
        assert held == parameters + 32 * 2 * 2 * 8 * 4096 + 3 * 2 * 64
        assert cost["client_bytes"] == 4 * cost["client_parameters"]


def test_the_precision_of_a_base_counts(toys: Toys) -> None:
    """Adapters, what is the recommender's own, and rotary tables stay float32."""
    for name, tables in (("hllm", 0), ("bigrec", 2 * 8)):
        full = dry_run(recipe(toys, name))
        half = dry_run(recipe(toys, name, {"model.dtype": "bf16"}))
        trained = full["cost"]["server_trained_parameters"]
        frozen = full["cost"]["server_parameters"] - trained - tables
        assert half["cost"]["server_bytes"] == 2 * frozen + 4 * (trained + tables)
        assert half["cost"]["server_parameters"] == full["cost"]["server_parameters"]
        assert half["memory"]["client"]["training"] == full["memory"]["client"]["training"]
        assert half["memory"]["server"]["activations"] < full["memory"]["server"]["activations"]


def test_quantised_blocks_are_foreseen_without_an_accelerator(toys: Toys) -> None:
    sizes = {}
    for quantize in ("none", "8bit", "4bit"):
        config = recipe(toys, "bigrec", {"model.quantize": quantize, "model.dtype": "bf16"})
        sizes[quantize] = dry_run(config)["cost"]["server_bytes"]
    # One block of width 32: q and o 32 x 32, k and v 16 x 32, three linears of 64 x 32.
    weights, rows = 2 * 1024 + 2 * 512 + 3 * 2048, 2 * 32 + 2 * 16 + 2 * 64 + 32
    assert sizes["none"] - sizes["8bit"] == 2 * weights - weights - 4 * rows
    assert sizes["none"] - sizes["4bit"] == 2 * weights - weights // 2 - 4 * weights // 64


@pytest.mark.parametrize(
    ("overrides", "error", "said"),
    [
        ({"model.k_in": 3, "model.k_out": 1}, ModelError, f"the base has {BLOCKS}"),
        ({"model.recommender": "bigrec"}, ModelError, "use a causal"),
        ({"model.history": 100}, ModelError, "model.history = 100"),
        ({"clients.per_round": 3, "clients.column": "age"}, FellrecError, "'age'"),
        ({"balance.space": "update", "lora.freeze_a": True}, ConfigError, "balance.space"),
        ({"lora.targets": ["nothing"]}, ModelError, "lora.targets"),
    ],
)
def test_what_a_run_would_refuse_is_refused(
    toys: Toys, runs: Path, overrides: Overrides, error: type[FellrecError], said: str
) -> None:
    config = toys.recipe(overrides)
    with pytest.raises(error, match=said) as before:
        dry_run(config)
    with pytest.raises(error, match=said) as begun:
        train(config, runs / "run")
    assert str(before.value) == str(begun.value)


# --- memory ---------------------------------------------------------------------------------------


def kept_by_autograd(stage: Stage, lengths: list[int]) -> int:
    """Bytes of all that a forward pass keeps for the way back, apart from what the stage holds."""
    own = {t.untyped_storage().data_ptr() for t in [*stage.parameters(), *stage.buffers()]}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    layout = layout_of(lengths)
    hidden = nn.Parameter(random_hidden(layout))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        stage(hidden, layout)
    return sum(kept.values())


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["bert", "roberta", "longformer", *DECODERS])
def test_activations_are_what_autograd_keeps(
    toys: Toys, kind: str, dtype: str, dropout: float
) -> None:
    changes: Overrides = {"model.dropout": dropout, "lora.dropout": dropout, "model.dtype": dtype}
    config = toys.recipe(changes)
    model, span = tiny(kind), range(1, 5)
    stage = build_stage(
        model.config,
        MemoryWeights(model.state_dict()),
        "trunk",
        span,
        causal=kind in DECODERS,
        dropout=dropout,
        place=Placement(dtype=DTYPES[config.model.dtype]),
    )
    attach(stage, lora_settings(config), 0)
    stage.train()
    measured = kept_by_autograd(stage, [24] * 4)
    assert kept_by_blocks(config, stage) * 4 * 24 == pytest.approx(measured, rel=0.15)
