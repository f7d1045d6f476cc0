"""From a recipe to the recommender that it names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fellrec.config import RunConfig
from fellrec.data.cache import cache_folder
from fellrec.data.interactions import Dataset
from fellrec.data.sources import fetch_model
from fellrec.models.hllm import Hllm, HllmSettings
from fellrec.models.recommender import Recommender
from fellrec.models.stages import Role, Stage, load_stage
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
    return _hllm(config, dataset, head, tail, progress)


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
