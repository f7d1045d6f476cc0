"""What a coordinator asks of a federation's members, wherever they run.

A simulation answers in one process (`simulation`), a deployment by messages; the round loop
(`coordinator`) can't tell them apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from fellrec.errors import FellrecError
from fellrec.federation.client import TrainReport
from fellrec.federation.store import Standing

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Start:
    """What every client starts from.

    exchanged, trunk: the adapter's tensors on the client and on the server, frozen ones too.
    moving: names of those that are trained, sent and mixed.
    """

    exchanged: Tensors
    trunk: Tensors
    moving: Set[str]

    def shapes(self) -> dict[str, torch.Size]:
        """Names and shapes of what is mixed: the client's tensors, then the trunk's."""
        both = {**self.exchanged, **self.trunk}
        return {name: tensor.shape for name, tensor in both.items() if name in self.moving}


@dataclass(frozen=True)
class Trained:
    """A client's local round. tensors: all that are mixed, of both its sides. before: validation
    score without mixing, None where it was not asked for. server_seconds: spent by its trunk. kept:
    the trunk's adapter where that is not mixed.
    """

    report: TrainReport
    before: float | None
    tensors: Tensors
    server_seconds: float
    kept: Tensors = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        report: TrainReport,
        before: float | None,
        exchanged: Tensors,
        trunk: Tensors,
        start: Start,
        server_seconds: float,
    ) -> Trained:
        """Sort out what is mixed of all that a client and its trunk have trained."""
        both = {**exchanged, **trunk}
        tensors = {key: both[key] for key in both if key in start.moving}
        kept = {} if trunk.keys() & start.moving else trunk
        return cls(report, before, tensors, server_seconds, kept)


@dataclass(frozen=True)
class Mixed:
    """A client's own mixture, for both its sides. reset: names of tensors whose optimiser moments
    start anew. standing: before this round, by which the client sees whether it got better.
    """

    exchanged: Tensors
    trunk: Tensors
    reset: Sequence[str]
    standing: Standing


class Members(Protocol):
    """All clients, each with its trunk. A client that fails answers with its error."""

    @property
    def names(self) -> Sequence[str]:
        """The clients, in an order that stays the same."""

    def start(self) -> Start:
        """Return what every client starts from."""

    def train(self, t: int, drawn: Sequence[str]) -> Iterator[tuple[str, Trained | FellrecError]]:
        """Let clients train from where round `t` finds them: each of `drawn`, in that order."""

    def receive(
        self, t: int, mixtures: Iterable[tuple[str, Mixed]]
    ) -> Iterator[tuple[str, float | FellrecError]]:
        """Hand mixtures out: each client's validation score with its own, in that order."""
