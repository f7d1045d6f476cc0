"""Dropout whose masks depend on where training stands, never on global random state.

A mask is drawn from a generator seeded by (seed, client, round, step, micro-batch, module), the
module under its name in the whole model. So a model that is cut elsewhere, resumed or run in
another process draws the same masks (METHOD section 2).

Eight random bits decide each element, which is ten times faster on a CPU than drawing a Bernoulli
variable: the probability of keeping is rounded to a multiple of 1/256 and the scale is its exact
inverse, so the expectation stays that of the input.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class StepKey:
    """Where training stands; shared by all dropout modules of a stage and moved on by its owner."""

    seed: int = 0
    client: str = ""
    round: int = 0
    step: int = 0
    micro: int = 0

    def generator(self, *names: str) -> torch.Generator:
        """Return a generator that depends on this key and on `names` alone."""
        text = "|".join(
            (str(self.seed), self.client, str(self.round), str(self.step), str(self.micro), *names)
        )
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


class KeyedDropout(nn.Module):
    """Drop elements with probability `p` in training, by a mask keyed by step and module name."""

    def __init__(self, p: float, name: str, key: StepKey) -> None:
        super().__init__()
        self.p = p
        self.name = name
        self.key = key
        kept = max(1, round((1.0 - p) * 256))
        factors = torch.zeros(256)
        factors[:kept] = 256.0 / kept
        self._drops = kept < 256
        self.register_buffer("_factors", factors, persistent=False)
        self._factors: Tensor

    def forward(self, hidden: Tensor) -> Tensor:
        """Return `hidden` (any shape) with dropped elements at 0 and the others scaled up."""
        if not self.training or not self._drops:
            return hidden
        count = hidden.numel()
        # A byte an element goes to an accelerator, from memory whose copy need not be waited for.
        words = torch.empty((count + 7) // 8, dtype=torch.int64, pin_memory=hidden.is_cuda)
        words.random_(-(2**63), None, generator=self.key.generator(self.name))
        # A table turns each random byte into 0 or the scale at once: half the time of comparing,
        # masking and scaling one after another.
        octets = words.view(torch.uint8)[:count].to(hidden.device, non_blocking=True).int()
        dropped = hidden * self._factors.index_select(0, octets).view(hidden.shape)
        return dropped.to(hidden.dtype)  # the factors are float32, whatever comes in


def key_dropouts(module: nn.Module, key: StepKey, whole_name: Callable[[str], str]) -> None:
    """Replace each `nn.Dropout` below `module` that drops anything by a keyed one.

    `whole_name` turns a path below `module` into the path in the whole model.
    """
    for path, child in list(module.named_modules()):
        if isinstance(child, nn.Dropout) and child.p > 0:
            parent, _, name = path.rpartition(".")
            keyed = KeyedDropout(child.p, whole_name(path), key)
            module.get_submodule(parent).register_module(name, keyed)
