"""What a run would take, before anything is loaded: data, clients, sizes, traffic, memory.

The data are loaded, split and divided as in the run itself. Of the base only the configuration is
read: its stages are built as shapes without values, with real adapters on them, so what is counted
here is what `summary.json` counts in the end. Traffic comes from the batches that each client
would draw for its first epoch. How long these are is

- "exact" for hllm, which reads items,
- "tokenised" for the others where the base's tokenizer is in the cache or the base's folder,
- "estimated" where it is not: four characters are then taken for a token.

The memory of each side, in a process of its own, is that of `federation.memory`, whose docstring
has the formula; docs/runs.md has it beside what was measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
from fellrec.federation.memory import Widest, foreseen_memory
from fellrec.federation.recommenders import (
    bigrec,
    hllm,
    load_tokenizer,
    outline_part,
    recformer,
)
from fellrec.federation.settings import client_settings, lora_settings
from fellrec.federation.shares import Shares, share_data
from fellrec.federation.sizes import sizes
from fellrec.models.adapters import adapter, attach
from fellrec.models.bases import parse_config
from fellrec.models.bigrec import require_decoder
from fellrec.models.placement import quantised_saving
from fellrec.models.recommender import Batch, Kind, NoTrunk, Recommender
from fellrec.models.stages import Role, Stage
from fellrec.split.codecs import Codec, encoded_size

_CHARACTERS = 4  # of one token, about, in English titles
_FLOAT = 4
_ROLES: tuple[Role, ...] = ("head", "trunk", "tail")


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
    clients, learned, scored = [], Widest(), Widest()
    for number, row in enumerate(describe(shares.split, shares.partition)):
        name = shares.partition.names[number]
        settings = client_settings(config, shares.quotas[number])
        client = Client(name, shares.of(number), recommender, NoTrunk(), settings)
        steps = [batch.micro(settings.micro_batches) for batch in client.epoch(0, 0)]
        epochs = settings.local_epochs * passes(config)
        parts = [part for step in steps for part in step]
        learned = learned.over(parts, head.window)
        scored = scored.over_scored(client, head.window)
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
    cost = _cost(config, recommender, server)
    return {
        "name": config.name,
        "dataset": shares.dataset.name,
        "recommender": config.model.recommender,
        "base": config.model.base,
        "rounds": config.train.rounds,
        "users": len(shares.split),
        "users_dropped": shares.split.dropped,
        "items": len(shares.dataset.catalogue),
        "lengths": lengths,
        "clients": clients,
        "cost": cost,
        "memory": foreseen_memory(
            config, recommender, server, cost, learned, scored, shares.dataset
        ),
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


def _cost(
    config: RunConfig, recommender: Recommender, server: Stage | None
) -> dict[str, int | float]:
    """Count what the two sides hold and train."""
    cost = sizes(recommender, server)
    if config.model.quantize != "none":
        stages = [recommender.head, recommender.tail]
        cost["client_bytes"] -= sum(_saving(config, stage) for stage in stages)
        cost["server_bytes"] -= 0 if server is None else _saving(config, server)
    trained = _count(recommender.parameters_of(*Kind).values())
    there = 0 if server is None else _count(adapter(server).values())
    return cost | {"client_trained_parameters": trained, "server_trained_parameters": there}


def _saving(config: RunConfig, stage: Stage) -> int:
    quantize = config.model.quantize
    return quantised_saving(stage.body, stage.family.layers, quantize, stage.place.dtype)


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(p.numel() for p in parameters if p.requires_grad)
