"""Item texts become vectors once: the cache goes by content."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from fellrec.errors import ModelError
from fellrec.models.text import encode_texts
from tests.builders import WIDTH, tiny

WORDS = ["[PAD]", "[UNK]", "toy", "story", "heat", "class", "drama", "comedy"]
TEXTS = ["toy story", "heat", "toy story class comedy", "heat class drama"]


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    folder = tmp_path / "encoder"
    tiny("bert").save_pretrained(folder)
    tokenizer = Tokenizer(WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]"
    ).save_pretrained(folder)
    return folder


def test_vectors_are_normalised_means_over_tokens(encoder: Path, tmp_path: Path) -> None:
    done: list[tuple[int, int]] = []
    found = encode_texts(
        TEXTS,
        encoder,
        tmp_path / "cache",
        batch_size=3,
        progress=lambda n, of: done.append((n, of)),
    )
    assert done == [(3, 4), (4, 4)]
    assert found.shape == (4, WIDTH) and found.dtype == torch.float32
    model = tiny("bert")
    for text, vector in zip(TEXTS, found, strict=True):  # one at a time, without padding
        tokens = torch.tensor([[WORDS.index(word) for word in text.split()]])
        mean = model(tokens).last_hidden_state[0].mean(0).detach()
        torch.testing.assert_close(vector, mean / mean.norm(), rtol=1e-5, atol=1e-5)


def test_the_second_time_nothing_is_computed(encoder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = encode_texts(TEXTS, encoder, cache)
    (file,) = cache.iterdir()
    marked = torch.nn.functional.normalize(torch.ones_like(first), dim=-1)
    save_file({"vectors": marked}, file)
    calls: list[int] = []
    again = encode_texts(TEXTS, encoder, cache, progress=lambda n, of: calls.append(n))
    assert torch.equal(again, marked)
    assert calls == []


@pytest.mark.parametrize("damage", ["cut", "noise", "rows", "nan", "name"])
def test_a_damaged_file_is_computed_again(encoder: Path, tmp_path: Path, damage: str) -> None:
    cache = tmp_path / "cache"
    first = encode_texts(TEXTS, encoder, cache)
    (file,) = cache.iterdir()
    match damage:
        case "cut":
            file.write_bytes(file.read_bytes()[:-9])
        case "noise":
            file.write_bytes(b"\xff" * 100)
        case "rows":
            save_file({"vectors": first[:2].contiguous()}, file)
        case "nan":
            save_file({"vectors": first * float("nan")}, file)
        case "name":
            save_file({"other": first}, file)
    assert torch.equal(encode_texts(TEXTS, encoder, cache), first)
    assert torch.equal(load_file(file)["vectors"], first)
    assert [path.name for path in cache.iterdir()] == [file.name]  # no temporary file stays


def test_other_texts_and_other_encoders_are_other_files(encoder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = encode_texts(TEXTS, encoder, cache)
    encode_texts(TEXTS[::-1], encoder, cache)
    # The same letters, cut elsewhere into texts.
    encode_texts(["toy ", "storyheat", *TEXTS[2:]], encoder, cache)
    assert len(list(cache.iterdir())) == 3
    tensors = load_file(encoder / "model.safetensors")
    tensors["embeddings.word_embeddings.weight"].mul_(-1.0)
    save_file(tensors, encoder / "model.safetensors", metadata={"format": "pt"})
    assert not torch.allclose(encode_texts(TEXTS, encoder, cache), first)
    assert len(list(cache.iterdir())) == 4


def test_an_encoder_that_can_not_be_used(encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError) as error:
        encode_texts(TEXTS, tmp_path / "none", tmp_path / "cache")
    assert "\n" not in str(error.value)
    (encoder / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="can't be loaded") as error:
        encode_texts(TEXTS, encoder, tmp_path / "cache")
    assert "\n" not in str(error.value)
