"""Clients who attack, or whose training broke: what of their updates the others are given.

    change_norms   how far a round took a client, by kind of tensor
    excess         the same in medians of all clients, which a minority can't move
    clip_factors   what is longer than `clip` medians is scaled down to that (Sun et al. 2019)
    krum           who is far from all others gives to nobody (Blanchard et al. 2017)
    Trimmer        each value's extremes are given to nobody (Yin et al. 2018)

All but clipping act on what a client *gives*. What it keeps of itself is its own matter, as in M3:
each client trusts itself and nobody else.

    Sun, Kairouz, Suresh, McMahan 2019, "Can You Really Backdoor Federated Learning?" (arXiv
    1911.07963): norm clipping. Blanchard, El Mhamdi, Guerraoui, Stainer 2017, "Machine Learning
    with Adversaries" (NeurIPS): Krum, Multi-Krum. Yin, Chen, Ramchandran, Bartlett 2018,
    "Byzantine-Robust Distributed Learning" (ICML, arXiv 1803.01498): median, trimmed mean.

Departures, all because M3 gives every client a mixture of its own:

- Clipping has no fixed bound, which a person would have to guess anew for every model and learning
  rate: it counts in medians. LoRA factors and dense tensors are counted apart, so that a small
  tensor can't hide behind a large table; the longer of the two decides, and one factor scales all,
  so that the direction stays.
- Krum picks one update, Multi-Krum an average of some. Here clients that it does not select have
  no place in the others' mixtures, as if their attention were 0; M1 and M2 weigh the rest. As many
  are left out as may be malicious, so that no more is lost than must be. Distances are between
  whole models, since those are mixed.
- The trimmed mean leaves out the f smallest and the f largest of all clients' values and weighs
  the others that are left by M3 instead of alike. The median is the most that can be trimmed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fellrec.balance.attention import is_lora
from fellrec.balance.mixing import Mixer, check_finite, check_weights
from fellrec.errors import ConfigError, ModelError

FEWEST = 3
"""With fewer clients there is no majority by which one could be told to be odd."""

_NORM_ELEMENTS = 1 << 20  # float64 elements squared at a time: 8 MiB
_TRIMMED_ELEMENTS = 1 << 19  # values sorted and mixed at a time, a few float64 copies of each


def change_norms(values: Mapping[str, Tensor], begun: Mapping[str, Tensor]) -> Tensor:
    """Norms of one client's change in a round: (2,) float64, of LoRA factors and of dense tensors.

    `begun` has what the client began the round with, of the same shapes; other names in it are
    passed over. NaN or infinite where a value is.
    """
    squares = [torch.zeros((), dtype=torch.float64) for _ in range(2)]
    for name, tensor in values.items():
        now = tensor.detach().reshape(-1).split(_NORM_ELEMENTS)
        before = begun[name].detach().reshape(-1).split(_NORM_ELEMENTS)
        for one, other in zip(now, before, strict=True):
            squares[not is_lora(name)] += (one.double() - other.double()).square().sum().cpu()
    return torch.stack(squares).sqrt()


def excess(norms: Tensor) -> Tensor:
    """How many times the median of its kind a client's change is: (N,) float64, 0 or more.

    norms: (N, K), a column for each kind; the largest of the K quotients counts. Who did not move
    has no part in the median, so a kind that fewer than three clients moved says nothing (0). While
    fewer than half of those that moved are malicious, the median lies between two honest norms.

    Raises `ModelError` for other shapes and for norms that are negative or not finite.
    """
    lengths = torch.as_tensor(norms, dtype=torch.float64)
    if lengths.ndim != 2 or not (torch.isfinite(lengths) & (lengths >= 0)).all():
        raise ModelError(
            f"norms of shape {tuple(lengths.shape)} must be (clients, kinds), finite and not "
            "negative: leave the client that diverged out of the round"
        )
    found = torch.zeros(len(lengths), dtype=torch.float64)
    for kind in lengths.T:
        moved = kind[kind > 0]
        if len(moved) >= FEWEST:
            found = torch.maximum(found, kind / moved.quantile(0.5))
    return found


def clip_factors(excess: Tensor, clip: float) -> Tensor:
    """What each change is multiplied by: (N,) float64 in (0, 1], exactly 1 up to `clip` medians.

    `clip / excess` above it (Sun et al. 2019, with a relative bound); `clip = 0` gives 1 to all.
    """
    ones = torch.ones_like(excess)
    return torch.where(excess > clip, clip / excess, ones) if clip else ones


def shrink(values: Tensor, begun: Tensor, factor: float) -> Tensor:
    """Return `begun + factor · (values - begun)`, of the shape and dtype of `values`."""
    start = begun.detach().double()
    return (start + factor * (values.detach().double() - start)).to(values.dtype)


def joint_distances(kinds: Sequence[Tensor]) -> Tensor:
    """Add up squared distances (N, N) of several kinds of tensors, each in its own median.

    So a table of a million values does not drown a thousand LoRA factors. What all clients share
    counts nothing.
    """
    total = torch.zeros_like(kinds[0], dtype=torch.float64)
    for squares in kinds:
        off = squares[~torch.eye(len(squares), dtype=torch.bool)]
        if off.any():
            # The median may be 0 where most clients agree: then the largest is as good a unit.
            total += squares / (off.median() or off.max())
    return total


def krum(squares: Tensor, malicious: int) -> Tensor:
    """Select who may give to others: (N,) bool, all but `malicious` clients (Multi-Krum).

    squares: (N, N) squared distances. A client's score is the sum of its N - f - 2 smallest
    distances to others, f being `malicious`; the N - f lowest scores are selected, ties all (then
    fewer are left out, and the order of clients does not matter). f = 0 selects everybody.

    Raises `ConfigError` when N < 2f + 3 (Blanchard et al. 2017, proposition 1).
    """
    clients = len(squares)
    if not malicious:
        return torch.ones(clients, dtype=torch.bool)
    if clients < 2 * malicious + 3:
        raise ConfigError(
            f"krum with {malicious} malicious clients needs {2 * malicious + 3}, got {clients}: "
            "take more clients or expect fewer malicious ones"
        )
    others = squares.double().clone().fill_diagonal_(torch.inf)
    scores = others.sort(dim=1).values[:, : clients - malicious - 2].sum(dim=1)
    return scores <= scores.kthvalue(clients - malicious).values


def sources(weights: Tensor, selected: Tensor) -> Tensor:
    """Let clients that were not selected give to themselves alone: (N, N) float64.

    weights: (N, N), rows summing to 1; selected: (N,) bool. For M3's weights it is M3 with the
    attention to them at 0. A client whom nothing is left of keeps itself. With all selected the
    weights come back bit for bit.
    """
    if bool(selected.all()):
        return weights
    keep = torch.eye(len(weights), dtype=torch.bool) | selected[None, :]
    left = torch.where(keep, weights.double(), 0.0)
    lost = left.sum(dim=1) == 0
    left[lost, lost] = 1
    return left / left.sum(dim=1, keepdim=True)


class Trimmer:
    """M3's weights (N, N) over trimmed values: as `Mixer`, but nobody is given an extreme.

    Of each value, the `malicious` smallest and largest of all N clients' are given to nobody; the
    weight that a client has for others goes to those that are left, in M3's proportions. Where none
    is left, it keeps its own. With at most so many malicious clients, all that a client is given
    lies between two honest values. malicious = 0 is `Mixer` bit for bit, and a client with no
    weight on others comes back bit for bit; values equal to the bounds stay.
    """

    def __init__(self, weights: Tensor, malicious: int) -> None:
        """Raise `ConfigError` when nothing would be left, `ModelError` for no square weights."""
        self._all = Mixer(weights)
        if not 0 <= 2 * malicious < len(weights):
            raise ConfigError(
                f"trimming {malicious} values on both sides needs {2 * malicious + 1} clients, got "
                f"{len(weights)}: take more clients or expect fewer malicious ones"
            )
        self._malicious = malicious
        others = self._all.weights.clone().fill_diagonal_(0)
        self._own = self._all.weights.diagonal()[:, None]
        self._rest = others.sum(dim=1, keepdim=True)
        self._others = Mixer(others)

    def __call__(self, stacked: Tensor) -> Tensor:
        """Mix one tensor of all clients: (N, ...) to (N, ...), same dtype and device.

        Raises `ModelError` when the shapes do not fit or a value is not finite.
        """
        if not self._malicious:
            return self._all(stacked)
        check_weights(self._all.weights, stacked)
        flat = stacked.detach().reshape(len(stacked), -1)
        mixed = torch.empty_like(flat)
        step = max(1, _TRIMMED_ELEMENTS // len(flat))
        for first in range(0, flat.shape[1], step):
            columns = slice(first, first + step)
            mixed[:, columns] = self._trimmed(flat[:, columns])
        return mixed.reshape(stacked.shape)

    def _trimmed(self, block: Tensor) -> Tensor:
        check_finite(block)
        ordered = block.sort(dim=0).values
        low, high = ordered[self._malicious], ordered[-1 - self._malicious]
        kept = (block >= low) & (block <= high)
        wide = block.double()
        given = self._others(torch.where(kept, wide, 0.0))
        weight = self._others(kept.double())
        own, rest = self._own.to(wide.device), self._rest.to(wide.device)
        taken = (rest > 0) & (weight > 0)
        return torch.where(taken, own * wide + rest * (given / weight), wide).to(block.dtype)
