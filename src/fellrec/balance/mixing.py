"""M3 and M4: every client's own mixture of all clients' tensors.

M3 is a weighted sum: weights (N, N) over the stacked values (N, ...). All clients are computed from
the same snapshot; the reference code overwrites its inputs while it loops, so that its result
depends on the order of the clients.

M4's `product` space does the same to the products BA. A sum of N rank-r products has rank up to
N·r; its best rank-r approximation comes from an SVD of the small core between two thin QR factors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fellrec.balance.attention import check_layout, stack
from fellrec.errors import ModelError

_ORDERED_CLIENTS = 64
"""Up to so many clients, sums run in a fixed order; above, they are matrix products."""

_ORDERED_ELEMENTS = 1 << 17  # float64 elements summed at a time: 1 MiB, small enough for a cache
_MULTIPLIED_ELEMENTS = 1 << 20  # float64 elements multiplied at a time: 8 MiB


def mixture(attention: Tensor, warmth: Tensor, sizes: Tensor | None = None) -> Tensor:
    """Weights of M3: (N, N) float64, row c what client c takes from each; rows sum to 1, all >= 0.

    `W_cj = w_c s_cj / (1 + w_c Σ_{k≠c} s_ck)` and `W_cc = 1 / (1 + w_c Σ_{k≠c} s_ck)`, from
    `attention` (N, N) in [0, 1], whose diagonal is not read, and `warmth` (N,) in [0, 1]. A warmth
    of 0 gives exactly the identity's row; attention and warmth of 1 give exactly 1/N everywhere.

    sizes: (N,), what a client weighs before it is looked at, such as its number of examples; None,
    the paper's, is the same for all. Then, beyond the paper, `W_cj ∝ w_c s_cj n_j` and
    `W_cc ∝ n_c`: attention and warmth of 1 give each client's share of all examples. A client of
    size 0 that takes from nobody keeps its own.

    Raises `ModelError` for shapes that do not fit or values that are negative or not finite.
    """
    pull = torch.as_tensor(attention, dtype=torch.float64)
    warm = torch.as_tensor(warmth, dtype=torch.float64)
    own = torch.ones_like(warm) if sizes is None else torch.as_tensor(sizes, dtype=torch.float64)
    if warm.ndim != 1 or pull.shape != (len(warm), len(warm)) or own.shape != warm.shape:
        raise ModelError(
            f"attention {tuple(pull.shape)}, warmth {tuple(warm.shape)} and sizes "
            f"{tuple(own.shape)} do not fit: give (clients, clients), (clients,) and (clients,)"
        )
    weights = (warm[:, None] * pull).fill_diagonal_(1) * own
    if not (torch.isfinite(weights) & (weights >= 0)).all():
        raise ModelError(
            "attention, warmth and sizes must be finite and not negative to weigh clients"
        )
    weights.diagonal()[weights.sum(dim=1) == 0] = 1
    return weights / weights.sum(dim=1, keepdim=True)


def mix(
    updates: Sequence[Mapping[str, Tensor]], attention: Tensor, warmth: Tensor
) -> list[dict[str, Tensor]]:
    """Mix N clients' updates by M3, tensor by tensor, LoRA and dense alike (M4's `factors`).

    Returns one mapping for each client, with the names, shapes and dtypes of its update and storage
    of its own. Raises `ModelError` when the updates do not have the same names and shapes, or when
    a client that gives to another holds a value that is not finite.
    """
    check_layout(updates)
    mixer = Mixer(mixture(attention, warmth))
    mixed: list[dict[str, Tensor]] = [{} for _ in updates]
    for name in updates[0]:
        for target, values in zip(mixed, mixer(stack(updates, name)), strict=True):
            target[name] = values.clone()
    return mixed


def combine(weights: Tensor, stacked: Tensor) -> Tensor:
    """Apply M3's weights (N, N) to one tensor of all clients: (N, ...) to (N, ...), same dtype.

    See `Mixer`, which applies the same weights to many tensors. Raises `ModelError` when the shapes
    do not fit or a mixed value is not finite.
    """
    return Mixer(weights)(stacked)


class Mixer:
    """M3's weights (N, N), made ready once to mix any number of tensors of the N clients.

    All sums run in float64 and are rounded once. Up to 64 clients a sum runs from client 0 to
    N - 1, so that its bits are those of every machine and number of threads. With more clients,
    where that would take many times as long, it is a matrix product, whose order of summation is
    the library's own: last bits may differ between machines. The weights' and the sum's errors, at
    most 3N · 1.1e-16 of the largest value, are far below half a step of float32 (3e-8). So, at any
    N, clients that agree on a value keep it; and as each of the different rows of weights is
    computed once, equal weights give equal bits. A client with no weight on others comes back bit
    for bit, whatever the others hold.
    """

    def __init__(self, weights: Tensor) -> None:
        """Raise `ModelError` when the weights are not square."""
        check_weights(weights, weights)
        self.weights = weights.detach().cpu().double()
        alone = _alone(weights)
        self._kept, self._moved = alone.nonzero().flatten(), (~alone).nonzero().flatten()
        # First come, first numbered: the row of each different set of weights, and whose it is.
        numbers: dict[bytes, int] = {}
        firsts, source = [], []
        for client in self._moved.tolist():
            key = self.weights[client].numpy().tobytes()
            if key not in numbers:
                numbers[key] = len(numbers)
                firsts.append(client)
            source.append(numbers[key])
        self._different = self.weights[firsts]
        self._source = torch.tensor(source, dtype=torch.int64)

    def __call__(self, stacked: Tensor) -> Tensor:
        """Mix one tensor of all clients: (N, ...) to (N, ...), same dtype and device.

        Raises `ModelError` when the shapes do not fit or a mixed value is not finite.
        """
        check_weights(self.weights, stacked)
        if not len(self._moved):
            return stacked.detach().clone()
        flat = stacked.detach().reshape(len(stacked), -1)
        mixed = torch.empty_like(flat)
        if len(flat) <= _ORDERED_CLIENTS:
            self._sum_in_order(flat, mixed)
        else:
            self._multiply(flat, mixed)
        # Not left to the sum: 0 times infinity is NaN, and 1 times -0.0 plus 0 is +0.0.
        kept = self._kept.to(flat.device)
        mixed[kept] = flat[kept]
        return mixed.reshape(stacked.shape)

    def _sum_in_order(self, flat: Tensor, mixed: Tensor) -> None:
        takes = self.weights.to(flat.device)
        step = max(1, _ORDERED_ELEMENTS // len(flat))
        for first in range(0, flat.shape[1], step):
            columns = slice(first, first + step)
            wide = flat[:, columns].double()
            total = torch.zeros_like(wide)
            term = torch.empty_like(wide)
            for giver, values in enumerate(wide):
                torch.mul(takes[:, giver, None], values, out=term)
                total += term
            mixed[:, columns] = total
        check_finite(mixed[self._moved.to(flat.device)])

    def _multiply(self, flat: Tensor, mixed: Tensor) -> None:
        device = flat.device
        takes, source = self._different.to(device), self._source.to(device)
        moved = self._moved.to(device)
        step = max(1, _MULTIPLIED_ELEMENTS // len(flat))
        for first in range(0, flat.shape[1], step):
            columns = slice(first, first + step)
            wide = flat[:, columns].double()
            # Before the product: whether 0 times NaN is NaN is up to the library.
            check_finite(wide)
            narrow = (takes @ wide).to(flat.dtype)
            check_finite(narrow)
            mixed[moved, columns] = narrow[source]


def merge_products(a: Tensor, b: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mix the products `B_c A_c` by M3 and factor each mixture again at rank r (M4's `product`).

    a (N, r, in), b (N, out, r), weights (N, N). Returns `(A', B', dropped)`: factors of the same
    shapes and dtypes whose product is the best rank-r approximation of `Σ_j W_cj B_j A_j`, and the
    share (N,) float64 in [0, 1] of the mixture's squared norm that rank r could not hold. `A'` has
    orthonormal rows and `B'` carries the singular values, so that no rank stops learning; signs are
    fixed by making the largest entry of each row of `A'` positive. A client with no weight on
    others comes back bit for bit, with 0 dropped.

    Raises `ModelError` when shapes do not fit or a value is not finite.
    """
    check_weights(weights, a)
    check_weights(weights, b)
    if a.ndim != 3 or b.ndim != 3 or a.shape[1] != b.shape[2]:
        raise ModelError(
            f"LoRA factors of shapes {tuple(a.shape)} and {tuple(b.shape)} do not pair: "
            "give A as (clients, r, in) and B as (clients, out, r)"
        )
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        raise ModelError(
            "an update holds NaN or infinity: leave the client that diverged out of the round"
        )
    clients, rank, width = a.shape
    new_a, new_b = a.detach().clone(), b.detach().clone()
    dropped = torch.zeros(clients, dtype=torch.float64)
    moved = (~_alone(weights)).nonzero().flatten().tolist()
    if not moved:
        return new_a, new_b, dropped
    rows = a.detach().double().reshape(clients * rank, width)
    columns = b.detach().double().transpose(0, 1).reshape(b.shape[1], clients * rank)
    thin = clients * rank < min(width, b.shape[1])
    if thin:
        basis_b, columns = torch.linalg.qr(columns)
        basis_a, core = torch.linalg.qr(rows.T)
        rows = core.T
    for client in moved:
        scale = weights[client].to(rows).repeat_interleave(rank)
        u, s, vt = torch.linalg.svd((columns * scale) @ rows, full_matrices=False)
        energy = s.square()
        if energy.sum() > 0:
            dropped[client] = (energy[rank:].sum() / energy.sum()).cpu()
        u, s, vt = u[:, :rank], s[:rank], vt[:rank]
        if thin:
            u, vt = basis_b @ u, vt @ basis_a.T
        largest = vt.gather(1, vt.abs().argmax(dim=1, keepdim=True))
        signs = torch.where(largest < 0, -1.0, 1.0)
        # A matrix narrower than r has fewer than r singular values: the rest stays 0.
        new_a[client], new_b[client] = 0, 0
        new_a[client, : len(s)] = (signs * vt).to(a.dtype)
        new_b[client, :, : len(s)] = (u * (s * signs.squeeze(1))).to(b.dtype)
    return new_a, new_b, dropped


def _alone(weights: Tensor) -> Tensor:
    """(N,) bool: clients that take nothing from any other."""
    return (weights.detach().cpu().clone().fill_diagonal_(0) == 0).all(dim=1)


def check_weights(weights: Tensor, stacked: Tensor) -> None:
    """Raise `ModelError` unless weights are (N, N) and values (N, ...)."""
    clients = len(weights)
    if weights.shape != (clients, clients) or stacked.ndim < 1 or len(stacked) != clients:
        raise ModelError(
            f"weights {tuple(weights.shape)} do not fit values {tuple(stacked.shape)}: "
            "give (clients, clients) and (clients, ...)"
        )


def check_finite(values: Tensor) -> None:
    """Raise `ModelError` for a value that is NaN or infinite."""
    # One pass, and no mask of the size of the values: both ends of the range are NaN for any NaN.
    if values.numel() and not torch.isfinite(torch.stack(values.aminmax())).all():
        raise ModelError(
            "an update holds NaN or infinity: leave the client that diverged out of the round"
        )
