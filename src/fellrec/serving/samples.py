"""A few real users of a finished run: what they took, what is recommended, what was held out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from fellrec.federation.shares import seeded
from fellrec.serving.ranking import Recommendation
from fellrec.serving.run import Run


@dataclass(frozen=True)
class HeldOut:
    """A test target. rank: its place in the whole ranking, from 1; None where it can't have one.

    A target that the user's history already has is never recommended.
    """

    title: str
    rank: int | None


@dataclass(frozen=True)
class Sample:
    """One user. history: titles, oldest first. held_out: what came next, never learned from."""

    client: str
    user: str
    history: tuple[str, ...]
    recommended: tuple[Recommendation, ...]
    held_out: tuple[HeldOut, ...]

    def hit(self, recommendation: Recommendation) -> bool:
        """Return whether a recommendation is what the user took next."""
        rank = self.recommended.index(recommendation) + 1
        return any(target.rank == rank for target in self.held_out)


def samples(run: Run, count: int = 3, *, k: int = 5) -> list[Sample]:
    """Draw users by the run's seed, of different clients as far as there are any, and serve them.

    The history is what the test scores start from: training and validation. k: recommendations and
    last titles of the history to keep. Users without test targets are never drawn.
    """
    return [sample(run, user, k=k) for user in draw(run, count)]


def sample(run: Run, user: int, *, k: int = 5) -> Sample:
    """Serve the user of this row of the split by its own client; see `samples`."""
    shares = run.shares
    catalogue = shares.dataset.catalogue
    items = shares.split.history("test")[user].tolist()
    client = shares.partition.names[int(shares.partition.assignment[user])]
    ranking = run.client(client).recommend_items(items, k=len(catalogue))
    places = {entry.item: rank for rank, entry in enumerate(ranking, start=1)}
    return Sample(
        client,
        shares.split.users[user],
        tuple(catalogue.titles[item] for item in items[-k:]),
        tuple(ranking[:k]),
        tuple(
            HeldOut(catalogue.titles[item], places.get(catalogue.ids[item]))
            for item in shares.split.test[user].tolist()
        ),
    )


def draw(run: Run, count: int) -> list[int]:
    """Choose rows of the split: a second user of a client only when all had a first.

    They are in the order of turns and clients, largest first.
    """
    shares = run.shares
    known = [number for number, name in enumerate(shares.partition.names) if name in run.names]
    served = (shares.split.history("test").lengths() > 0) & (shares.split.test.lengths() > 0)
    served &= np.isin(shares.partition.assignment, known)
    users = seeded(run.config.seed, "samples").permutation(np.flatnonzero(served))
    turns: Counter[int] = Counter()
    queue = []
    for user in users.tolist():
        client = int(shares.partition.assignment[user])
        queue.append((turns[client], client, user))
        turns[client] += 1
    chosen = sorted(queue, key=lambda entry: entry[0])[:count]
    return [user for _, _, user in sorted(chosen)]
