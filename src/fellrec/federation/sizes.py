"""What each side of the split holds, counted from its tensors, whether these have values or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from fellrec.models.adapters import adapter
from fellrec.models.dropout import KeyedDropout
from fellrec.models.placement import tensor_size
from fellrec.models.recommender import Recommender
from fellrec.models.stages import Stage


def held(modules: Sequence[nn.Module]) -> tuple[int, int]:
    """Count parameters and bytes of all tensors that modules hold, shared storage once.

    Buffers of whole numbers and the tables of dropout modules are no part of a model.
    """
    seen: dict[int, tuple[int, int]] = {}
    for part in (part for module in modules for part in module.modules()):
        if isinstance(part, KeyedDropout):
            continue
        buffers = (b for b in part.buffers(recurse=False) if b.is_floating_point())
        for tensor in [*part.parameters(recurse=False), *buffers]:
            seen[tensor.data_ptr() or id(tensor)] = tensor_size(tensor, part)
    counts, bytes_ = zip(*seen.values(), strict=True) if seen else ((), ())
    return sum(counts), sum(bytes_)


def client_sizes(recommender: Recommender) -> dict[str, int]:
    """Count what a client holds, under the names that summary.json uses."""
    stages = [recommender.head, recommender.tail]
    parameters, bytes_ = held([recommender])
    in_blocks, _ = held([block for stage in stages for block in _blocks(stage)])
    return {
        "client_parameters": parameters,
        "client_bytes": bytes_,
        "client_blocks": sum(stage.blocks for stage in stages),
        "client_block_parameters": in_blocks,
    }


def server_sizes(trunk: Stage | None) -> dict[str, int]:
    """Count what the server holds; trunk: its blocks, None where there are none."""
    parameters, bytes_, blocks, in_blocks, trained = 0, 0, 0, 0, 0
    if trunk is not None:
        parameters, bytes_ = held([trunk])
        blocks, (in_blocks, _) = trunk.blocks, held(_blocks(trunk))
        trained = sum(p.numel() for p in adapter(trunk).values())
    return {
        "server_parameters": parameters,
        "server_bytes": bytes_,
        "server_blocks": blocks,
        "server_block_parameters": in_blocks,
        "server_adapter_parameters": trained,
    }


def shares(client: Mapping[str, int], server: Mapping[str, int]) -> dict[str, int | float]:
    """Put both sides together, with the client's share of all parameters, and of the blocks'."""
    own, other = client["client_parameters"], server["server_parameters"]
    blocks = client["client_block_parameters"]
    return {
        **client,
        **server,
        "client_parameter_share": own / max(own + other, 1),
        "client_block_share": blocks / max(blocks + server["server_block_parameters"], 1),
    }


def sizes(recommender: Recommender, trunk: Stage | None) -> dict[str, int | float]:
    """Count what a client and the server hold."""
    return shares(client_sizes(recommender), server_sizes(trunk))


def _blocks(stage: Stage) -> list[nn.Module]:
    return list(stage.body.get_submodule(stage.family.layers).children())
