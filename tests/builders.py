"""Tiny random models, and the parts that tests of the models and of the split put together."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import (
    AutoModel,
    BertConfig,
    GemmaConfig,
    LlamaConfig,
    LongformerConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    RobertaConfig,
    SmolLM3Config,
)

from fellrec.data.interactions import Catalogue
from fellrec.models.adapters import LoraSettings, adapter, attach, write
from fellrec.models.bigrec import Bigrec, BigrecSettings
from fellrec.models.cutting import build_stage
from fellrec.models.dropout import StepKey
from fellrec.models.hllm import Hllm, HllmSettings
from fellrec.models.item_texts import item_texts
from fellrec.models.layout import Layout, Side
from fellrec.models.prompts import Prompts, PromptSettings
from fellrec.models.recformer import Recformer, RecformerSettings
from fellrec.models.recommender import Trunk
from fellrec.models.slicing import spans
from fellrec.models.stages import Role, Stage
from fellrec.models.weights import MemoryWeights
from fellrec.split.codecs import Codec
from fellrec.split.remote import RemoteTrunk
from fellrec.split.transport import InProcessTransport
from fellrec.split.trunk import SessionSettings, TrunkServer

LAYERS, WIDTH, VOCABULARY, TEXT_VOCABULARY = 6, 32, 50, 400
KINDS = ("bert", "roberta", "llama", "qwen3", "mistral", "smollm3", "gemma")
ENCODERS = ("bert", "roberta", "longformer")
TARGETS: Mapping[str, tuple[str, ...]] = {
    "bert": ("query", "value"),
    "roberta": ("query", "value"),
    "llama": ("q_proj", "v_proj"),
    "qwen3": ("q_proj", "v_proj"),
    "mistral": ("q_proj", "v_proj"),
    "smollm3": ("q_proj", "v_proj"),
    "gemma": ("q_proj", "v_proj"),
    "longformer": ("query", "value", "query_global", "value_global"),
}


def tiny_config(
    kind: str, layers: int = LAYERS, vocabulary: int = VOCABULARY, positions: int = 40
) -> PretrainedConfig:
    encoder: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": WIDTH,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": positions,
        "initializer_range": 0.2,  # the usual 0.02 leaves attention nearly uniform at this width
    }
    decoder = encoder | {"num_key_value_heads": 2, "head_dim": 8}
    match kind:
        case "bert":
            return BertConfig(**encoder)
        case "roberta":
            return RobertaConfig(**encoder, pad_token_id=1, type_vocab_size=1)
        case "llama":
            return LlamaConfig(**decoder)
        case "qwen3":
            # Layers of both kinds, so that a stage has to slice `layer_types` with its layers.
            return Qwen3Config(
                **decoder, sliding_window=3, use_sliding_window=True, max_window_layers=2
            )
        case "mistral":
            return MistralConfig(**decoder, sliding_window=3)
        case "smollm3":
            # Every third block without rotary positions: `no_rope_layers` is sliced as well.
            return SmolLM3Config(**decoder, no_rope_layer_interval=3, pad_token_id=0)
        case "gemma":
            return GemmaConfig(**decoder)
        case "longformer":
            # Blocks of unlike windows, shorter than the texts that tests give them.
            windows = ([4, 8] * layers)[:layers]
            return LongformerConfig(
                **encoder, pad_token_id=1, type_vocab_size=1, attention_window=windows
            )
    raise ValueError(kind)


@lru_cache
def tiny(
    kind: str, layers: int = LAYERS, vocabulary: int = VOCABULARY, positions: int = 40
) -> PreTrainedModel:
    """Return a model without any dropout, biases and norms random too; copy it before a change."""
    config = tiny_config(kind, layers, vocabulary, positions)
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        if hasattr(config, name):
            setattr(config, name, 0.0)
    torch.manual_seed(0)
    kwargs = {"add_pooling_layer": False} if kind in ENCODERS else {}
    model: PreTrainedModel = AutoModel.from_config(config, **kwargs)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape))
    model.eval()
    return model


def stage_of(
    model: PreTrainedModel,
    role: Role,
    k_in: int,
    k_out: int,
    *,
    causal: bool = True,
    tokens: bool = False,
    dropout: float = 0.0,
    lora: LoraSettings | None = None,
    seed: int = 0,
) -> Stage:
    """Build one stage of a model in memory, with an adapter if `lora` is given."""
    span = spans(model.config.num_hidden_layers, k_in, k_out)[role]
    weights = MemoryWeights(model.state_dict())
    stage = build_stage(
        model.config, weights, role, span, causal=causal, tokens=tokens, dropout=dropout
    )
    if lora is not None:
        attach(stage, lora, seed)
    return stage


def random_factors(names: Mapping[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
    """Draw every factor, B too, from (seed, name): with B = 0 no A would have a gradient."""
    key = StepKey(seed=seed)
    return {
        name: 0.3 * torch.randn(tensor.shape, generator=key.generator("test", name))
        for name, tensor in names.items()
    }


def install(stage: Stage, factors: Mapping[str, Tensor]) -> None:
    """Write the factors that belong to a stage, of a whole model's."""
    own = adapter(stage)
    write(own, {name: factors[name] for name in own})


