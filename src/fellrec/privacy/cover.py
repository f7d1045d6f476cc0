"""All that a client draws over what it sends, and the generators that draw it.

A server that could draw the noise again, or that saw two messages under the same noise, could take
it away. So the generators come from a secret, and start anew with each turn of a client: a round
that is repeated sends the same again, and nothing else is sent under the same noise.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from fellrec.models.recommender import Trunk
from fellrec.privacy.secret import Secret
from fellrec.privacy.shuffle import ShuffledTrunk
from fellrec.privacy.veil import Veil, VeiledTrunk


@dataclass(frozen=True)
class Cover:
    """veil: what activations and gradients are blurred by, None for not at all. shuffles: whether
    positions go in random order. noise, order: what draws them. users: draws the users of private
    steps, and the noise on what they add up to (`user_level`).
    """

    veil: Veil | None = None
    shuffles: bool = False
    noise: torch.Generator = field(default_factory=torch.Generator, repr=False)
    order: torch.Generator = field(default_factory=torch.Generator, repr=False)
    users: torch.Generator = field(default_factory=torch.Generator, repr=False)

    def over(self, trunk: Trunk) -> Trunk:
        """Return a trunk to which everything goes under the cover."""
        if self.veil is not None:
            trunk = VeiledTrunk(trunk, self.veil, self.noise)
        if self.shuffles:
            trunk = ShuffledTrunk(trunk, self.order)
        return trunk

    def renew(self, secret: Secret, client: str, round: int, doing: str) -> None:
        """Start the generators of a client's turn. doing: what it is for, once in a round."""
        own = {"noise": self.noise, "order": self.order, "users": self.users}
        for name, generator in own.items():
            fresh = secret.generator(name, client, str(round), doing)
            generator.set_state(fresh.get_state())
