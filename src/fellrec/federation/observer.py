"""What a run tells whoever watches it; the command line draws bars and lines from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fellrec.balance import Spread
from fellrec.federation.client import TrainReport


@dataclass(frozen=True)
class RoundRecord:
    """One finished round. Mappings are by client that completed it.

    round: completed rounds before this one (METHOD's t). warmth, losses: M2's. before, valid: the
    validation score without and with mixing (before is None where it was not asked for). dropped:
    the share of energy that M4 lost. server_seconds: what the trunk spent on the client's round.
    """

    round: int
    reports: Mapping[str, TrainReport]
    warmth: Mapping[str, float]
    spread: Spread
    before: Mapping[str, float | None]
    valid: Mapping[str, float]
    dropped: Mapping[str, float]
    failed: Mapping[str, str]
    server_seconds: Mapping[str, float]
    seconds: float


class Observer:
    """Does nothing with what it is told; override what you want to see."""

    def note(self, text: str) -> None:
        """Say something in passing."""

    def working(self, what: str, done: int, total: int) -> None:
        """Preparation of a known length goes on."""

    def clients(self, table: Sequence[Mapping[str, str | int | float]], dropped: int) -> None:
        """The clients: rows of name, users, interactions, share; and how many users were
        dropped.
        """

    def round_begins(self, round: int, rounds: int, drawn: Sequence[str]) -> None:
        """A round begins."""

    def step(self, client: str, done: int, total: int, loss: float) -> None:
        """A client made a training step."""

    def scoring(self, client: str, what: str) -> None:
        """A client is being scored."""

    def round_ends(self, record: RoundRecord) -> None:
        """A round is complete and saved."""
