"""The coordinator: which round comes next, who takes part, and the loop over rounds.

It sees adapters, mean losses, example counts and aggregate scores; no history, no user.
"""

from __future__ import annotations

from collections.abc import Sequence

from fellrec.config import RunConfig
from fellrec.federation.decisions import draw, strategy_for
from fellrec.federation.members import Members, Start
from fellrec.federation.rounds import Books, Round
from fellrec.federation.shares import seeded
from fellrec.federation.store import RunState


class Coordinator:
    """Runs a recipe's rounds in a run directory, from wherever that stands."""

    def __init__(self, config: RunConfig, books: Books) -> None:
        self.config = config
        self.books = books
        self.strategy = strategy_for(config)

    def begin(self, state: RunState, start: Start, names: Sequence[str]) -> Round | None:
        """Open the next round; None after the last one, or when every client has stopped."""
        config = self.config
        if state.round >= config.train.rounds:
            return None
        rng = seeded(config.seed, "draw", str(state.round))
        drawn = draw(names, state.standings, config.clients.per_round, rng)
        if not drawn:
            self.books.observer.note("every client has stopped early")
            return None
        return Round(config, self.strategy, self.books, start, state, list(names), drawn)

    def run(self, state: RunState, members: Members) -> RunState:
        """Go on to the end; return the final state."""
        while (round := self.begin(state, members.start(), members.names)) is not None:
            mixtures = round.collect(members.train(round.t, round.drawn))
            state = round.finish(members.receive(round.t, mixtures))
        return state
