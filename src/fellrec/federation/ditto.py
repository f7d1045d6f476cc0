"""Ditto: beside the common model that is averaged, each client trains one of its own.

Li et al. 2021, "Ditto: Fair and Robust Federated Learning Through Personalization" (arXiv
2012.04221). In every round a client trains the common model, as FedAvg does, and then its own with
`λ/2 ‖v - w‖²` added to the loss, w being the common model as the round began. The own model is
validated, kept when best, and served; it never leaves its client and trunk.

Departure: one number of local epochs and one learning rate serve both models. Both are trained
through the split, so a round costs twice as much, and the ledger and the logs count both.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from fellrec.federation.client import TrainReport, check_finite
from fellrec.federation.members import Mixed, Trained
from fellrec.federation.simulation import Simulation
from fellrec.federation.store import ALL_FILES, CLIENT, SERVER
from fellrec.federation.turns import Anchor, ClientModel, stored_model

PERSONAL: Final = "personal_"
FILES = {
    CLIENT: (*ALL_FILES[CLIENT], *(PERSONAL + n for n in ("adapter", "private", "optimiser"))),
    SERVER: (*ALL_FILES[SERVER], *(PERSONAL + n for n in ("adapter", "optimiser"))),
}
"""What each side keeps of a client by round."""


class Ditto(Simulation):
    """A simulation whose clients keep two models each."""

    anchor = Anchor()  # the common model is pulled towards nothing

    def learn(self, t: int, name: str) -> Trained:
        """Train both models; what the coordinator is told of is the common one."""
        trained = super().learn(t, name)
        common = stored_model(self.store, self.workspace, t, name)
        own = stored_model(self.store, self.workspace, t, name, PERSONAL)
        anchor = Anchor(common.exchanged, common.trunk)
        learned = self.work.learn(self.clients[name], t, own, anchor, own=True)
        after = learned.model
        check_finite(name, t, after.trunk)
        for side, file, tensors in (
            (CLIENT, "adapter", after.exchanged),
            (CLIENT, "private", after.private),
            (CLIENT, "optimiser", after.moments),
            (SERVER, "adapter", after.trunk),
            (SERVER, "optimiser", after.trunk_moments),
        ):
            self.store.put(t + 1, side, name, PERSONAL + file, tensors)
        report = _both(trained.report, learned.report)
        seconds = trained.server_seconds + learned.server_seconds
        return replace(trained, report=report, server_seconds=seconds)

    def served(self, t: int, name: str, mixed: Mixed) -> ClientModel:
        """Return the client's own model."""
        return ClientModel(
            self.store.prepared(t + 1, CLIENT, name, f"{PERSONAL}adapter"),
            self.store.prepared(t + 1, CLIENT, name, f"{PERSONAL}private"),
            self.store.prepared(t + 1, SERVER, name, f"{PERSONAL}adapter"),
        )


def _both(common: TrainReport, own: TrainReport) -> TrainReport:
    """Add up what two models cost; loss and examples are the common one's."""
    return replace(
        common,
        tokens=common.tokens + own.tokens,
        steps=common.steps + own.steps,
        seconds=common.seconds + own.seconds,
        waiting=common.waiting + own.waiting,
    )
