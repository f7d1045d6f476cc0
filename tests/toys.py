"""A data set and base models so small that a whole federation trains on them within a second.

The data are RecBole's files: users of three shops, each with a taste for one of three genres. The
bases are random BERT-like and Llama-like models of three blocks, with a tokenizer, as folders. All
of it serves as `data.source`, `model.base` and `model.item_encoder`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from fellrec.config import RunConfig

SHOPS = ("north", "south", "east")
GENRES = ("space", "love", "crime")
ITEMS, USERS, WIDTH, ENCODER_WIDTH, BLOCKS = 36, 27, 32, 24, 3


@dataclass(frozen=True)
class Toys:
    """data: folder of the data set. bert, llama, lm: base models, lm with an output layer. encoder:
    another width. cache: empty.

    Use `recipe` for a run; the cache belongs into the variable FELLREC_CACHE.
    """

    data: Path
    bert: Path
    llama: Path
    lm: Path
    encoder: Path
    cache: Path

    def recipe(self, overrides: Mapping[str, object] | None = None) -> RunConfig:
        """Return a run of two rounds over three clients, dropout on; `overrides` by dotted key."""
        values: dict[str, object] = {
            "data.source": str(self.data),
            "clients.partition": "column",
            "clients.column": "shop",
            "model.base": str(self.bert),
            "model.item_encoder": str(self.encoder),
            "model.history": 8,
            "lora.rank": 2,
            "lora.alpha": 4,
            "train.rounds": 2,
            "train.local_epochs": 1,
            "train.batch_size": 4,
            "train.learning_rate": 0.01,
            "train.threads": 1,
            "evaluation.ks": [3, 10],
            "evaluation.metric": "ndcg@10",
            **(overrides or {}),
        }
        return RunConfig.from_text("", "toys", {"name": "toys"}, values)

    def environment(self) -> dict[str, str]:
        """Return this process's environment with the cache in it."""
        return {**os.environ, "FELLREC_CACHE": str(self.cache)}


def build(folder: Path) -> Toys:
    """Write everything below `folder`."""
    toys = Toys(*(folder / name for name in ("toys", "bert", "llama", "lm", "encoder", "cache")))
    _write_data(toys.data)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        _save(BertModel(_bert(WIDTH), add_pooling_layer=False), toys.bert)
        _save(LlamaModel(_llama()), toys.llama)
        _save(LlamaForCausalLM(_language_model()), toys.lm)
        _save(BertModel(_bert(ENCODER_WIDTH), add_pooling_layer=False), toys.encoder)
    toys.cache.mkdir()
    return toys


def titles() -> list[str]:
    """Return all titles, by item index; the last two items share one."""
    names = [f"{GENRES[i % 3]} story {i}" for i in range(ITEMS)]
    return [*names[:-1], names[-2]]


def _write_data(folder: Path) -> None:
    rng = np.random.default_rng(7)
    folder.mkdir(parents=True)
    items = [f"i{i}\t{title}\t{GENRES[i % 3]}" for i, title in enumerate(titles())]
    rows, users = [], []
    for user in range(USERS):
        users.append(f"u{user}\t{SHOPS[user % 3]}")
        own = np.flatnonzero(np.arange(ITEMS) % 3 == user % 3)
        others = np.flatnonzero(np.arange(ITEMS) % 3 != user % 3)
        # A walk through the own genre with one stray: there is something to learn.
        walk = [int(own[(user + step) % len(own)]) for step in range(int(rng.integers(5, 12)))]
        walk[int(rng.integers(len(walk)))] = int(rng.choice(others))
        rows += [f"u{user}\ti{item}\t{time}" for time, item in enumerate(walk)]
    for ending, header, lines in (
        ("item", "item_id:token\ttitle:token_seq\tgenre:token", items),
        ("user", "user_id:token\tshop:token", users),
        ("inter", "user_id:token\titem_id:token\ttimestamp:float", rows),
    ):
        (folder / f"{folder.name}.{ending}").write_text("\n".join([header, *lines]) + "\n")


def _words() -> list[str]:
    words = {word for title in titles() for word in title.split()} | {*GENRES, "genre", ".", ":"}
    return ["[PAD]", "[UNK]", *sorted(words)]


def _save(model: PreTrainedModel, folder: Path) -> None:
    model.save_pretrained(folder)
    vocabulary = {word: number for number, word in enumerate(_words())}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", model_max_length=64
    )
    wrapped.save_pretrained(folder)


def _bert(width: int) -> BertConfig:
    return BertConfig(
        vocab_size=len(_words()),
        hidden_size=width,
        num_hidden_layers=BLOCKS,
        num_attention_heads=2,
        intermediate_size=2 * width,
        max_position_embeddings=64,
        initializer_range=0.2,  # the usual 0.02 leaves attention nearly uniform at this width
        pad_token_id=0,
    )


def _llama() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(_words()),
        hidden_size=WIDTH,
        num_hidden_layers=BLOCKS,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=2 * WIDTH,
        max_position_embeddings=64,
        initializer_range=0.2,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )


def _language_model() -> LlamaConfig:
    config = _llama()
    config.tie_word_embeddings = True
    config.max_position_embeddings = 256  # a prompt is longer than eight items
    return config
