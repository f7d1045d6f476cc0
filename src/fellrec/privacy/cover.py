"""All that a client draws over what it sends, and the streams that it is drawn from.

A server that could draw the noise again, or that saw two messages under the same noise, could take
it away. So the streams come from a secret, and begin anew with each turn of a client. In a
simulation the secret is the seed's: a round that is repeated sends the same again. On a client's
own machine each turn has a secret of its own, so that nothing else is ever sent under its noise,
whatever a server asks for again.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fellrec.models.recommender import Trunk
from fellrec.privacy.draws import Draws
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
    noise: Draws = field(default_factory=Draws.fresh, repr=False)
    order: Draws = field(default_factory=Draws.fresh, repr=False)
    users: Draws = field(default_factory=Draws.fresh, repr=False)

    def over(self, trunk: Trunk) -> Trunk:
        """Return a trunk to which everything goes under the cover."""
        if self.veil is not None:
            trunk = VeiledTrunk(trunk, self.veil, self.noise)
        if self.shuffles:
            trunk = ShuffledTrunk(trunk, self.order)
        return trunk

    def renew(self, secret: Secret, client: str, round: int, doing: str) -> None:
        """Begin the streams of a client's turn. doing: what it is for, once in a round."""
        own = {"noise": self.noise, "order": self.order, "users": self.users}
        for name, draws in own.items():
            draws.restart(secret.key_for(name, client, str(round), doing))
