"""From a recipe to the recommender that it names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from fellrec.config import RunConfig
from fellrec.data.cache import cache_folder
from fellrec.data.interactions import Dataset
from fellrec.data.sources import fetch_model
from fellrec.errors import ModelError
from fellrec.models.bigrec import Bigrec, BigrecSettings, require_decoder
from fellrec.models.hllm import Hllm, HllmSettings
from fellrec.models.item_texts import item_texts
from fellrec.models.prompts import Prompts, PromptSettings, vocabulary
from fellrec.models.recformer import Recformer, RecformerSettings
from fellrec.models.recommender import Recommender
from fellrec.models.stages import Role, Stage, load_output, load_stage
from fellrec.models.text import encode_texts

Progress = Callable[[int, int], None]


def load_part(config: RunConfig, base: Path, role: Role) -> Stage:
    """Load one stage as the recommender wants it: with tokens or vectors, causal or not."""
    model = config.model
    return load_stage(
        base,
        role,
        model.k_in,
        model.k_out,
        causal=model.recommender != "recformer",
        tokens=model.recommender != "hllm",
        dropout=model.dropout,
    )


def build_recommender(
    config: RunConfig, dataset: Dataset, base: Path, head: Stage, tail: Stage, progress: Progress
) -> Recommender:
    """Put a recommender together around a client's stages.

    base: the folder of the base model. progress: told of texts that are encoded, done and in all.
    """
    match config.model.recommender:
        case "hllm":
            return _hllm(config, dataset, head, tail, progress)
        case "recformer":
            return _recformer(config, dataset, base, head, tail)
        case "bigrec":
            return _bigrec(config, dataset, base, head, tail)


def _hllm(
    config: RunConfig, dataset: Dataset, head: Stage, tail: Stage, progress: Progress
) -> Recommender:
    model = config.model
    vectors = encode_texts(
        dataset.catalogue.texts(),
        fetch_model(model.item_encoder),
        cache_folder() / "vectors",
        progress=progress,
    )
    settings = HllmSettings(model.history, model.item_residual, model.scale_init)
    return Hllm(head, tail, vectors, settings, config.seed)


def _recformer(
    config: RunConfig, dataset: Dataset, base: Path, head: Stage, tail: Stage
) -> Recommender:
    own = config.recformer
    texts = item_texts(dataset.catalogue, load_tokenizer(base), own.item_tokens)
    settings = RecformerSettings(
        config.model.history,
        own.max_tokens,
        own.temperature,
        own.fixed_after,
        random_prefixes=config.train.samples == 0,  # a sample is a history up to its target
    )
    return Recformer(head, tail, texts, settings)


def _bigrec(
    config: RunConfig, dataset: Dataset, base: Path, head: Stage, tail: Stage
) -> Recommender:
    own = config.bigrec
    require_decoder(head)
    thing, verb = vocabulary(dataset.name, own.thing, own.verb)
    prompts = Prompts(
        load_tokenizer(base),
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
    return Bigrec(head, tail, load_output(base, head), prompts, settings)


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
