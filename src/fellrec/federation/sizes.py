"""What each side of the split holds, counted from its tensors, whether these have values or not."""

from __future__ import annotations

from collections.abc import Sequence

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


def sizes(recommender: Recommender, trunk: Stage | None) -> dict[str, int | float]:
    """Count what a client and the server hold, under the names that summary.json uses.

    trunk: the server's blocks, None where there are none.
    """
    stages = [recommender.head, recommender.tail]
    client_parameters, client_bytes = held([recommender])
    client_blocks, _ = held([block for stage in stages for block in _blocks(stage)])
    server_parameters, server_bytes, server_blocks, adapter_parameters = 0, 0, 0, 0
    if trunk is not None:
        server_parameters, server_bytes = held([trunk])
        server_blocks, _ = held(_blocks(trunk))
        adapter_parameters = sum(p.numel() for p in adapter(trunk).values())
    return {
        "client_parameters": client_parameters,
        "client_bytes": client_bytes,
        "client_blocks": sum(stage.blocks for stage in stages),
        "client_block_parameters": client_blocks,
        "server_parameters": server_parameters,
        "server_bytes": server_bytes,
        "server_blocks": trunk.blocks if trunk is not None else 0,
        "server_block_parameters": server_blocks,
        "server_adapter_parameters": adapter_parameters,
        "client_parameter_share": client_parameters / (client_parameters + server_parameters),
        "client_block_share": client_blocks / max(client_blocks + server_blocks, 1),
    }


def _blocks(stage: Stage) -> list[nn.Module]:
    return list(stage.body.get_submodule(stage.family.layers).children())
