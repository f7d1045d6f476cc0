"""Federated strategies: each says who takes how much from whom, and no more.

All are M3 with something held fixed, so each differs from the last only where its maths does:

    Local     warmth 0: every client keeps its own
    FedAvg    warmth 1, attention 1: everyone takes the mean (or the mean by number of examples)
    FellRec   attention from M1, warmth from M2
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from fellrec.balance.attention import Space, Spread, spread
from fellrec.balance.heating import HeatingKind, check_heating, heating
from fellrec.balance.mixing import mixture
from fellrec.errors import ConfigError

Merge = Literal["factors", "product"]


@dataclass(frozen=True)
class RoundReport:
    """What the coordinator knows of the N clients that completed round `t`, in one order.

    losses (N,) mean training losses; examples (N,) training examples; attention (N, N) in the
    strategy's space, or in `factors` where it has none (then it is logged and not used).
    """

    t: int
    losses: Tensor
    examples: Tensor
    attention: Tensor


@dataclass(frozen=True)
class Mixture:
    """A strategy's answer: weights (N, N) float64, rows summing to 1, and what to log beside it."""

    weights: Tensor
    warmth: Tensor
    attention: Tensor
    spread: Spread


class Strategy:
    """M3 with all attention at 1; a strategy overrides `warmth`, and `weights` where it must."""

    name: ClassVar[str]

    @property
    def space(self) -> Space | None:
        """The similarity to compute for the report; None: not used (log `factors`)."""
        return None

    @property
    def merge(self) -> Merge:
        """Where clients are mixed (M4)."""
        return "factors"

    @property
    def exchanges(self) -> bool:
        """Whether adapters need to travel at all."""
        return True

    def warmth(self, report: RoundReport) -> Tensor:
        """How much of the others each client takes in: (N,) float64 in [0, 1]."""
        raise NotImplementedError

    def weights(self, report: RoundReport, warmth: Tensor) -> Tensor:
        """What each client takes from each: (N, N) float64, rows summing to 1."""
        return mixture(torch.ones(len(warmth), len(warmth), dtype=torch.float64), warmth)

    def mixture(self, report: RoundReport) -> Mixture:
        """Weigh the clients of a round (M1-M3)."""
        warmth = self.warmth(report)
        attention = torch.as_tensor(report.attention, dtype=torch.float64)
        return Mixture(self.weights(report, warmth), warmth, attention, spread(attention))


@dataclass(frozen=True)
class Local(Strategy):
    """Every client for itself: the floor that all else is measured against."""

    name: ClassVar[str] = "local"

    @property
    def exchanges(self) -> bool:
        """Nothing travels."""
        return False

    def warmth(self, report: RoundReport) -> Tensor:
        """0 for all."""
        return torch.zeros(len(report.losses), dtype=torch.float64)


@dataclass(frozen=True)
class FedAvg(Strategy):
    """One average for all (McMahan et al. 2017): of the clients, or of their training examples."""

    name: ClassVar[str] = "fedavg"
    weighting: Literal["uniform", "examples"] = "uniform"

    def __post_init__(self) -> None:
        """Raise `ConfigError` for an unknown weighting."""
        if self.weighting not in ("uniform", "examples"):
            raise ConfigError(f"unknown weighting {self.weighting!r}: choose uniform or examples")

    def warmth(self, report: RoundReport) -> Tensor:
        """1 for all."""
        return torch.ones(len(report.losses), dtype=torch.float64)

    def weights(self, report: RoundReport, warmth: Tensor) -> Tensor:
        """1/N, or each client's share of the examples."""
        if self.weighting == "uniform":
            return super().weights(report, warmth)
        examples = torch.as_tensor(report.examples, dtype=torch.float64)
        if not (torch.isfinite(examples) & (examples >= 0)).all() or not examples.sum() > 0:
            raise ConfigError(
                f"examples {examples.tolist()} can't weigh clients: use weighting = 'uniform'"
            )
        return (examples / examples.sum()).repeat(len(warmth), 1)


@dataclass(frozen=True)
class FellRec(Strategy):
    """The paper's dynamic balance: M1's attention, M2's heating. alpha = 0 is `Local`."""

    name: ClassVar[str] = "fellrec"
    alpha: float = 0.7
    beta: float = 1.0
    heating: HeatingKind = "paper"
    tau: float | None = None
    space: Space = "factors"
    merge: Merge = "factors"

    def __post_init__(self) -> None:
        """Raise `ConfigError` for an option out of its range."""
        check_heating(alpha=self.alpha, beta=self.beta, kind=self.heating, tau=self.tau)
        for key, value, known in (
            ("space", self.space, get_args(Space)),
            ("merge", self.merge, get_args(Merge)),
        ):
            if value not in known:
                raise ConfigError(f"unknown {key} {value!r}: choose one of {', '.join(known)}")

    def warmth(self, report: RoundReport) -> Tensor:
        """M2."""
        return heating(
            report.losses,
            report.t,
            alpha=self.alpha,
            beta=self.beta,
            kind=self.heating,
            tau=self.tau,
        )

    def weights(self, report: RoundReport, warmth: Tensor) -> Tensor:
        """M3."""
        return mixture(report.attention, warmth)


_STRATEGIES: dict[str, type[Strategy]] = {kind.name: kind for kind in (FellRec, FedAvg, Local)}


def make_strategy(name: str, **options: Any) -> Strategy:
    """Build the strategy of this name: `fellrec`, `fedavg` or `local`.

    Raises `ConfigError` for an unknown name, an option the strategy does not have, or a bad value.
    """
    if name not in _STRATEGIES:
        raise ConfigError(f"unknown strategy {name!r}: choose one of {', '.join(_STRATEGIES)}")
    kind = _STRATEGIES[name]
    known = list(inspect.signature(kind).parameters)
    for option in options.keys() - set(known):
        takes = ", ".join(known) or "no options"
        raise ConfigError(f"strategy {name!r} has no option {option!r}: it takes {takes}")
    return kind(**options)
