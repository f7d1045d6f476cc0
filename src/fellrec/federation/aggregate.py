"""Mix one round's updates, tensor by tensor, from rows on disk to rows on disk (M1, M3, M4)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from fellrec.balance import (
    Gram,
    Mixer,
    Mixture,
    Space,
    Strategy,
    Trimmer,
    is_lora,
    joint_distances,
    lora_pairs,
)
from fellrec.balance import merge_products as merge_pair
from fellrec.federation.rows import Rows


def similarity(rows: Rows, space: Space, start: Rows | None = None) -> Tensor:
    """Attention between the clients of `rows` (M1): (N, N) float64, over LoRA factors only.

    start: the same clients' tensors at the start of the round, for the space `change`.
    """
    names = [name for name in rows.shapes if is_lora(name)]
    if space == "update":
        gram = Gram(rows.clients)
        for a, b in lora_pairs(names):
            gram.add_product(rows.read(a), rows.read(b))
        return gram.attention()
    return _gram(rows, names, start if space == "change" else None).attention()


def distances(rows: Rows) -> Tensor:
    """Squared distances between clients: (N, N) float64, see `joint_distances`."""
    factors = [name for name in rows.shapes if is_lora(name)]
    dense = [name for name in rows.shapes if not is_lora(name)]
    return joint_distances([_gram(rows, names).distances() for names in (factors, dense)])


def _gram(rows: Rows, names: Iterable[str], start: Rows | None = None) -> Gram:
    gram = Gram(rows.clients)
    for name in names:
        for first, last in rows.blocks(name):
            block = rows.read_columns(first, last)
            if start is not None:
                block = block - start.read_columns(first, last)
            gram.add(block)
    return gram


def mix_rows(
    rows: Rows, mixed: Rows, mixture: Mixture, strategy: Strategy, trimmed: int = 0
) -> tuple[Tensor, set[str]]:
    """Write every client's own mixture of `rows` into `mixed` (M3, or M4 on LoRA products).

    trimmed: values left out at either end of what a client is given of the others, see `Trimmer`.

    Returns the share of energy that M4 dropped per client, (N,) float64 and 0 in factor space, the
    largest over all pairs; and the names of the factors whose optimiser moments no longer fit.
    """
    dropped = torch.zeros(rows.clients, dtype=torch.float64)
    reset: set[str] = set()
    if strategy.merge == "product":
        for a, b in lora_pairs(name for name in rows.shapes if is_lora(name)):
            new_a, new_b, lost = merge_pair(rows.read(a), rows.read(b), mixture.weights)
            mixed.write(a, new_a)
            mixed.write(b, new_b)
            dropped = torch.maximum(dropped, lost)
            reset |= {a, b}
    factors = _mixer(mixture.weights, trimmed)
    others = factors if mixture.dense is None else _mixer(mixture.dense, trimmed)
    for name in rows.shapes:
        if name in reset:
            continue
        mixer = factors if is_lora(name) else others
        for first, last in rows.blocks(name):
            mixed.write_columns(first, mixer(rows.read_columns(first, last)))
    return dropped, reset


def _mixer(weights: Tensor, trimmed: int) -> Mixer | Trimmer:
    return Trimmer(weights, trimmed) if trimmed else Mixer(weights)
