"""A whole federation in one process: clients take turns on one head, one trunk, one tail.

Everything that would cross a network crosses the wire's codec here, and what each client owns is on
disk between its turns. Every random draw is keyed by seed, client, round and step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from torch import Tensor

from fellrec.config import RunConfig
from fellrec.errors import FellrecError, TrainingError, WireError
from fellrec.federation.client import Client, Scores, check_finite
from fellrec.federation.decisions import strategy_for
from fellrec.federation.members import Mixed, Start, Trained
from fellrec.federation.observer import Observer
from fellrec.federation.rounds import METRIC_BYTES
from fellrec.federation.store import CLIENT, SERVER, RunState, RunStore
from fellrec.federation.turns import ClientModel, stored_model, turn
from fellrec.federation.workspace import Shares, Workspace
from fellrec.models.optimiser import without


class Simulation:
    """All members of a federation; see `members`.

    store: where both sides of every client are kept between turns. started: what is private of
    clients that never completed a round.
    """

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
        self.observer = observer
        self.started: dict[str, Mapping[str, Tensor]] = {}
        self.clients = {
            name: workspace.client(name, shares.of(number), shares.quotas[number])
            for number, name in enumerate(shares.partition.names)
        }
        self._start = workspace.start()
        self._exchanges = strategy_for(config).exchanges

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
                yield name, self._train(t, name)
            except (TrainingError, WireError) as error:
                yield name, error

    def receive(
        self, t: int, mixtures: Iterable[tuple[str, Mixed]]
    ) -> Iterator[tuple[str, float | FellrecError]]:
        """Score each client's mixed model before further training."""
        for name, mixed in mixtures:
            try:
                yield name, self._receive(t, name, mixed)
            except (TrainingError, WireError) as error:
                yield name, error

    def test(self, state: RunState) -> dict[str, Scores]:
        """Score every client's best model on its test targets: per-user scores by client.

        A client that never completed a round may still let validation choose how scores are
        weighed, so that a base is scored as what was trained on it is; `started` keeps the choice.
        """
        scores = {}
        for name, client in self.clients.items():
            model = stored_model(self.store, self.workspace, state.round, name, best=True)
            with turn(self.workspace, client, state.round, model) as it:
                if name not in state.standings and client.recommender.choices > 1:
                    self._count(name, state.round, 1)
                    self._validate(client)
                self.observer.scoring(name, "test")
                scores[name] = client.evaluate("test")
            if name not in state.standings:
                self.started[name] = it.finished().private
            self._count(name, state.round, len(scores[name]))
        self.workspace.ledger.append_csv(self.store.path / "ledger.csv")
        return scores

    def _train(self, t: int, name: str) -> Trained:
        """Let one client train; what stays with it and with the trunk goes to the store."""
        model = stored_model(self.store, self.workspace, t, name)
        before = None
        with turn(self.workspace, self.clients[name], t, model) as it:
            report = it.client.train(t, lambda *now: self.observer.step(name, *now))
            if self.config.evaluation.before_mixing and self._exchanges:
                before = self._validate(it.client)
        trained = it.finished()
        check_finite(name, t, trained.trunk)
        self.store.put(t + 1, CLIENT, name, "private", trained.private)
        self.store.put(t + 1, CLIENT, name, "optimiser", trained.moments)
        self.store.put(t + 1, SERVER, name, "optimiser", trained.trunk_moments)
        both = {**trained.exchanged, **trained.trunk}
        tensors = {key: both[key] for key in both if key in self._start.moving}
        return Trained(report, before, tensors, it.server_seconds)

    def _receive(self, t: int, name: str, mixed: Mixed) -> float:
        if mixed.reset:
            for side in (CLIENT, SERVER):
                moments = without(self.store.prepared(t + 1, side, name, "optimiser"), mixed.reset)
                self.store.put(t + 1, side, name, "optimiser", moments)
        private = self.store.prepared(t + 1, CLIENT, name, "private")
        model = ClientModel(mixed.exchanged, private, mixed.trunk)
        with turn(self.workspace, self.clients[name], t, model) as it:
            score = self._validate(it.client)
        if it.client.recommender.choices > 1:  # what validation chose is part of the model now
            self.store.put(t + 1, CLIENT, name, "private", it.finished().private)
        return score

    def _validate(self, client: Client) -> float:
        self.observer.scoring(client.name, "validation")
        return client.validate(self.config.evaluation.metric)

    def _count(self, name: str, t: int, metrics: int) -> None:
        self.workspace.ledger.record(name, t, "up", "metrics", metrics * METRIC_BYTES)