def gradients(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Return a copy of every gradient; KeyError's kin, an assertion, where one is missing."""
    found = {}
    for name, parameter in parameters.items():
        assert parameter.grad is not None, f"{name} has no gradient"
        found[name] = parameter.grad.clone()
    return found


def layout_of(lengths: Iterable[int], side: Side = "right") -> Layout:
    return Layout(np.array(list(lengths), np.int32), side)


def random_hidden(layout: Layout, seed: int = 0, width: int = WIDTH) -> Tensor:
    shape = (len(layout.lengths), layout.width, width)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class LocalTrunk(Trunk):
    """A trunk in the client's own memory; nothing steps it."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.stage = stage
        self.key = stage.key

    def forward(self, hidden: Tensor, layout: Layout) -> Tensor:
        output: Tensor = self.stage(hidden, layout)
        return output

    def prefill(self, hidden: Tensor, layout: Layout) -> Tensor:
        return self.stage.prefill(hidden, layout)

    def extend(self, hidden: Tensor, beams: npt.NDArray[np.int32]) -> Tensor:
        return self.stage.extend(hidden, beams)

    def end_step(self, squared_norm: float) -> float:
        return 0.0


def serve(
    trunk: Stage,
    settings: SessionSettings | None = None,
    *,
    client: str = "a",
    round: int = 0,
    factors: Mapping[str, Tensor] | None = None,
) -> TrunkServer:
    """Start a trunk server with one open session."""
    server = TrunkServer(trunk, settings or SessionSettings())
    server.open(client, round, factors)
    return server


def connect(
    server: TrunkServer, client: str = "a", round: int = 0, codec: Codec = Codec.FP32
) -> RemoteTrunk:
    remote = RemoteTrunk(InProcessTransport(server), codec=codec)
    remote.key.client, remote.key.round = client, round
    return remote


def point(
    keys: Iterable[StepKey], *, client: str, seed: int = 0, round: int = 0, step: int = 0
) -> None:
    """Tell stages where training stands."""
    for key in keys:
        key.seed, key.client, key.round, key.step, key.micro = seed, client, round, step, 0


def text_vectors(items: int, width: int = WIDTH, seed: int = 0) -> Tensor:
    vectors = torch.randn(items, width, generator=torch.Generator().manual_seed(seed))
    return nn.functional.normalize(vectors, dim=-1)


def tiny_hllm(
    *,
    items: int = 12,
    text_width: int = WIDTH,
    k_in: int = 1,
    k_out: int = 1,
    settings: HllmSettings | None = None,
    dropout: float = 0.0,
    lora: LoraSettings | None = None,
    layers: int = 3,
) -> tuple[Hllm, Stage]:
    """Return an HLLM over random text vectors, and its trunk."""
    model = copy.deepcopy(tiny("bert", layers))
    lora = lora or LoraSettings(rank=4, alpha=8, dropout=dropout)
    head, trunk, tail = (
        stage_of(model, role, k_in, k_out, dropout=dropout, lora=lora)
        for role in ("head", "trunk", "tail")
    )
    vectors = text_vectors(items, text_width)
    return Hllm(head, tail, vectors, settings or HllmSettings(history=6), 0), trunk


def tiny_catalogue(items: int = 12) -> Catalogue:
    """Return items of one word each, and a second one for all but each third."""
    words = [f"{first}{last}" for first in ("sun", "sea", "sky") for last in ("fall", "man", "bed")]
    titles = [f"{words[i % 9]}{'s' * (i // 9)}" for i in range(items)]
    kinds = ["" if i % 3 == 2 else ("tale", "song")[i % 2] for i in range(items)]
    ids = tuple(f"i{i}" for i in range(items))
    return Catalogue(ids, tuple(titles), {"item_kind": tuple(kinds)})


@lru_cache
def tiny_tokenizer(*named: str) -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer that knows the words of `tiny_catalogue` and spells all others.

    named: which of its special tokens it calls so: "pad", "eos", "bos", "cls", "unk".
    """
    bare = Tokenizer(models.BPE())
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    special = {f"{name}_token": f"<{name}>" for name in named}
    trainer = trainers.BpeTrainer(
        vocab_size=TEXT_VOCABULARY,
        min_frequency=1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[*special.values()],
        show_progress=False,
    )
    texts = [text.replace(":", "").replace(".", "") for text in tiny_catalogue().texts()]
    bare.train_from_iterator([f" title {text}" for text in texts], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bare, **special)


def tiny_recformer(
    catalogue: Catalogue | None = None,
    *,
    kind: str = "bert",
    k_in: int = 1,
    k_out: int = 1,
    settings: RecformerSettings | None = None,
    item_tokens: int = 8,
    dropout: float = 0.0,
    layers: int = 3,
) -> tuple[Recformer, Stage]:
    """Return a RecFormer over a random encoder, and its trunk."""
    model = tiny(kind, layers, TEXT_VOCABULARY, 100)
    lora = LoraSettings(rank=4, alpha=8, dropout=dropout)
    head, trunk, tail = (
        stage_of(model, role, k_in, k_out, causal=False, tokens=True, dropout=dropout, lora=lora)
        for role in ("head", "trunk", "tail")
    )
    texts = item_texts(catalogue or tiny_catalogue(), tiny_tokenizer("cls", "pad"), item_tokens)
    return Recformer(head, tail, texts, settings or RecformerSettings(history=6)), trunk


def tiny_bigrec(
    catalogue: Catalogue | None = None,
    *,
    kind: str = "llama",
    k_in: int = 1,
    k_out: int = 1,
    settings: BigrecSettings | None = None,
    prompts: PromptSettings | None = None,
    dropout: float = 0.0,
    layers: int = 3,
) -> tuple[Bigrec, Stage]:
    """Return a BIGRec over a random language model with a tied output layer, and its trunk."""
    model = tiny(kind, layers, TEXT_VOCABULARY, 400)
    # With its frozen embeddings, a random model learns to write by more than queries and values.
    lora = LoraSettings(rank=8, alpha=16, dropout=dropout, targets=("attention", "mlp"))
    head, trunk, tail = (
        stage_of(model, role, k_in, k_out, tokens=True, dropout=dropout, lora=lora)
        for role in ("head", "trunk", "tail")
    )
    texts = Prompts(
        tiny_tokenizer("eos"),
        (catalogue or tiny_catalogue()).titles,
        prompts or PromptSettings("story", "read", history=6, title_tokens=8, max_tokens=400),
    )
    output = model.get_input_embeddings().get_parameter("weight").detach()
    return Bigrec(head, tail, output, texts, settings or BigrecSettings(beams=12)), trunk
