"""What the blocks of a stage take for each place of a batch, by their shapes.

A place is a position of the rectangle that a batch is laid out in, padding included. d is the width
of the activations, i that of the feed-forward part inside.
"""

from __future__ import annotations

from fellrec.config import RunConfig
from fellrec.models.adapters import adapter
from fellrec.models.stages import Stage

FLOAT = 4


def kept_by_blocks(config: RunConfig, stage: Stage) -> int:
    """Bytes that autograd keeps of one place in all blocks of a stage until its gradient is back.

    They are queries, keys, values and the attention's output; the inputs of two norms; the inside
    of the feed-forward part, which gated ones hold three times; masks of dropout; and each adapted
    layer's input, with its mask. Longformer's windows overlap, so queries and keys are there twice
    and values three times, with three more for the first place's attention and weights over two and
    a half windows.
    """
    own, size = stage.body.config, stage.place.dtype.itemsize
    channels = getattr(own, "head_dim", None) or stage.width // own.num_attention_heads
    queries = own.num_attention_heads * channels
    keys = (getattr(own, "num_key_value_heads", None) or own.num_attention_heads) * channels
    inside = own.intermediate_size * (3 if stage.family.decoder else 1)
    # The norms of decoders compute in float32 whatever comes in.
    norms = 2 * stage.width * (FLOAT if stage.family.decoder else size)
    if any(name.endswith(".q_norm") for name, _ in stage.body.named_modules()):
        norms += (queries + keys) * FLOAT
    attention = 2 * queries + 2 * keys
    if stage.window:
        attention = 10 * queries + own.num_attention_heads * (5 * stage.window // 2 + 2)
    block = size * (attention + inside) + norms
    if not stage.family.decoder and config.model.dropout:
        block += 2 * stage.width * FLOAT  # masks
    inputs = 2 if config.lora.dropout else 1
    adapted = sum(
        FLOAT * (inputs * factor.shape[1] + factor.shape[0])
        for name, factor in adapter(stage).items()
        if ".lora_A." in name
    )
    return int(stage.blocks * block + adapted)


def passing_in_training(stage: Stage) -> int:
    """Bytes that one place takes for a moment beside what is kept, at the last block's end.

    3 d and i: what the feed-forward part gives, dropout's random bytes, what the block gives. Where
    an adapter stands before i, half as much of i again, on top of what is kept of it anyway.
    """
    if not stage.blocks:
        return 0
    inside = _inside(stage) * (3 if _adapted_inside(stage) else 2) // 2
    return FLOAT * 3 * stage.width + stage.place.dtype.itemsize * inside


def passing_in_serving(stage: Stage) -> int:
    """Bytes that one place takes in a block at the most when nothing is kept for a gradient.

    That is in the feed-forward part: d twice, decoders' norms in float32 once more, and i before
    and behind its activation, gated ones once more; where an adapter stands before i, its product
    and its sum with the layer's are there, too. Longformer's attention is larger than that.
    """
    if not stage.blocks:
        return 0
    size, decoder = stage.place.dtype.itemsize, stage.family.decoder
    inside = _inside(stage) * (2 + decoder + _adapted_inside(stage))
    found = size * (2 * stage.width + inside) + FLOAT * stage.width * decoder
    if stage.window:
        own = stage.body.config
        windows = own.num_attention_heads * (5 * stage.window // 2 + 2)
        found = max(found, size * (10 * stage.width + 2 * windows))
    return int(found)


def repeated(stage: Stage) -> int:
    """Bytes of one remembered position's keys and values, repeated for each head of the queries.

    One block's; 0 where each head has keys of its own, or where there is no block.
    """
    own = stage.body.config
    heads = int(own.num_attention_heads)
    groups = int(getattr(own, "num_key_value_heads", None) or heads)
    if not stage.blocks or groups == heads:
        return 0
    return stage.cache_bytes // stage.blocks * heads // groups


def _inside(stage: Stage) -> int:
    return int(stage.body.config.intermediate_size)


def _adapted_inside(stage: Stage) -> bool:
    """Whether an adapter gives something as wide as the feed-forward part's inside."""
    inside = _inside(stage)
    return any(
        ".lora_B." in name and factor.shape[0] == inside for name, factor in adapter(stage).items()
    )
