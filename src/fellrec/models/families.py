"""The kinds of models that can be cut, and where each keeps its parts."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PretrainedConfig

from fellrec.errors import ModelError


@dataclass(frozen=True)
class Family:
    """Where a kind of model keeps its parts.

    layers, embeddings, tokens, norm: paths below the base model. attention (query, key, value,
    output), mlp: paths of the linear modules below one layer.
    """

    layers: str
    embeddings: str
    tokens: str
    norm: str | None
    decoder: bool
    attention: tuple[str, str, str, str]
    mlp: tuple[str, ...]


BERT = Family(
    layers="encoder.layer",
    embeddings="embeddings",
    tokens="embeddings.word_embeddings",
    norm=None,
    decoder=False,
    attention=(
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
    ),
    mlp=("intermediate.dense", "output.dense"),
)
LLAMA = Family(
    layers="layers",
    embeddings="embed_tokens",
    tokens="embed_tokens",
    norm="norm",
    decoder=True,
    attention=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    mlp=("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
)
FAMILIES: dict[str, Family] = {
    "bert": BERT,
    "roberta": BERT,
    "xlm-roberta": BERT,
    "camembert": BERT,
    "longformer": BERT,
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "smollm3": LLAMA,
    "gemma": LLAMA,
}


def family_of(config: PretrainedConfig) -> Family:
    """Return the family of a configuration; ModelError lists the kinds that can be cut."""
    family = FAMILIES.get(config.model_type)
    if family is None:
        known = ", ".join(sorted(FAMILIES))
        raise ModelError(f"a {config.model_type} model can't be cut; use one of: {known}")
    return family
