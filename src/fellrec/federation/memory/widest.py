"""The largest batches that clients send through the stages: what decides on a peak."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fellrec.federation.client import Client
from fellrec.models.recommender import Batch


@dataclass(frozen=True)
class Widest:
    """The most of each that a batch has, of different batches, maybe.

    places: positions, padding included. positions: without it. rows: sequences. width: positions of
    the longest one. targets: what is learned.
    """

    places: int = 0
    positions: int = 0
    rows: int = 0
    width: int = 0
    targets: int = 0

    def over(self, batches: Iterable[Batch], window: int) -> Widest:
        """Return the larger of this and of some batches, whose rows fill whole windows."""
        step, found = window or 1, self
        for batch in batches:
            layout = batch.layout
            rows, width = len(layout.lengths), -(-layout.width // step) * step
            found = Widest(
                max(found.places, rows * width),
                max(found.positions, layout.total),
                max(found.rows, rows),
                max(found.width, width),
                max(found.targets, len(batch.targets)),
            )
        return found

    def over_scored(self, client: Client, window: int) -> Widest:
        """Return the larger of this and of what a client sends when it is scored."""
        found = self
        for target in ("valid", "test"):
            histories = client.data.history(target).take(client.scored(target))
            batches = client.recommender.serving_batches(
                histories, client.settings.evaluation_batch
            )
            found = found.over(batches, window)
        return found
