"""A whole federation in one process: clients take turns on one head, one trunk, one tail.

Everything that would cross a network crosses the wire's codec here, and what each client owns is on
disk between its turns. Every random draw is keyed by seed, client, round and step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from torch import Tensor

from fellrec.config import RunConfig
from fellrec.errors import FellrecError, TrainingError, WireError
from fellrec.federation.client import Scores, check_finite
from fellrec.federation.members import Mixed, Start, Trained
from fellrec.federation.observer import Observer
from fellrec.federation.rounds import METRIC_BYTES
from fellrec.federation.shares import Shares
from fellrec.federation.store import CLIENT, SERVER, RunState, RunStore
from fellrec.federation.turns import Anchor, ClientModel, stored_model
from fellrec.federation.work import Work
from fellrec.federation.workspace import Workspace
from fellrec.models.optimiser import without


class Simulation:
    """All members of a federation; see `members`.

    store: where both sides of every client are kept between turns. started: what is private of
    clients that never completed a round. anchor: what training is pulled towards, see `turns`.
    """

    anchor: Anchor | None = None

    def __init__(
        self,
        config: RunConfig,
        shares: Shares,
        workspace: Workspace,
        store: RunStore,
        observer: Observer,
    ) -> None:
        self.config = config
        self.shares = shares
        self.workspace = workspace
        self.store = store
        self.started: dict[str, Mapping[str, Tensor]] = {}
        self.clients = {
            name: workspace.client(name, shares.of(number), shares.quotas[number])
            for number, name in enumerate(shares.partition.names)
        }
        self._start = workspace.start()
        self.work = Work(config, workspace, observer)

    @property
    def names(self) -> Sequence[str]:
        """The clients, largest first."""
        return list(self.clients)

    def start(self) -> Start:
        """Return what every client starts from."""
        return self._start

    def train(self, t: int, drawn: Sequence[str]) -> Iterator[tuple[str, Trained | FellrecError]]:
        """Let the drawn clients train, one after another."""
        for name in drawn:
            try:
                yield name, self.learn(t, name)
            except (TrainingError, WireError) as error:
                yield name, error

    def receive(
        self, t: int, mixtures: Iterable[tuple[str, Mixed]]
    ) -> Iterator[tuple[str, float | FellrecError]]:
        """Score each client's mixed model before further training."""
        for name, mixed in mixtures:
            try:
                yield name, self.try_on(t, name, mixed)
            except (TrainingError, WireError) as error:
                yield name, error

    def test(self, state: RunState) -> dict[str, Scores]:
        """Score every client's best model on its test targets: per-user scores by client.

        What validation chose for a client that never completed a round is kept in `started`.
        """
        scores = {}
        for name, client in self.clients.items():
            model = stored_model(self.store, self.workspace, state.round, name, "best_")
            trained = name in state.standings
            scores[name], after = self.work.test(client, state.round, model, trained=trained)
            if not trained:
                self.started[name] = after.private
                if client.recommender.choices > 1:
                    self._count(name, state.round, 1)
            self._count(name, state.round, len(scores[name]) + 1)  # and of how many users
        self.workspace.ledger.append_csv(self.store.path / "ledger.csv")
        return scores

    def learn(self, t: int, name: str) -> Trained:
        """Let one client train; what stays with it and with the trunk goes to the store.

        Raises TrainingError or WireError, as `try_on` does.
        """
        model = stored_model(self.store, self.workspace, t, name)
        sent = self.store.state().contributed.get(name, 0)
        learned = self.work.learn(self.clients[name], t, model, self.anchor, contributed=sent)
        after = learned.model
        check_finite(name, t, after.trunk)
        self.store.put(t + 1, CLIENT, name, "private", after.private)
        self.store.put(t + 1, CLIENT, name, "optimiser", after.moments)
        self.store.put(t + 1, SERVER, name, "optimiser", after.trunk_moments)
        report, before, seconds = learned.report, learned.before, learned.server_seconds
        return Trained.of(report, before, after.exchanged, after.trunk, self._start, seconds)

    def try_on(self, t: int, name: str, mixed: Mixed) -> float:
        """Keep one client's mixture and score the model that it is served by."""
        if mixed.reset:
            for side in (CLIENT, SERVER):
                moments = without(self.store.prepared(t + 1, side, name, "optimiser"), mixed.reset)
                self.store.put(t + 1, side, name, "optimiser", moments)
        model = self.served(t, name, mixed)
        score, after = self.work.try_on(self.clients[name], t, model)
        if self.clients[name].recommender.choices > 1:
            self.store.put(t + 1, CLIENT, name, f"{self.store.served}private", after.private)
        return score

    def served(self, t: int, name: str, mixed: Mixed) -> ClientModel:
        """Return the model that a client is served by after the round: its mixture."""
        private = self.store.prepared(t + 1, CLIENT, name, "private")
        return ClientModel(mixed.exchanged, private, mixed.trunk)

    def _count(self, name: str, t: int, metrics: int) -> None:
        self.workspace.ledger.record(name, t, "up", "metrics", metrics * METRIC_BYTES)
