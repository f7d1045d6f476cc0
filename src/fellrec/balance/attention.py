"""M1, attention: how alike two clients' LoRA adapters are, as a number in [0, 1].

`s_cj = (cos(θ_c, θ_j) + 1) / 2`, `s_cc = 1`, over the LoRA tensors only. A cosine needs
nothing but inner products, and inner products add up over tensors: `Gram` takes the clients' values
of one tensor at a time, so that comparing many clients never holds more than one tensor of each.

Departure from the reference code: it compares everything it exchanges, integer buffers included,
which drives every cosine to 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from fellrec.errors import ConfigError, ModelError

Space = Literal["factors", "update", "change"]

ACTIVE_SPREAD = 0.02
"""Below this difference between largest and smallest, attention is as good as uniform (M1)."""

_A, _B = ".lora_A.weight", ".lora_B.weight"
_WORKING_ELEMENTS = 1 << 22  # float64 elements converted at a time: 32 MiB
_STRIP = 128  # clients multiplied at a time with those from them on: nearly half of all pairs saved


class Gram:
    """Inner products between `clients` updates, added up tensor by tensor in float64.

    Inputs may be of any floating dtype and on any device; the sums are on the CPU.

    Products of float32 values are exact in float64, and adding up n of them errs by at most
    n · 1.1e-16 of the two norms' product; in blocks, n is a block's columns and the number of
    blocks. For 1,000 clients (blocks of 4,194) and a million values that is 5e-13: a cosine of
    1 - 1e-9 is told from 1. In float32, where one rounding is 6e-8, it is not. As ⟨x, y⟩ = ⟨y, x⟩,
    half the products do, which makes float64 cost about what a whole float32 product does.
    """

    def __init__(self, clients: int) -> None:
        """Raise `ModelError` when there is no client to compare."""
        if clients < 1:
            raise ModelError("no update to compare: no client completed the round")
        self.clients = clients
        self._sums = torch.zeros(clients, clients, dtype=torch.float64)

    def add(self, block: Tensor) -> None:
        """Count one tensor: `block` is (N, ...), row c the values of client c.

        Raises `ModelError` when the number of rows is not N or a value is not finite.
        """
        self._check(block)
        flat = block.detach().reshape(self.clients, -1)
        step = max(1, _WORKING_ELEMENTS // self.clients)
        for first in range(0, flat.shape[1], step):
            wide = flat[:, first : first + step].double()
            for top in range(0, self.clients, _STRIP):
                few = slice(top, top + _STRIP)
                products = _finite(wide[few] @ wide[top:].T)
                self._sums[few, top:] += products
                self._sums[top + _STRIP :, few] += products[:, _STRIP:].T

    def add_product(self, a: Tensor, b: Tensor) -> None:
        """Count the products `B_c A_c` without building them: a (N, r, in), b (N, out, r).

        `⟨B₁A₁, B₂A₂⟩ = Σ (B₁ᵀB₂) ∘ (A₁A₂ᵀ)` (M1): r x r numbers for each pair of clients.
        Raises `ModelError` when the shapes do not fit each other or a value is not finite.
        """
        self._check(a)
        self._check(b)
        if a.ndim != 3 or b.ndim != 3 or a.shape[1] != b.shape[2]:
            raise ModelError(
                f"LoRA factors of shapes {tuple(a.shape)} and {tuple(b.shape)} do not pair: "
                "give A as (clients, r, in) and B as (clients, out, r)"
            )
        rank = a.shape[1]
        rows_a = a.detach().double().flatten(0, 1)
        rows_b = b.detach().double().transpose(1, 2).flatten(0, 1)
        # A few clients against all at a time, so that the (r·N)² products are never held at once.
        step = max(1, _WORKING_ELEMENTS // (rank * rank * self.clients))
        for first in range(0, self.clients, step):
            few = slice(first * rank, (first + step) * rank)
            products = (rows_b[few] @ rows_b.T) * (rows_a[few] @ rows_a.T)
            blocks = products.reshape(-1, rank, self.clients, rank)
            self._sums[first : first + step] += _finite(blocks.sum((1, 3)))

    def cosine(self) -> Tensor:
        """Cosines of what was counted: (N, N) float64, symmetric, 1 on the diagonal.

        An update of zero norm has cosine 0 with all others.
        """
        sums = (self._sums + self._sums.T) / 2
        norms = sums.diagonal().clamp(min=0).sqrt()
        # Divided in two steps: the product of two tiny norms would underflow to 0.
        inverse = torch.where(norms > 0, 1 / norms, torch.zeros_like(norms))
        cosines = (sums * inverse[:, None] * inverse[None, :]).clamp(-1, 1)
        return cosines.fill_diagonal_(1)

    def distances(self) -> Tensor:
        """Squared distances of what was counted: (N, N) float64, symmetric, 0 on the diagonal.

        Each errs by about 1e-16 of the two squared norms, of which it is the difference.
        """
        sums = (self._sums + self._sums.T) / 2
        squares = sums.diagonal()
        found = (squares[:, None] + squares[None, :] - 2 * sums).clamp(min=0)
        return found.fill_diagonal_(0)

    def attention(self) -> Tensor:
        """`(cos + 1) / 2` of what was counted (M1): (N, N) float64 in [0, 1], 1 on the diagonal."""
        return (self.cosine() + 1) / 2

    def _check(self, block: Tensor) -> None:
        if block.ndim < 2 or block.shape[0] != self.clients:
            raise ModelError(
                f"a tensor of shape {tuple(block.shape)} does not hold one row for each of "
                f"{self.clients} clients: stack the clients' values on the first axis"
            )


def attention(
    updates: Sequence[Mapping[str, Tensor]],
    space: Space = "factors",
    start: Sequence[Mapping[str, Tensor]] | None = None,
) -> Tensor:
    """Compare N clients' updates (M1): (N, N) float64 in [0, 1], symmetric, 1 on the diagonal.

    `updates[c]` maps names to tensors; only `<module>.lora_A.weight` (r, in) and
    `<module>.lora_B.weight` (out, r) count. `space` chooses what is compared:

    - `"factors"`: A and B, flattened (the reference code);
    - `"update"`: the products BA, which do not depend on how an update is factored;
    - `"change"`: A and B less `start[c]`, the client's own values at the start of the round.

    Raises `ConfigError` for an unknown space or a missing `start`, `ModelError` when the updates do
    not have the same names and shapes, hold no LoRA tensor, or hold a value that is not finite.
    """
    if space not in get_args(Space):
        raise ConfigError(f"unknown space {space!r}: choose one of {', '.join(get_args(Space))}")
    check_layout(updates)
    gram = Gram(len(updates))
    names = sorted(name for name in updates[0] if is_lora(name))
    if not names:
        raise ModelError("the updates hold no LoRA tensor: there is nothing to compare")
    if space == "update":
        for a, b in lora_pairs(names):
            gram.add_product(stack(updates, a), stack(updates, b))
        return gram.attention()
    if space == "change":
        if start is None or len(start) != len(updates):
            raise ConfigError("space 'change' needs `start`: one mapping for each client")
        check_layout([*updates, *({n: s[n] for n in updates[0] if n in s} for s in start)])
    for name in names:
        block = stack(updates, name)
        if space == "change" and start is not None:
            block = block - stack(start, name)
        gram.add(block)
    return gram.attention()


def sharpen(attention: Tensor, temperature: float) -> Tensor:
    """Let attention (N, N) fall off beside what is most alike: (N, N) float64 in [0, 1] (ours).

    `exp((cos_cj - max_{k≠c} cos_ck) / temperature)`, 1 on the diagonal: a client's nearest other
    keeps 1, and where M1's values crowd near each other they are told apart. The higher the
    temperature, the closer to all at 1. Not symmetric.

    Raises `ConfigError` when the temperature is not above 0.
    """
    if not (math.isfinite(temperature) and temperature > 0):
        raise ConfigError(f"temperature is {temperature}: give a finite number above 0")
    cosines = 2 * torch.as_tensor(attention, dtype=torch.float64) - 1
    others = cosines.clone().fill_diagonal_(-torch.inf)
    nearest = others.amax(dim=1, keepdim=True)
    return torch.exp((cosines - nearest) / temperature).fill_diagonal_(1)


@dataclass(frozen=True)
class Spread:
    """The off-diagonal of an attention matrix; `active` when it tells clients apart at all."""

    min: float
    median: float
    max: float
    active: bool


def spread(attention: Tensor) -> Spread:
    """Summarise (N, N) attention (M1). One client has no off-diagonal: zeros, inactive."""
    square = torch.as_tensor(attention, dtype=torch.float64).cpu().numpy()
    off = square[~np.eye(len(square), dtype=bool)]
    if not off.size:
        return Spread(0.0, 0.0, 0.0, False)
    low, high = float(off.min()), float(off.max())
    return Spread(low, float(np.median(off)), high, high - low >= ACTIVE_SPREAD)


def is_lora(name: str) -> bool:
    """Whether a tensor of this name is a LoRA factor (compared) or `dense` (mixed only)."""
    return name.endswith((_A, _B))


def lora_pairs(names: Iterable[str]) -> list[tuple[str, str]]:
    """Names of the factors (A, B) of each adapted module, sorted by module; others are passed over.

    Raises `ModelError` when one of the two is missing, as when A is frozen and stays behind.
    """
    known = {name for name in names if is_lora(name)}
    modules = sorted({name.removesuffix(_A).removesuffix(_B) for name in known})
    for module in modules:
        for suffix in (_A, _B):
            if module + suffix not in known:
                raise ModelError(
                    f"{module}{suffix} is missing: products of LoRA factors need both A and B, "
                    "use 'factors' where one is frozen"
                )
    return [(module + _A, module + _B) for module in modules]


def check_layout(updates: Sequence[Mapping[str, Tensor]]) -> None:
    """Raise `ModelError` unless there are updates and all have the same names and shapes."""
    if not updates:
        raise ModelError("no update to compare or mix: no client completed the round")
    first = updates[0]
    for client, update in enumerate(updates):
        for name in first.keys() ^ update.keys():
            raise ModelError(f"tensor {name} is not in all updates: clients 0 and {client} differ")
        for name, tensor in update.items():
            if tensor.shape != first[name].shape:
                raise ModelError(
                    f"tensor {name} has shape {tuple(tensor.shape)} at client {client} and "
                    f"{tuple(first[name].shape)} at client 0: all clients must share one adapter"
                )


def stack(updates: Sequence[Mapping[str, Tensor]], name: str) -> Tensor:
    """The clients' values of one tensor: (N, *shape)."""
    return torch.stack([update[name].detach() for update in updates])


def _finite(products: Tensor) -> Tensor:
    """Bring inner products to the CPU; raise `ModelError` when one is not finite."""
    # float32 values cannot overflow a float64 product: not finite here means not finite before.
    if not torch.isfinite(products).all():
        raise ModelError(
            "an update holds NaN or infinity: leave the client that diverged out of the round"
        )
    return products.cpu()
