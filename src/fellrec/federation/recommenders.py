"""From a recipe to the recommender that it names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

from torch import Tensor
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from fellrec.config import RunConfig
from fellrec.data.cache import cache_folder
from fellrec.data.interactions import Dataset
from fellrec.data.sources import fetch_model
from fellrec.errors import ModelError
from fellrec.models.bases import load_output, load_stage
from fellrec.models.bigrec import Bigrec, BigrecSettings, require_decoder
from fellrec.models.cutting import outline_stage
from fellrec.models.hllm import Hllm, HllmSettings
from fellrec.models.item_texts import item_texts
from fellrec.models.placement import DTYPES, placement
from fellrec.models.prompts import Prompts, PromptSettings, vocabulary
from fellrec.models.recformer import Recformer, RecformerSettings
from fellrec.models.recommender import Recommender
from fellrec.models.slicing import spans
from fellrec.models.stages import Role, Stage
from fellrec.models.text import encode_texts

Progress = Callable[[int, int], None]


class _Form(TypedDict):
    """What a recommender asks of all its stages, for `load_stage` and its kin."""

    causal: bool
    tokens: bool
    dropout: float


def _form(config: RunConfig) -> _Form:
    model = config.model
    return _Form(
        causal=model.recommender != "recformer",
        tokens=model.recommender != "hllm",
        dropout=model.dropout,
    )


def load_part(config: RunConfig, base: Path, role: Role) -> Stage:
    """Load one stage as the recommender wants it: with tokens or vectors, causal or not."""
    model = config.model
    place = placement(model.device, model.dtype, model.quantize)
    return load_stage(base, role, model.k_in, model.k_out, **_form(config), place=place)


def outline_part(config: RunConfig, architecture: PretrainedConfig, role: Role) -> Stage:
    """Make the shapes of one stage, without values; neither base nor accelerator need be here."""
    model = config.model
    span = spans(architecture.num_hidden_layers, model.k_in, model.k_out)[role]
    return outline_stage(architecture, role, span, **_form(config), dtype=DTYPES[model.dtype])


def build_recommender(
    config: RunConfig, dataset: Dataset, base: Path, head: Stage, tail: Stage, progress: Progress
) -> Recommender:
    """Put a recommender together around a client's stages.

    base: the folder of the base model. progress: told of texts that are encoded, done and in all.
    """
    match config.model.recommender:
        case "hllm":
            vectors = encode_texts(
                dataset.catalogue.texts(),
                fetch_model(config.model.item_encoder),
                cache_folder() / "vectors",
                progress=progress,
            )
            return hllm(config, head, tail, vectors)
        case "recformer":
            return recformer(config, dataset, load_tokenizer(base), head, tail)
        case "bigrec":
            require_decoder(head)
            tokenizer, output = load_tokenizer(base), load_output(base, head)
            return bigrec(config, dataset, tokenizer, head, tail, output)


def hllm(config: RunConfig, head: Stage, tail: Stage, vectors: Tensor) -> Hllm:
    """Make an HLLM; vectors: (items, d_text) of the items' texts."""
    model = config.model
    settings = HllmSettings(model.history, model.item_residual, model.scale_init)
    return Hllm(head, tail, vectors, settings, config.seed)


def recformer(
    config: RunConfig,
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    head: Stage,
    tail: Stage,
) -> Recformer:
    """Make a RecFormer."""
    own = config.recformer
    texts = item_texts(dataset.catalogue, tokenizer, own.item_tokens)
    settings = RecformerSettings(
        config.model.history,
        own.max_tokens,
        own.temperature,
        own.fixed_after,
        random_prefixes=config.train.samples == 0,  # a sample is a history up to its target
    )
    return Recformer(head, tail, texts, settings)


def bigrec(
    config: RunConfig,
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    head: Stage,
    tail: Stage,
    output: Tensor,
) -> Bigrec:
    """Make a BIGRec; output: (vocabulary, d), the output layer of its base."""
    own = config.bigrec
    thing, verb = vocabulary(dataset.name, own.thing, own.verb)
    prompts = Prompts(
        tokenizer,
        dataset.catalogue.titles,
        PromptSettings(
            thing,
            verb,
            config.model.history,
            own.title_tokens,
            min(own.max_tokens, head.context),
        ),
    )
    settings = BigrecSettings(own.decode, own.beams, own.prompts, own.loss_on, own.popularity)
    return Bigrec(head, tail, output, prompts, settings)


def load_tokenizer(base: Path) -> PreTrainedTokenizerBase:
    """Read the tokenizer of a base model's folder; ModelError when there is none to be used."""
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            base, local_files_only=True
        )
    except Exception as error:  # a damaged file makes these raise nearly anything, KeyError too
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ModelError(f"{base}: the tokenizer can't be loaded ({reason})") from error
    return tokenizer
