"""FELLRec's rounds as a Flower strategy: every node gets its own adapter.

Flower's hooks carry one model for all; here they carry none. What a client gets is its own mixture,
kept in the run directory, and what it sends goes there. Two messages make a round: train, then
take the mixture and score it, so that the score decides about the same round as in a simulation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TypeVar

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.app import Message as FlowerMessage
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from fellrec.errors import ConfigError, FellrecError, WireError
from fellrec.federation.coordinator import Coordinator
from fellrec.federation.decisions import judge
from fellrec.federation.deployment.dispatch import Dispatch, Parcel
from fellrec.federation.deployment.orders import AbsentError, TestScores
from fellrec.federation.flower.post import Answer, Subject, exchange, letter, opened
from fellrec.federation.flower.roster import Roster
from fellrec.federation.members import Mixed, Trained
from fellrec.federation.rounds import Round
from fellrec.federation.store import RunState, Standing
from fellrec.split.service.messages import Kept

T = TypeVar("T")


class FellrecStrategy(Strategy):
    """Carries a coordinator's rounds over a grid.

    state: as the last round left it. `start` goes on from there to the recipe's end.
    """

    def __init__(
        self, coordinator: Coordinator, dispatch: Dispatch, roster: Roster, state: RunState
    ) -> None:
        self.state = state
        self._coordinator = coordinator
        self._dispatch = dispatch
        self._roster = roster
        self._round: Round | None = None
        self._mixtures: Iterator[tuple[str, Mixed]] = iter(())
        self._standings: dict[str, Standing] = {}
        self._lost: dict[str, FellrecError] = {}

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord | None = None,
        num_rounds: int = 0,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: object = None,
    ) -> Result:
        """Run the rounds that are left. Everything but `grid` and `timeout` (seconds that the
        answers to one message may take) is the recipe's to say and not used.

        Raises TrainingError when a round had too few clients, WireError when no trunk is left.
        """
        nothing, none = ArrayRecord(), ConfigRecord()
        while True:
            letters = self.configure_train(self.state.round + 1, nothing, none, grid)
            if self._round is None:
                return Result()
            self.aggregate_train(self.state.round + 1, exchange(grid, letters, timeout))
            letters = self.configure_evaluate(self.state.round + 1, nothing, none, grid)
            self.aggregate_evaluate(self.state.round + 1, exchange(grid, letters, timeout))

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[FlowerMessage]:
        """Open the next round and write to each client that was drawn; nothing after the last."""
        dispatch = self._dispatch
        self._round = self._coordinator.begin(self.state, dispatch.begun, dispatch.names)
        if self._round is None:
            return ()
        if dispatch.trunks is not None:
            dispatch.trunks.attend()
        self._see_who_is_there(grid)
        self._lost, self._standings = {}, {}
        return self._letters(
            "train", self._round.drawn, lambda name: dispatch.train(self.state, name)
        )

    def aggregate_train(
        self, server_round: int, replies: Iterable[FlowerMessage]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Mix what clients learned; the adapters stay with the run directory."""
        round = self._now()
        answers = self._by_client(replies)

        def trained(name: str, answer: Answer) -> Trained | FellrecError:
            return self._dispatch.trained(round.t, name, answer)

        def learned() -> Iterator[tuple[str, Trained | FellrecError]]:
            for name in round.drawn:
                yield name, self._read(name, answers, trained)

        self._mixtures = round.collect(learned())
        return None, None

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[FlowerMessage]:
        """Write to each client that learned: its own mixture."""
        t, self._lost = self._now().t, {}

        for name, mixed in self._mixtures:
            self._standings[name] = mixed.standing
            receive = partial(self._dispatch.receive, t, mixed=mixed)
            yield from self._letters("evaluate", [name], receive)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[FlowerMessage]
    ) -> MetricRecord | None:
        """Judge the mixtures and save the round."""
        self.state = self._now().finish(self._scores(self._by_client(replies)))
        return None

    def summary(self) -> None:
        """Say nothing: the run directory has the recipe."""

    def test(self, grid: Grid, seconds: float) -> dict[str, TestScores]:
        """Ask all clients for the scores of their best adapters: those of the ones that answered.

        seconds: how long the answers may take.
        """
        dispatch = self._dispatch
        if dispatch.trunks is not None:
            dispatch.trunks.attend()
        self._see_who_is_there(grid)
        found = self._ask_for_tests(grid, dispatch.names, seconds)
        # Who has lost its best adapter says so, and is asked again with the coordinator's copy.
        lost = [name for name, score in found.items() if isinstance(score, AbsentError)]
        found |= self._ask_for_tests(grid, lost, seconds)
        scores = {}
        for name, score in found.items():
            if isinstance(score, FellrecError):
                self._coordinator.books.observer.note(
                    f"client {name}: {score}; it has no test score"
                )
            else:
                scores[name] = score
        return scores

    def _ask_for_tests(
        self, grid: Grid, names: Sequence[str], seconds: float
    ) -> dict[str, TestScores | FellrecError]:
        dispatch, self._lost = self._dispatch, {}
        letters = self._letters(
            "evaluate.test", names, lambda name: dispatch.test(self.state, name)
        )
        answers = self._by_client(exchange(grid, letters, seconds))
        return {name: self._read(name, answers, dispatch.tested) for name in names}

    def _see_who_is_there(self, grid: Grid) -> None:
        for introduction, start in self._roster.refresh(grid):
            try:
                self._dispatch.rejoined(introduction, start)
            except ConfigError as error:
                self._roster.leave_out(introduction.client, str(error))

    def _scores(
        self, answers: dict[str, Answer | FellrecError]
    ) -> Iterator[tuple[str, float | FellrecError]]:
        """Yield each mixture's score; at the end, make the trunks keep what the round will keep.

        The trunks go first: a run directory that is a round behind can go on, as both sides still
        hold the label before; one that is ahead could not.
        """
        t, patience = self._now().t, self._coordinator.config.train.patience
        kept, forgotten = {}, []

        def scored(name: str, answer: Answer) -> float | FellrecError:
            return self._dispatch.scored(t, name, answer)

        for name, standing in self._standings.items():
            score = self._read(name, answers, scored)
            if isinstance(score, FellrecError):
                forgotten.append(name)
            else:
                _, improved = judge(standing, score, t + 1, patience)
                kept[name] = Kept(label=t + 1, improved=improved)
            yield name, score
        if self._dispatch.trunks is not None:
            self._dispatch.trunks.commit(kept)
            left_out = [name for name in self._now().drawn if name not in self._standings]
            self._dispatch.trunks.drop([*forgotten, *left_out])

    def _letters(
        self, subject: Subject, names: Iterable[str], write: Callable[[str], Parcel]
    ) -> Iterator[FlowerMessage]:
        """Write a letter to each client that is there; what hinders another is remembered."""
        for name in names:
            node = self._roster.node(name)
            try:
                if node is None:
                    raise WireError("it is not connected")
                order, tensors = write(name)
            except FellrecError as error:
                self._lost[name] = error
                continue
            yield letter(node, subject, order, tensors, str(self.state.round))

    def _by_client(self, replies: Iterable[FlowerMessage]) -> dict[str, Answer | FellrecError]:
        named = ((self._roster.client(node), each) for node, each in opened(replies).items())
        return {name: each for name, each in named if name is not None}

    def _read(
        self,
        name: str,
        answers: dict[str, Answer | FellrecError],
        read: Callable[[str, Answer], T | FellrecError],
    ) -> T | FellrecError:
        """Read a client's answer, or say why there is none."""
        gone = WireError("it did not answer; its SuperNode or its process is gone")
        answer = self._lost.get(name) or answers.get(name, gone)
        return answer if isinstance(answer, FellrecError) else read(name, answer)

    def _now(self) -> Round:
        if self._round is None:
            raise RuntimeError("no round was begun")
        return self._round
