"""SASRec by federated averaging: histories stay with their clients (`sasrec-federated`).

FedAvg (McMahan et al., AISTATS 2017) over a partition: in each round every client trains some
epochs from the common model, and the average of what they send is the next common model. Each
client keeps its Adam between rounds, as FELLRec's clients do. Everything is exchanged, the item
embedding too, whose changes tell a coordinator which items a client's users touched.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fellrec.balance import combine
from fellrec.data.interactions import Ragged
from fellrec.errors import ConfigError, DataError
from fellrec.peers.peer import Choice, Task
from fellrec.peers.sasrec import SIZE, SasRec, SasRecSettings
from fellrec.peers.training import Learner, Patience, TrainingSettings, train_best

Weighing = Literal["equal", "examples"]


@dataclass(frozen=True)
class FederatedSettings:
    """local_epochs: of a client in a round. weighing: all clients alike, or by their examples."""

    local_epochs: int = 1
    weighing: Weighing = "equal"


# A client has a share of the data: smaller batches for as many steps, and longer ones.
TRAINING = TrainingSettings(learning_rate=2e-3, batch_size=16)
FEDERATED = FederatedSettings()
ROUNDS = Patience()


class Federation:
    """Clients that take turns with one model, which holds the common weights between rounds.

    assignment: (U,) the client of each history, from 0. Raises `DataError` when it does not fit
    or nobody has an example, `ConfigError` for settings out of range.
    """

    def __init__(
        self,
        model: SasRec,
        train: Ragged,
        assignment: NDArray[np.integer],
        settings: FederatedSettings,
        training: TrainingSettings,
        seed: int,
    ) -> None:
        if len(assignment) != len(train) or not len(train) or int(assignment.min()) < 0:
            raise DataError(f"{len(train)} histories need a client each, from 0: {assignment}")
        if settings.local_epochs < 1 or settings.weighing not in get_args(Weighing):
            kinds = " or ".join(get_args(Weighing))
            raise ConfigError(f"{settings}: choose 1 local epoch or more, weighing {kinds}")
        self.model = model
        self.settings = settings
        self.clients = [
            Learner(model, train.take(np.flatnonzero(assignment == client)), training, seed, client)
            for client in range(int(assignment.max()) + 1)
        ]
        self.weights = _weights(self.clients, settings.weighing)

    def round(self) -> None:
        """Train every client from the common model and average.

        Raises `TrainingError` when a client diverges.
        """
        common = self.model.values()
        sent = []
        for client in self.clients:
            self.model.load(common)
            for _ in range(self.settings.local_epochs):
                client.epoch()
            sent.append(self.model.values())
        # Everybody's mixture is the same: the first stands for all.
        self.model.load(
            {
                name: combine(self.weights, torch.stack([values[name] for values in sent]))[0]
                for name in common
            }
        )


def _weights(clients: list[Learner], weighing: Weighing) -> Tensor:
    """(N, N) float64, rows alike, of sum 1."""
    counts = [client.examples() if weighing == "examples" else 1 for client in clients]
    shares = torch.tensor(counts, dtype=torch.float64)
    if not shares.sum():
        raise DataError("no client has a history of two items: there is nothing to learn from")
    return (shares / shares.sum()).repeat(len(clients), 1)


def sasrec_federated(
    task: Task,
    assignment: NDArray[np.integer],
    size: SasRecSettings = SIZE,
    training: TrainingSettings = TRAINING,
    federated: FederatedSettings = FEDERATED,
    limits: Patience = ROUNDS,
) -> Choice:
    """Train one SASRec over clients; validation over all users chooses the number of rounds.

    Raises as `Federation` and `train_best`.
    """
    model = SasRec(task.items, size, torch.Generator().manual_seed(task.seed))
    federation = Federation(model, task.train, assignment, federated, training, task.seed)
    settings = {**asdict(size), **asdict(training), **asdict(federated)}
    return train_best(task, "rounds", model, federation.round, limits, settings)
