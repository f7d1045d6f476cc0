"""A stage holds its own part of the base and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from fellrec.errors import ModelError
from fellrec.models.adapters import LoraSettings, adapter, attach, write
from fellrec.models.bases import load_config, load_stage, parse_config
from fellrec.models.cutting import build_stage, outline_stage
from fellrec.models.dropout import KeyedDropout
from fellrec.models.families import family_of
from fellrec.models.slicing import spans
from fellrec.models.stages import Role
from fellrec.models.weights import MemoryWeights, SafetensorsWeights, Weights
from tests.builders import (
    KINDS,
    TARGETS,
    WIDTH,
    install,
    layout_of,
    random_factors,
    random_hidden,
    stage_of,
    tiny,
    tiny_config,
)

ROLES: tuple[Role, ...] = ("head", "trunk", "tail")


class RecordingWeights:
    """Passes on what it is asked for, and remembers the names."""

    def __init__(self, inner: Weights) -> None:
        self.inner = inner
        self.read_names: list[str] = []

    def names(self) -> Iterable[str]:
        return self.inner.names()

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        asked = list(names)
        self.read_names += asked
        return self.inner.read(asked)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny("bert").save_pretrained(tmp_path)
    return tmp_path


def one_line(error: pytest.ExceptionInfo[ModelError]) -> str:
    message = str(error.value)
    assert message and "\n" not in message
    assert len(message) < 600
    return message


# --- what is read ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_each_stage_reads_its_own_tensors(kind: str, tmp_path: Path) -> None:
    model = tiny(kind)
    model.save_pretrained(tmp_path)
    family = family_of(model.config)
    read: dict[Role, list[str]] = {}
    for role in ROLES:
        weights = RecordingWeights(SafetensorsWeights(tmp_path))
        build_stage(load_config(tmp_path), weights, role, spans(6, 2, 1)[role])
        read[role] = weights.read_names
    blocks = {"head": {0, 1}, "trunk": {2, 3, 4}, "tail": {5}}
    for role, names in read.items():
        inside = [n.removeprefix(f"{family.layers}.") for n in names if f"{family.layers}." in n]
        assert {int(n.partition(".")[0]) for n in inside} == blocks[role]
        assert not any(n.startswith(family.tokens) for n in names)
    outside = {n for names in read.values() for n in names if f"{family.layers}." not in n}
    # All of the base exactly once, but the word embeddings, which an HLLM replaces by its own.
    everything = [n for names in read.values() for n in names]
    assert len(everything) == len(set(everything))
    assert set(model.state_dict()) - set(everything) == {f"{family.tokens}.weight"}
    if family.norm:
        assert outside == {f"{family.norm}.weight"}
        assert f"{family.norm}.weight" in read["tail"]
    else:
        assert {n for n in read["head"] if n.startswith("embeddings")} == outside


def test_the_token_table_is_kept_where_it_is_asked_for() -> None:
    weights = RecordingWeights(MemoryWeights(tiny("bert").state_dict()))
    head = build_stage(tiny_config("bert"), weights, "head", range(0, 1), tokens=True)
    assert "embeddings.word_embeddings.weight" in weights.read_names
    assert head.embed(torch.tensor([[3, 4]])).shape == (1, 2, WIDTH)


def test_a_stage_holds_no_memory_for_blocks_it_does_not_own(folder: Path) -> None:
    sizes = {
        role: sum(p.numel() for p in load_stage(folder, role, 2, 1).parameters()) for role in ROLES
    }
    whole = sum(p.numel() for p in load_stage(folder, "whole", 0, 0).parameters())
    assert sum(sizes.values()) == whole
    assert sizes["trunk"] == 3 * sizes["tail"]


def test_files_with_the_base_models_prefix_are_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = tiny_config("llama")
    assert isinstance(config, LlamaConfig)
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(tmp_path)
    assert any(name.startswith("model.layers") for name in SafetensorsWeights(tmp_path).names())
    stage = load_stage(tmp_path, "whole", 0, 0).eval()
    layout = layout_of([4])
    hidden = random_hidden(layout)
    expected = model.model(inputs_embeds=hidden).last_hidden_state
    torch.testing.assert_close(stage(hidden, layout), expected)


def test_sharded_files_give_the_same_stage(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    sharded = tmp_path_factory.mktemp("sharded")
    tiny("bert").save_pretrained(sharded, max_shard_size="30KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    one, many = (load_stage(path, "trunk", 2, 1) for path in (folder, sharded))
    for (name, a), (_, b) in zip(one.named_parameters(), many.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_old_files_with_gamma_and_beta_are_read() -> None:
    tensors = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in tiny("bert").state_dict().items()
    }
    assert "embeddings.LayerNorm.beta" in tensors
    config = tiny_config("bert")
    old = build_stage(config, MemoryWeights(tensors), "whole", range(6))
    new = stage_of(tiny("bert"), "whole", 0, 0)
    for (name, a), (_, b) in zip(old.named_parameters(), new.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_half_precision_files_are_computed_in_float32(tmp_path: Path) -> None:
    tensors = {n: t.to(torch.bfloat16) for n, t in tiny("bert").state_dict().items()}
    stage = build_stage(tiny_config("bert"), MemoryWeights(tensors), "tail", range(5, 6))
    assert {p.dtype for p in stage.parameters()} == {torch.float32}


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(("k_in", "k_out"), [(4, 3), (7, 0), (0, 7), (-1, 1), (1, -1)])
def test_more_blocks_than_there_are(k_in: int, k_out: int) -> None:
    with pytest.raises(ModelError, match="the base has 6") as error:
        spans(6, k_in, k_out)
    one_line(error)


def test_unknown_model_type(tmp_path: Path) -> None:
    for kind in ("gpt2", "no-such-model"):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
        with pytest.raises(ModelError, match=kind) as error:
            load_stage(tmp_path, "head", 1, 1)
        one_line(error)


@pytest.mark.parametrize("content", [None, "", "{", "[]", "{}"])
def test_a_folder_without_a_usable_configuration(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelError) as error:
        load_stage(tmp_path, "head", 1, 1)
    assert str(tmp_path) in one_line(error)


ODD: dict[str, dict[str, object]] = {
    "a width of text": {"hidden_size": "x"},
    "no number of blocks": {"num_hidden_layers": None},
    "fewer than no blocks": {"num_hidden_layers": -3},
    "no heads": {"num_attention_heads": 0},
    "heads that do not divide the width": {"num_attention_heads": 5},
    "an unknown kind of block": {"layer_types": ["a"]},
    "an unknown activation": {"hidden_act": "none-such"},
    "unknown rotary positions": {"rope_scaling": {"rope_type": "none-such", "factor": 2}},
    "rotary positions of text": {"rope_scaling": "x"},
    "a width beyond all memory": {"hidden_size": 10**30},
    "an unknown precision": {"torch_dtype": "float99"},
    "a list as its kind": {"model_type": ["llama"]},
    "padding outside the vocabulary": {"pad_token_id": 9999},
    "labels that are none": {"id2label": 5},
    "no number of labels": {"num_labels": "x"},
}


@pytest.mark.parametrize("name", ODD)
def test_a_configuration_that_no_model_can_have(folder: Path, name: str) -> None:
    values = {**tiny_config("llama").to_dict(), **ODD[name]}
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(ModelError) as error:
        load_stage(folder, "trunk", 1, 1)
    one_line(error)
    with pytest.raises(ModelError) as error:
        config = parse_config(values, "the base")
        outline_stage(config, "trunk", spans(config.num_hidden_layers, 1, 1)["trunk"])
    one_line(error)


def test_a_refused_configuration_says_where_and_what(folder: Path) -> None:
    config = tiny_config("llama").to_dict()
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": "x"}))
    with pytest.raises(
        ModelError, match=r"no usable config\.json .*'hidden_size'.*got str"
    ) as error:
        load_config(folder)
    assert str(folder) in one_line(error)
    (folder / "config.json").write_text(json.dumps({**config, "hidden_act": "none-such"}))
    with pytest.raises(ModelError, match=r"no llama model can be made.*none-such") as error:
        load_stage(folder, "trunk", 1, 1)
    assert str(folder) in one_line(error)


def test_a_configuration_that_is_nested_without_end(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(ModelError, match=r"no usable config\.json") as error:
        load_config(tmp_path)
    one_line(error)


def test_a_missing_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    gone = "encoder.layer.5.attention.self.query.weight"
    del tensors[gone]
    save_file(tensors, folder / "model.safetensors")
    load_stage(folder, "trunk", 2, 1)  # it does not need that one
    with pytest.raises(ModelError, match=gone) as error:
        load_stage(folder, "tail", 2, 1)
    one_line(error)
    with pytest.raises(ModelError, match=gone):
        build_stage(tiny_config("bert"), MemoryWeights(tensors), "tail", range(5, 6))


def test_a_wrong_shape(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = "encoder.layer.5.output.dense.weight"
    tensors[name] = tensors[name][:, :7].contiguous()
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"layer\.5.*\(32, 7\).*\(32, 48\)") as error:
        load_stage(folder, "tail", 2, 1)
    one_line(error)


@pytest.mark.parametrize("content", [b"", b"\xff" * 40, b"[]", b"{}", b'{"weight_map": [1]}'])
def test_damaged_weights(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_bytes(content)
    with pytest.raises(ModelError) as error:
        load_stage(folder, "tail", 2, 1)
    assert str(folder) in one_line(error)
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError) as error:
        load_stage(folder, "tail", 2, 1)
    one_line(error)


def test_an_index_does_not_lead_out_of_its_folder(folder: Path) -> None:
    outside = folder.parent / "outside.safetensors"
    (folder / "model.safetensors").rename(outside)
    names = tiny("bert").state_dict()
    index = {"weight_map": dict.fromkeys(names, f"../{outside.name}")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="can't be read") as error:
        load_stage(folder, "tail", 2, 1)
    one_line(error)
    outside.unlink()


def test_a_decoder_can_not_look_ahead() -> None:
    with pytest.raises(ModelError, match="is causal"):
        stage_of(tiny("llama"), "whole", 0, 0, causal=False)


# --- names and adapters ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_names_in_the_whole_model_round_trip(kind: str) -> None:
    model = tiny(kind)
    family = family_of(model.config)
    expected = set(model.state_dict()) - {f"{family.tokens}.weight"}
    found = [
        stage.whole_name(name)
        for role in ROLES
        for stage in [stage_of(model, role, 2, 1)]
        for name, _ in stage.body.named_parameters()
    ]
    assert sorted(found) == sorted(expected)
    stage = stage_of(model, "tail", 2, 1)
    assert stage.whole_name(f"{family.layers}.0") == f"{family.layers}.5"
    assert stage.whole_name(f"other.{family.layers}.0.x") == f"other.{family.layers}.0.x"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("targets", ["own", "attention", "mlp"])
def test_adapters_of_the_stages_partition_the_wholes(kind: str, targets: str) -> None:
    chosen = TARGETS[kind] if targets == "own" else (targets,)
    lora = LoraSettings(rank=3, targets=chosen)
    whole = adapter(stage_of(tiny(kind), "whole", 0, 0, lora=lora))
    family = family_of(tiny(kind).config)
    modules = {"own": 2, "attention": len(family.attention), "mlp": len(family.mlp)}[targets]
    assert len(whole) == 2 * 6 * modules  # A and B, six blocks
    for k_in, k_out in [(0, 0), (2, 1), (6, 0), (0, 6), (1, 0)]:
        parts = [adapter(stage_of(tiny(kind), r, k_in, k_out, lora=lora)) for r in ROLES]
        found = [name for part in parts for name in part]
        assert sorted(found) == sorted(whole)
        for part in parts:  # the same A whatever the cut, and B = 0
            for name, factor in part.items():
                assert torch.equal(factor, whole[name]), name
                assert bool(factor.any()) is (".lora_A." in name)
                assert factor.shape[0 if ".lora_A." in name else 1] == 3
                assert factor.requires_grad


def test_longformers_first_position_has_adapters_too() -> None:
    """Its attention has projections of its own: without them pooling it would learn too little."""
    lora = LoraSettings(rank=3, targets=("query-value",))
    found = adapter(stage_of(tiny("longformer"), "tail", 2, 1, causal=False, lora=lora))
    attention = "encoder.layer.5.attention.self"
    assert set(found) == {
        f"{attention}.{name}.lora_{factor}.weight"
        for name in ("query", "value", "query_global", "value_global")
        for factor in "AB"
    }


def test_longformer_attends_both_ways() -> None:
    with pytest.raises(ModelError, match="can't be made causal") as error:
        stage_of(tiny("longformer"), "whole", 0, 0, causal=True)
    one_line(error)


@pytest.mark.parametrize("windows", [8, [8] * 6, [4, 8] * 3], ids=str)
def test_longformers_stages_pad_alike(windows: int | list[int]) -> None:
    config = tiny_config("longformer")
    config.attention_window = windows
    weights = MemoryWeights(tiny("longformer").state_dict())
    for role, span in spans(6, 0, 1).items():
        stage = build_stage(config, weights, role, span, causal=False)
        assert stage.window == 8  # also where its own blocks have smaller windows, or none at all
        layout = layout_of([5, 11])
        assert stage(random_hidden(layout), layout).shape == (2, 11, WIDTH)


def test_factors_depend_on_the_seed_and_the_name_alone() -> None:
    lora = LoraSettings(rank=3)
    torch.manual_seed(0)
    first = adapter(stage_of(tiny("bert"), "whole", 0, 0, lora=lora, seed=1))
    torch.manual_seed(7)
    again = adapter(stage_of(tiny("bert"), "whole", 0, 0, lora=lora, seed=1))
    other = adapter(stage_of(tiny("bert"), "whole", 0, 0, lora=lora, seed=2))
    firsts = [name for name in first if ".lora_A." in name]
    for name in firsts:
        assert torch.equal(first[name], again[name])
        assert not torch.equal(first[name], other[name])
        bound = WIDTH**-0.5  # Kaiming-uniform with a = sqrt(5): 1 / sqrt(inputs)
        assert 0.8 * bound < float(first[name].abs().max()) <= bound
    assert not torch.equal(first[firsts[0]], first[firsts[1]])


def test_only_the_adapter_is_trained_and_a_may_be_frozen() -> None:
    for freeze_a in (False, True):
        stage = stage_of(tiny("bert"), "trunk", 2, 1, lora=LoraSettings(freeze_a=freeze_a))
        trained = {n for n, p in stage.named_parameters() if p.requires_grad}
        assert len(trained) == (6 if freeze_a else 12)
        assert all(".lora_" in name for name in trained)
        assert not any(freeze_a and ".lora_A." in name for name in trained)


def test_unknown_targets() -> None:
    with pytest.raises(ModelError, match=r"no_such.*'query'") as error:
        stage_of(tiny("bert"), "head", 2, 1, lora=LoraSettings(targets=("no_such",)))
    one_line(error)


def test_a_fresh_adapter_changes_nothing() -> None:
    layout = layout_of([5, 2])
    bare = stage_of(tiny("bert"), "whole", 0, 0)
    adapted = stage_of(tiny("bert"), "whole", 0, 0, lora=LoraSettings(dropout=0.5))
    bare.eval()
    adapted.eval()
    hidden = random_hidden(layout)
    assert torch.equal(bare(hidden, layout), adapted(hidden, layout))


def test_attaching_leaves_a_serving_stage_serving() -> None:
    stage = stage_of(tiny("bert"), "whole", 0, 0).eval()
    attach(stage, LoraSettings(dropout=0.5), 0)
    assert not any(module.training for module in stage.modules())
    assert any(isinstance(m, KeyedDropout) for m in stage.modules())


def test_write_refuses_what_does_not_fit() -> None:
    stage = stage_of(tiny("bert"), "tail", 2, 1, lora=LoraSettings(rank=2))
    own = adapter(stage)
    fitting = random_factors(own)
    name = next(iter(fitting))
    with pytest.raises(ModelError, match="do not fit"):
        write(own, {n: t for n, t in fitting.items() if n != name})
    with pytest.raises(ModelError, match="do not fit"):
        write(own, fitting | {"extra": torch.zeros(1)})
    with pytest.raises(ModelError, match="expected"):
        write(own, fitting | {name: torch.zeros(1, 1)})
    write(own, fitting)
    assert all(torch.equal(own[n], t) for n, t in fitting.items())


# --- replicas -------------------------------------------------------------------------------------


@pytest.mark.parametrize("freeze_a", [False, True])
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_a_replica_shares_what_is_frozen_and_nothing_else(kind: str, freeze_a: bool) -> None:
    lora = LoraSettings(rank=2, dropout=0.2, targets=TARGETS[kind], freeze_a=freeze_a)
    stage = stage_of(tiny(kind), "whole", 0, 0, dropout=0.2, lora=lora)
    twin = stage.replica()
    factors = {id(p) for p in adapter(stage).values()}
    pairs = zip(stage.named_parameters(), twin.named_parameters(), strict=True)
    for (name, mine), (other_name, other) in pairs:
        assert name == other_name
        # A frozen A is still the client's: another one's may not be written over it.
        assert (mine.data_ptr() == other.data_ptr()) is (id(mine) not in factors), name
        assert mine.requires_grad is other.requires_grad
        assert torch.equal(mine, other)
    for buffer, same in zip(stage.buffers(), twin.buffers(), strict=True):
        assert buffer.data_ptr() == same.data_ptr()
    keys = {id(m.key) for m in twin.modules() if isinstance(m, KeyedDropout)}
    assert keys == {id(twin.key)}
    assert twin.key is not stage.key
    before = {name: p.detach().clone() for name, p in adapter(stage).items()}
    install(twin, random_factors(adapter(twin)))
    assert all(torch.equal(p, before[name]) for name, p in adapter(stage).items())


def test_model_builder_is_deterministic() -> None:
    models: list[PreTrainedModel] = [tiny("bert"), tiny.__wrapped__("bert")]
    a, b = (m.state_dict() for m in models)
    assert all(torch.equal(a[name], b[name]) for name in a)
