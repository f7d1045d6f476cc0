"""What a run would take, before anything is loaded: data, clients, sizes, traffic, memory.

The data are loaded, split and divided as in the run itself. Of the base only the configuration is
read: its stages are built as shapes without values, with real adapters on them, so what is counted
here is what `summary.json` counts in the end. Traffic comes from the batches that each client
would draw for its first epoch. How long these are is

- "exact" for hllm, which reads items,
- "tokenised" for the others where the base's tokenizer is in the cache or the base's folder,
- "estimated" where it is not: four characters are then taken for a token.

Memory of one side in training, in bytes:

    weights      all tensors that it holds, and on the server a session's copy of the adapter
    training     12 for each trained parameter: its gradient and AdamW's two moments
    activations  f · p · (blocks + 1) · k
    scores       client only: 8 · targets · classes, and what goes with the table of items

f is the number of micro-batches under way at the same time, and p the number of places, padding
included, in the largest micro-batch of any client. k is what
autograd keeps of one place in one block: queries, keys, values and the attention's output; the
inputs of two norms; the inside of the feed-forward part, which gated ones hold three times; masks
of dropout; and each adapted layer's input, with its mask. One block more stands for gradients on
their way back. Longformer's windows overlap, so queries and keys are there twice and values three
times, with three more for the first place's attention and weights over two and a half windows.
Classes are the catalogue's items, or the base's tokens where these are what is predicted: logits
and their logarithms are there at once. hllm holds vectors of all items and their lengthened kin
with a gradient of each, recformer the vectors alone.

Not in it: the program and its libraries, a few hundred MB, the data, buffers of the wire, and what
the allocator keeps of memory that was freed. docs/runs.md has it beside what was measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from fellrec.config import RunConfig
from fellrec.data.interactions import Dataset
from fellrec.data.partition import describe
from fellrec.data.sources import known_config, model_here
from fellrec.federation.client import Client
from fellrec.federation.decisions import passes, strategy_for
from fellrec.federation.recommenders import (
    bigrec,
    hllm,
    load_tokenizer,
    outline_part,
    recformer,
)
from fellrec.federation.sizes import sizes
from fellrec.federation.workspace import Shares, client_settings, lora_settings, share_data
from fellrec.models.adapters import adapter, attach
from fellrec.models.bases import parse_config
from fellrec.models.bigrec import require_decoder
from fellrec.models.placement import quantised_saving
from fellrec.models.recommender import Batch, Kind, NoTrunk, Recommender
from fellrec.models.stages import Role, Stage
from fellrec.split.codecs import Codec, encoded_size

_CHARACTERS = 4  # of one token, about, in English titles
_TRAINED_BYTES = 12  # gradient and two moments of a float32 parameter
_FLOAT = 4
_ROLES: tuple[Role, ...] = ("head", "trunk", "tail")


@dataclass(frozen=True)
class _Peak:
    """The largest micro-batch: places, padding included, and targets; of different ones, maybe."""

    places: int = 0
    targets: int = 0

    def over(self, parts: Sequence[Batch], window: int) -> _Peak:
        """Return the larger of this and of some micro-batches, whose rows fill whole windows."""
        step = window or 1
        widths = (-(-part.layout.width // step) * step for part in parts)
        places = (len(p.layout.lengths) * width for p, width in zip(parts, widths, strict=True))
        targets = (len(part.targets) for part in parts)
        return _Peak(max([self.places, *places]), max([self.targets, *targets]))


def dry_run(config: RunConfig) -> dict[str, Any]:
    """Say what a recipe would take; docs/runs.md explains the keys.

    Nothing is brought or written but data that a name asks for. Raises the FellrecError that the
    run would begin with.
    """
    return foreseen(config, share_data(config))


def foreseen(config: RunConfig, shares: Shares) -> dict[str, Any]:
    """Say it of data that are shared out already; shares: as the recipe's [data] and [clients] ask.

    Raises the FellrecError that the run would begin with.
    """
    exchanges = strategy_for(config).exchanges
    architecture = parse_config(known_config(config.model.base), config.model.base)
    head, trunk, tail = (_outline(config, architecture, role) for role in _ROLES)
    server = trunk if trunk.blocks else None
    recommender, lengths = _recommender(config, shares.dataset, architecture, head, tail)
    exchanged = recommender.parameters_of(Kind.LORA, Kind.DENSE).values()
    adapter_bytes = _FLOAT * _count(exchanged) if exchanges else 0
    clients, peak = [], _Peak()
    for number, row in enumerate(describe(shares.split, shares.partition)):
        name = shares.partition.names[number]
        settings = client_settings(config, shares.quotas[number])
        client = Client(name, shares.of(number), recommender, NoTrunk(), settings)
        steps = [batch.micro(settings.micro_batches) for batch in client.epoch(0, 0)]
        epochs = settings.local_epochs * passes(config)
        parts = [part for step in steps for part in step]
        peak = peak.over(parts, head.window)
        clients.append(
            {
                "id": name,
                "users": row["users"],
                "interactions": row["interactions"],
                "sequences": sum(len(part.rows) for part in parts),
                "steps": epochs * len(steps),
                "positions": epochs * sum(part.layout.total for part in parts),
                "adapter_bytes": adapter_bytes,
                **_crossing(config, recommender, server, parts),
            }
        )
    items = len(shares.dataset.catalogue)
    return {
        "name": config.name,
        "dataset": shares.dataset.name,
        "recommender": config.model.recommender,
        "base": config.model.base,
        "rounds": config.train.rounds,
        "users": len(shares.split),
        "users_dropped": shares.split.dropped,
        "items": items,
        "lengths": lengths,
        "clients": clients,
        **_sides(config, recommender, server, peak, items),
    }


def _outline(config: RunConfig, architecture: PretrainedConfig, role: Role) -> Stage:
    stage = outline_part(config, architecture, role)
    attach(stage, lora_settings(config), config.seed)
    return stage


def _recommender(
    config: RunConfig, dataset: Dataset, architecture: PretrainedConfig, head: Stage, tail: Stage
) -> tuple[Recommender, str]:
    """Put the recommender together around shapes; also say where its lengths come from."""
    model = config.model
    if model.recommender == "hllm":
        encoder = parse_config(known_config(model.item_encoder), model.item_encoder)
        vectors = torch.empty(len(dataset.catalogue), encoder.hidden_size, device="meta")
        return hllm(config, head, tail, vectors), "exact"
    folder = model_here(model.base)
    tokenizer = _stand_in() if folder is None else load_tokenizer(folder)
    lengths = "estimated" if folder is None else "tokenised"
    if model.recommender == "recformer":
        return recformer(config, dataset, tokenizer, head, tail), lengths
    require_decoder(head)
    table: Tensor = head.body.get_submodule(head.family.tokens).get_parameter("weight")
    # The very table where the two are tied, so that it is counted once.
    output = table if architecture.tie_word_embeddings else torch.empty_like(table)
    return bigrec(config, dataset, tokenizer, head, tail, output), lengths


def _stand_in() -> PreTrainedTokenizerBase:
    """Return a tokenizer that takes each four characters for a token, all of them the same one."""
    same = "?" * _CHARACTERS
    bare = Tokenizer(models.WordLevel({same: 0, "<end>": 1}, unk_token=same))
    bare.pre_tokenizer = pre_tokenizers.Split(Regex(rf"[\s\S]{{1,{_CHARACTERS}}}"), "isolated")
    bare.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=bare, eos_token="<end>")


def _crossing(
    config: RunConfig, recommender: Recommender, server: Stage | None, parts: Sequence[Batch]
) -> dict[str, int]:
    """Count the bytes of tensors that cross the cut in a round, each way; headers are not in it."""
    if server is None:
        return {"activation_bytes": 0, "gradient_bytes": 0}
    epochs = config.train.local_epochs * passes(config)
    codec, width = Codec(config.split.codec), server.width
    learned = sum(encoded_size(part.layout.total, width, codec) for part in parts)
    again = recommender.epoch_positions
    given = encoded_size(again, width, codec) if again else 0
    return {"activation_bytes": epochs * (learned + given), "gradient_bytes": epochs * learned}


def _sides(
    config: RunConfig, recommender: Recommender, server: Stage | None, peak: _Peak, items: int
) -> dict[str, Any]:
    """Count what the two sides hold, and the memory that each needs in training."""
    stages = [recommender.head, recommender.tail]
    cost = sizes(recommender, server)
    if config.model.quantize != "none":
        cost["client_bytes"] -= sum(_saving(config, stage) for stage in stages)
        cost["server_bytes"] -= 0 if server is None else _saving(config, server)
    trained = _count(recommender.parameters_of(*Kind).values())
    there = 0 if server is None else _count(adapter(server).values())
    cost |= {"client_trained_parameters": trained, "server_trained_parameters": there}
    match config.model.recommender:
        case "hllm":
            table, classes = 4 * items, items
        case "recformer":
            table, classes = items, items
        case "bigrec":
            table, classes = 0, int(recommender.head.body.config.vocab_size)
    scores = _FLOAT * (table * recommender.head.width + 2 * peak.targets * classes)
    copy = _FLOAT * int(cost["server_adapter_parameters"])
    places = peak.places * min(config.train.in_flight, config.train.micro_batches)
    return {
        "cost": cost,
        "memory": {
            "client": _memory(
                int(cost["client_bytes"]), trained, _kept(config, stages) * places, scores
            ),
            "server": _memory(
                int(cost["server_bytes"]) + copy,
                there,
                0 if server is None else _kept(config, [server]) * places,
                0,
            ),
        },
    }


def _memory(weights: int, trained: int, activations: int, scores: int) -> dict[str, int]:
    parts = {
        "weights": weights,
        "training": _TRAINED_BYTES * trained,
        "activations": activations,
        "scores": scores,
    }
    return {**parts, "total": sum(parts.values())}


def _saving(config: RunConfig, stage: Stage) -> int:
    quantize = config.model.quantize
    return quantised_saving(stage.body, stage.family.layers, quantize, stage.place.dtype)


def _kept(config: RunConfig, stages: Sequence[Stage]) -> int:
    """Bytes that autograd keeps of one place in all blocks of one side, and in one block more."""
    blocks = sum(stage.blocks for stage in stages)
    kept = sum(_kept_in_blocks(config, stage) for stage in stages)
    return kept + kept // max(blocks, 1)


def _kept_in_blocks(config: RunConfig, stage: Stage) -> int:
    own, size = stage.body.config, stage.place.dtype.itemsize
    channels = getattr(own, "head_dim", None) or stage.width // own.num_attention_heads
    queries = own.num_attention_heads * channels
    keys = (getattr(own, "num_key_value_heads", None) or own.num_attention_heads) * channels
    inside = own.intermediate_size * (3 if stage.family.decoder else 1)
    # The norms of decoders compute in float32 whatever comes in.
    norms = 2 * stage.width * (_FLOAT if stage.family.decoder else size)
    if any(name.endswith(".q_norm") for name, _ in stage.body.named_modules()):
        norms += (queries + keys) * _FLOAT
    attention = 2 * queries + 2 * keys
    if stage.window:
        attention = 10 * queries + own.num_attention_heads * (5 * stage.window // 2 + 2)
    block = size * (attention + inside) + norms
    if not stage.family.decoder and config.model.dropout:
        block += 2 * stage.width * _FLOAT  # masks
    inputs = 2 if config.lora.dropout else 1
    adapted = sum(
        _FLOAT * (inputs * factor.shape[1] + factor.shape[0])
        for name, factor in adapter(stage).items()
        if ".lora_A." in name
    )
    return int(stage.blocks * block + adapted)


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(p.numel() for p in parameters if p.requires_grad)
