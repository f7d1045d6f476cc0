from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from fellrec.data.tensor_files import BLOCK
from fellrec.errors import ModelError
from fellrec.models.bases import load_config, load_output, load_stage
from fellrec.models.cutting import outline_stage
from fellrec.models.manifest import NAME, check, digest, manifest_of, stage_tensors
from fellrec.models.slicing import spans
from fellrec.models.stages import Role
from fellrec.models.weights import SafetensorsWeights
from tests.builders import KINDS, tiny, tiny_config

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FELLREC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny("llama").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    tiny("llama").save_pretrained(tmp_path / "sharded", max_shard_size="10KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 3
    return tmp_path / "sharded"


def side(folder: Path, *roles: Role) -> list[str]:
    """Return the tensors of some stages, one block in the head and one in the tail."""
    config = load_config(folder)
    ranges = spans(config.num_hidden_layers, 1, 1)
    stages = [outline_stage(config, role, ranges[role], tokens=True) for role in roles]
    return stage_tensors(folder, stages)


def quietly(path: Path, change: Callable[[Path], object]) -> None:
    """Change a file and give it back its time, as a failing disk would."""
    before = path.stat()
    change(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def flip(path: Path, at: int = -1) -> None:
    """Flip a bit of one byte."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def within(path: Path, name: str) -> int:
    """Return where a tensor's last byte is in its file."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    return 7 + int(length) + int(json.loads(raw[8 : 8 + length])[name]["data_offsets"][1])


def rename(path: Path, old: bytes, new: bytes) -> None:
    """Replace bytes of the header by as many others."""
    data = path.read_bytes()
    assert len(old) == len(new)
    assert old in data
    path.write_bytes(data.replace(old, new, 1))


def resave(path: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_every_tensor_is_in_it_with_the_hash_of_its_bytes(folder: Path) -> None:
    tensors = load_file(folder / SINGLE)
    found = manifest_of(folder).tensors
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == "F32"
        assert found[name].shape == tuple(tensor.shape)
        assert found[name].sha256 == hashlib.sha256(tensor.numpy().tobytes()).hexdigest()


def test_two_copies_have_one_digest_and_another_model_has_another(
    folder: Path, sharded: Path, tmp_path: Path
) -> None:
    copied = Path(shutil.copytree(folder, tmp_path / "elsewhere" / "copy"))
    assert digest(folder) == digest(copied)
    # In which file a tensor is makes no difference.
    assert digest(folder) == digest(sharded)
    tiny("mistral").save_pretrained(tmp_path / "other")
    assert digest(tmp_path / "other") != digest(folder)


@pytest.mark.parametrize(
    ("key", "value", "decides"),
    [
        ("rms_norm_eps", 0.1, True),
        ("hidden_act", "relu", True),
        ("never_heard_of", 1, True),
        ("_name_or_path", "/somewhere/else", False),
        ("transformers_version", "0.0", False),
        ("use_cache", False, False),
        ("dtype", "bfloat16", False),
    ],
)
def test_what_of_the_config_decides_the_digest(
    key: str, value: object, decides: bool, folder: Path
) -> None:
    before = digest(folder)
    path = folder / "config.json"
    config: dict[str, Any] = json.loads(path.read_text())
    assert config.get(key) != value
    path.write_text(json.dumps({**config, key: value}, sort_keys=True))
    assert (digest(folder) != before) is decides


CHANGES: dict[str, Callable[[dict[str, Tensor]], object]] = {
    "value": lambda tensors: tensors["norm.weight"][3:4].add_(1.0),
    "sign of zero": lambda tensors: tensors["norm.weight"].zero_().neg_(),
    "dtype": lambda tensors: tensors.update({"norm.weight": tensors["norm.weight"].int()}),
    "shape": lambda tensors: tensors.update({"norm.weight": tensors["norm.weight"][None]}),
    "missing": lambda tensors: tensors.pop("norm.weight"),
    "more": lambda tensors: tensors.update({"norm.bias": torch.zeros(3)}),
    "name": lambda tensors: tensors.update({"norn.weight": tensors.pop("norm.weight")}),
    "swapped": lambda tensors: tensors.update(
        {
            "layers.0.input_layernorm.weight": tensors["layers.1.input_layernorm.weight"].clone(),
            "layers.1.input_layernorm.weight": tensors["layers.0.input_layernorm.weight"].clone(),
        }
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_any_change_of_the_weights_changes_the_digest(
    change: Callable[[dict[str, Tensor]], object], folder: Path
) -> None:
    before = digest(folder)
    resave(folder / SINGLE, change)
    assert digest(folder) != before


def test_it_is_made_once(folder: Path) -> None:
    before = digest(folder)
    kept = folder / NAME
    written = kept.stat()
    # Nothing but its time tells that this file was written to, and the time says it was not.
    quietly(folder / SINGLE, flip)
    assert digest(folder) == before
    assert kept.stat().st_mtime_ns == written.st_mtime_ns
    assert kept.stat().st_ino == written.st_ino
    os.utime(folder / SINGLE)
    assert digest(folder) != before
    assert kept.stat().st_ino != written.st_ino or kept.stat().st_mtime_ns != written.st_mtime_ns


def test_a_file_of_another_size_is_read_again(folder: Path) -> None:
    before = digest(folder)
    quietly(folder / SINGLE, lambda path: resave(path, CHANGES["more"]))
    assert digest(folder) != before


@pytest.mark.parametrize("kind", KINDS)
def test_each_side_checks_what_it_loads(kind: str, tmp_path: Path) -> None:
    tiny(kind).save_pretrained(tmp_path / kind)
    folder = tmp_path / kind
    client, trunk = side(folder, "head", "tail"), side(folder, "trunk")
    assert not set(client) & set(trunk)
    assert set(client) | set(trunk) == set(load_file(folder / SINGLE))
    sizes = {name: tensor.nbytes for name, tensor in load_file(folder / SINGLE).items()}
    assert check(folder, client) == sum(sizes[name] for name in client)
    assert check(folder, trunk) == sum(sizes[name] for name in trunk)


def test_what_a_side_does_not_load_may_be_damaged(folder: Path) -> None:
    client, trunk = side(folder, "head", "tail"), side(folder, "trunk")
    digest(folder)
    name = "layers.2.mlp.up_proj.weight"
    quietly(folder / SINGLE, lambda path: flip(path, within(path, name)))
    check(folder, client)
    with pytest.raises(ModelError, match=rf"tensor '{name}' .*its values differ.*fetch the model"):
        check(folder, trunk)


@pytest.mark.parametrize("at", ["first", "last"])
def test_one_byte_of_any_tensor_is_noticed(at: str, folder: Path) -> None:
    digest(folder)
    whole = (folder / SINGLE).read_bytes()
    for name, tensor in load_file(folder / SINGLE).items():
        end = within(folder / SINGLE, name)
        quietly(
            folder / SINGLE,
            lambda path, end=end, tensor=tensor: flip(  # type: ignore[misc]  # bound per loop
                path, end if at == "last" else end - tensor.nbytes + 1
            ),
        )
        with pytest.raises(ModelError, match=f"tensor {name!r}"):
            check(folder, side(folder, "head", "trunk", "tail"))
        quietly(folder / SINGLE, lambda path: path.write_bytes(whole))
    check(folder, side(folder, "head", "trunk", "tail"))


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b'norm.weight":{"dtype":"F32"', b'norm.weight":{"dtype":"I32"', "its dtype is I32, not"),
        (b'"norm.weight"', b'"norn.weight"', "no tensor 'norm.weight'"),
    ],
)
def test_a_header_that_says_something_else(
    old: bytes, new: bytes, reason: str, folder: Path
) -> None:
    own = side(folder, "tail")
    digest(folder)
    # The first norm in the header is a block's; the final one has no prefix.
    data = (folder / SINGLE).read_bytes()
    if not old.startswith(b'"'):
        old, new = b'"' + old, b'"' + new
    assert data.count(old) == 1
    quietly(folder / SINGLE, lambda path: rename(path, old, new))
    with pytest.raises(ModelError, match=reason):
        check(folder, own)


def test_a_shape_that_holds_as_many_values(folder: Path) -> None:
    own = side(folder, "tail")
    digest(folder)
    old, new = b'"layers.5.mlp.down_proj.weight":{"dtype":"F32","shape":[32,48]', b"[48,32]"
    quietly(folder / SINGLE, lambda path: rename(path, old, old[:-7] + new))
    with pytest.raises(ModelError, match=r"its shape is \(48, 32\), not \(32, 48\)"):
        check(folder, own)


def test_a_sharded_model_without_the_files_of_the_other_side(sharded: Path, tmp_path: Path) -> None:
    whole = digest(sharded)
    client, trunk = side(sharded, "head", "tail"), side(sharded, "trunk")
    weights = SafetensorsWeights(sharded)
    own = {weights.file(name).name for name in client}
    part = tmp_path / "part"
    part.mkdir()
    for path in sharded.iterdir():  # with new times, as a download has
        if path.suffix != ".safetensors" or path.name in own:
            (part / path.name).write_bytes(path.read_bytes())
    assert digest(part) == whole
    check(part, client)
    with pytest.raises(ModelError, match="can't be read"):
        check(part, trunk)
    flip(part / weights.file(client[0]).name, within(weights.file(client[0]), client[0]))
    with pytest.raises(ModelError, match=f"tensor '{client[0]}' .*its values differ"):
        check(part, client)
    (part / NAME).unlink()
    with pytest.raises(ModelError, match=r"lacks model-.* and a tensors\.json that was made"):
        digest(part)


def test_an_index_that_leads_out_of_the_folder_or_to_nothing(sharded: Path) -> None:
    index = json.loads((sharded / INDEX).read_text())
    name = "norm.weight"
    index["weight_map"][name] = "../model/model.safetensors"
    (sharded / INDEX).write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"lacks model\.safetensors"):
        digest(sharded)
    index["weight_map"][name] = index["weight_map"]["embed_tokens.weight"]
    (sharded / INDEX).write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"it has no tensor 'norm\.weight'; fetch the model again"):
        digest(sharded)


