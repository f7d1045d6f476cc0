"""A start of the head that no server knows.

The head of a public base is public, and so is the start of its adapter: a server that has never
seen an adapter can still read activations with what everybody has. Clients who share a secret may
start elsewhere: each tensor that is trained before the first cut is moved by a random step whose
size is a share of its own. All clients take the same step, so that what they exchange behind the
cut still means the same to all. The head is kept private with it, else the first round would tell.

It is no encryption. The step is one draw for all positions and all rounds, and who knows some
histories can fit it; how much it takes away from an attacker is measured like everything else.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self, cast

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor

from fellrec.errors import ConfigError
from fellrec.models.recommender import Recommender
from fellrec.privacy.draws import KEY_BYTES, Draws

_LEAST, _MOST = 16, 4096  # bytes of a file


@dataclass(frozen=True)
class Secret:
    """What random numbers are drawn from that others must not draw again."""

    key: bytes = field(repr=False)

    @classmethod
    def of_seed(cls, seed: int) -> Self:
        """Take it from a run's seed: for a simulation, in which nobody is to be kept out."""
        return cls(hashlib.blake2b(f"simulation|{seed}".encode()).digest())

    @classmethod
    def drawn(cls) -> Self:
        """Draw one that nobody else has, from the machine's own source."""
        return cls(secrets.token_bytes(32))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read one that clients have agreed on; ConfigError for a file that is none."""
        try:
            with path.open("rb") as file:
                key = file.read(_MOST + 1)
        except OSError as error:
            raise ConfigError(f"{path}: the secret can't be read ({error.strerror})") from error
        if not _LEAST <= len(key) <= _MOST:
            raise ConfigError(
                f"{path}: a secret has {_LEAST} to {_MOST} bytes; make one of 32 random ones, the "
                "same for all clients"
            )
        return cls(key)

    def key_for(self, *names: str) -> bytes:
        """Return the key of a stream (`Draws`) that depends on the secret and on `names` alone."""
        key, text = hashlib.blake2b(self.key).digest(), json.dumps(names).encode()
        return hashlib.blake2b(text, key=key, digest_size=KEY_BYTES).digest()


@torch.no_grad()
def start_secretly(recommender: Recommender, size: float, secret: Secret) -> None:
    """Move all that is trained before the first cut by a step that the secret draws.

    size: of the step. The recommender's own tensors, of any length ‖p‖, become
    (p + size · g) / √(1 + size²) with g random and as long as p; those that start at 0 stay. In
    each module with an adapter, weight W and start B = 0, B is drawn so that ‖alpha / rank · B A‖
    is size · ‖W‖ (Frobenius norms).
    """
    own = recommender.own_tensors()
    for name, parameter in ((name, own[name][1]) for name in recommender.entrance & own.keys()):
        step = _random(parameter, secret, name)
        step *= size * parameter.norm() / step.norm()
        parameter.add_(step).div_((1 + size**2) ** 0.5)
    for path, module in recommender.head.body.named_modules():
        if isinstance(module, LoraLayer):
            ((name, linear),) = module.lora_B.items()
            a, b = (cast(Tensor, each.weight) for each in (module.lora_A[name], linear))
            base = cast(Tensor, module.get_base_layer().weight)
            step = _random(b, secret, recommender.head.whole_name(path))
            wanted = size * base.float().norm() / module.scaling[name]
            b.copy_(step * (wanted / (step @ a).norm()))


def _random(like: Tensor, secret: Secret, name: str) -> Tensor:
    """Draw a standard normal tensor on the CPU, so that it is the same wherever the head is."""
    return Draws(secret.key_for("start", name)).normal(like.shape).to(like.device)
