"""A tiny data set, a tiny random BERT with its tokenizer, and a recipe of both; no network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.builders import VOCABULARY, tiny

USERS, ITEMS, LAYERS = 24, 30, 3
WORDS = ("red", "blue", "old", "new", "house", "road", "sea", "night", "king", "train")


def title(item: int) -> str:
    return f"{WORDS[item % 10]} {WORDS[(item // 10 + item) % 10]} {item}"


def write_dataset(folder: Path, users: int = USERS, items: int = ITEMS) -> Path:
    """Write a data set: users of three tastes, each with 8 items of a third of the catalogue."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    log = ["user_id:token\titem_id:token\ttimestamp:float"]
    for user in range(users):
        third = np.arange(user % 3, items, 3)
        chosen = rng.choice(third, size=8, replace=False).tolist()
        log += [f"u{user}\ti{item}\t{time}" for time, item in enumerate(chosen)]
    catalogue = ["item_id:token\ttitle:token_seq"]
    catalogue += [f"i{item}\t{title(item)}" for item in range(items)]
    (folder / "tiny.inter").write_text("\n".join(log) + "\n")
    (folder / "tiny.item").write_text("\n".join(catalogue) + "\n")
    return folder


def write_model(folder: Path, layers: int = LAYERS) -> Path:
    """Write config.json, model.safetensors and a tokenizer of a random BERT."""
    tiny("bert", layers).save_pretrained(folder)
    names = ["[PAD]", "[UNK]", *WORDS, *map(str, range(ITEMS))]
    vocabulary = {name: number for number, name in enumerate(names)}
    assert len(vocabulary) <= VOCABULARY
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]"
    )
    wrapped.save_pretrained(folder)
    return folder


def write_recipe(folder: Path, *, rounds: int = 2, clients: int = 3) -> Path:
    """Write a data set, a model and a recipe that names both into a new folder."""
    data, model = write_dataset(folder / "data"), write_model(folder / "model")
    recipe = folder / "tiny.toml"
    recipe.write_text(
        f"""
[data]
source = "{data}"

[clients]
count = {clients}

[model]
base = "{model}"
item_encoder = "{model}"
history = 10

[lora]
rank = 2
alpha = 4

[train]
rounds = {rounds}
local_epochs = 1
threads = 1

[evaluation]
ks = [2, 5]
metric = "ndcg@5"
"""
    )
    return recipe