def test_a_folder_that_can_not_be_written_is_kept_in_the_cache(folder: Path, cache: Path) -> None:
    (folder / NAME).mkdir()  # nothing can be put there, not even by an administrator
    before = digest(folder)
    (kept,) = (cache / "manifests").iterdir()
    assert not list((folder / NAME).iterdir())
    quietly(folder / SINGLE, flip)
    assert digest(folder) == before
    kept.unlink()
    assert digest(folder) != before


def test_where_nothing_can_be_written_it_is_made_anew(folder: Path, cache: Path) -> None:
    (folder / NAME).mkdir()
    cache.touch()
    before = digest(folder)
    assert digest(folder) == before
    quietly(folder / SINGLE, flip)
    assert digest(folder) != before


@given(data=st.data())
def test_a_damaged_manifest_is_made_again(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    save_file({"a": torch.zeros(3), "b": torch.ones(2)}, folder / SINGLE)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    before = digest(folder)
    kept = bytearray((folder / NAME).read_bytes())
    at = data.draw(st.integers(0, len(kept) - 1))
    kept[at] = data.draw(st.integers(0, 255))
    (folder / NAME).write_bytes(kept if data.draw(st.booleans()) else kept[:at])
    assert digest(folder) == before
    check(folder, ["a", "b"])


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{}",
        '{"files": [], "tensors": {}}',
        '{"files": {"model.safetensors": [Infinity, 1]}, "tensors": {}}',
        '{"files": {}, "tensors": {"a": 1}}',
        "[" * 100_000,
    ],
)
def test_a_manifest_that_is_none(text: str, folder: Path) -> None:
    before = digest(folder)
    (folder / NAME).write_text(text)
    assert digest(folder) == before


