"""What a client does with a model in a round: learn, try the mixture on, be tested.

A simulation and a client's own machine do exactly this; they differ in where a model is kept, and
in where its trunk is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fellrec.config import RunConfig
from fellrec.errors import TrainingError
from fellrec.federation.client import Client, Scores, TrainReport
from fellrec.federation.decisions import strategy_for
from fellrec.federation.observer import Observer
from fellrec.federation.turns import Anchor, ClientModel, turn
from fellrec.federation.workspace import Workspace


@dataclass(frozen=True)
class Learned:
    """A local round. before: validation score of the model as it was learned, None where it was
    not asked for. model: as the round left it. server_seconds: spent by a trunk in this process.
    """

    report: TrainReport
    before: float | None
    model: ClientModel
    server_seconds: float


class Work:
    """Lends one model to one client after another; see `turns`."""

    def __init__(self, config: RunConfig, workspace: Workspace, observer: Observer) -> None:
        self.config = config
        self.workspace = workspace
        self.observer = observer
        self._exchanges = strategy_for(config).exchanges

    def learn(
        self,
        client: Client,
        t: int,
        model: ClientModel,
        anchor: Anchor | None = None,
        *,
        contributed: int = 0,
        own: bool = False,
    ) -> Learned:
        """Train for a round on the client's histories; anchor: see `turns.turn`.

        contributed: rounds for which it has sent an upload already. own: a second model of the
        client's, which nobody scores before mixing.

        Raises TrainingError when it diverged, or when its privacy budget does not cover the round;
        WireError when the trunk refused or was lost.
        """
        before, budget = None, self.workspace.budget(client)
        if budget is not None and not budget.allows(contributed + 1):
            raise TrainingError(
                f"client {client.name}: its privacy budget does not cover round {t}, ε would be "
                f"{budget.after(contributed + 1):.2f} of {budget.epsilon:g}; "
                "raise privacy.epsilon or privacy.user_noise"
            )
        doing = "learn its own" if own else "learn"
        with turn(self.workspace, client, t, model, anchor, doing=doing) as it:
            report = client.train(t, lambda *now: self.observer.step(client.name, *now))
            if not own and self.config.evaluation.before_mixing and self._exchanges:
                before = self._validate(client)
        if budget is not None:
            epsilon, more = budget.after(contributed + 1), budget.allows(contributed + 2)
            report = replace(report, epsilon=epsilon, last=not more)
        return Learned(report, before, it.finished(), it.server_seconds)

    def try_on(self, client: Client, t: int, model: ClientModel) -> tuple[float, ClientModel]:
        """Score a mixed model before further training: validation score, and the model.

        What validation chose is part of the model from then on. Raises as `learn` does.
        """
        with turn(self.workspace, client, t, model, doing="try on") as it:
            score = self._validate(client)
        return score, it.finished()

    def test(
        self, client: Client, t: int, model: ClientModel, *, trained: bool
    ) -> tuple[Scores, ClientModel]:
        """Score a model on the test targets: per-user scores, and the model.

        trained: False for the common start, on which validation may still choose how scores are
        weighed, so that a base is scored as what was trained on it is. Raises as `learn` does.
        """
        with turn(self.workspace, client, t, model, doing="test") as it:
            if not trained and client.recommender.choices > 1:
                self._validate(client)
            self.observer.scoring(client.name, "test")
            scores = client.evaluate("test")
        return scores, it.finished()

    def _validate(self, client: Client) -> float:
        self.observer.scoring(client.name, "validation")
        return client.validate(self.config.evaluation.metric)