def test_a_folder_without_a_model(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json"):
        digest(tmp_path)
    (folder / "pytorch_model.bin").write_bytes((folder / SINGLE).read_bytes())
    (folder / SINGLE).unlink()
    with pytest.raises(ModelError, match=r"no readable model\.safetensors"):
        digest(folder)
    with pytest.raises(ModelError, match=r"no readable model\.safetensors"):
        check(folder, ["norm.weight"])


def test_a_file_cut_short(folder: Path) -> None:
    own = side(folder, "tail")
    digest(folder)
    os.truncate(folder / SINGLE, (folder / SINGLE).stat().st_size - 1)
    for ask in (lambda: digest(folder), lambda: check(folder, own)):
        with pytest.raises(ModelError) as caught:
            ask()
        assert str(folder) in str(caught.value)


def test_a_tensor_that_the_model_does_not_have(folder: Path) -> None:
    with pytest.raises(ModelError, match="no tensor 'nothing'; use a matching base"):
        check(folder, ["nothing"])


@pytest.mark.parametrize("tied", [True, False])
def test_the_output_layer_is_the_clients_where_it_is_not_the_embedding(
    tied: bool, tmp_path: Path
) -> None:
    config = tiny_config("llama")
    assert isinstance(config, LlamaConfig)
    config.tie_word_embeddings = tied
    LlamaForCausalLM(config).save_pretrained(tmp_path / "lm")
    folder = tmp_path / "lm"
    load_output(folder, load_stage(folder, "head", 1, 1, tokens=True))
    outline = outline_stage(load_config(folder), "head", range(1), tokens=True)
    names = stage_tensors(folder, [outline], output=True)
    assert ("lm_head.weight" in names) is not tied
    assert "model.embed_tokens.weight" in names  # the names of the file, with its prefix
    check(folder, names)


def test_it_takes_the_memory_of_a_block_whatever_the_model_takes(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(8 * BLOCK, dtype=torch.uint8)}, tmp_path / SINGLE)
    (tmp_path / "config.json").write_text("{}")
    tracemalloc.start()
    try:
        digest(tmp_path)
        check(tmp_path, ["a"])
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 2 * BLOCK
