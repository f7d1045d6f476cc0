"""Federated strategies: each says who takes how much from whom, and no more.

All are M3 with something held fixed, so each differs from the last only where its maths does:

    Local     warmth 0: every client keeps its own
    FedAvg    warmth 1, attention 1: everyone takes the mean (or the mean by number of examples)
    FedProx   FedAvg, and training is pulled towards the mean that a client began with
    Ditto     FedAvg, and beside it a model of each client's own, pulled towards the mean
    FedAmp    a fixed share of itself, the rest from others by M1's cosines; pulled towards that
    FellRec   attention from M1, warmth from M2

The pull is a proximal term in local training (`models.optimiser`), of strength 0 in its limit: then
FedProx is FedAvg and Ditto's own models are those of Local.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from fellrec.balance.attention import Space, Spread, sharpen, spread
from fellrec.balance.heating import HeatingKind, check_heating, heating
from fellrec.balance.mixing import mixture
from fellrec.errors import ConfigError

Merge = Literal["factors", "product"]
Weighting = Literal["uniform", "examples"]


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
    """A strategy's answer: weights (N, N) float64, rows summing to 1, and what to log beside it.

    dense: the same for tensors that are no LoRA factors, where it differs.
    """

    weights: Tensor
    warmth: Tensor
    attention: Tensor
    spread: Spread
    dense: Tensor | None = None


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
        return mixture(_alike(len(warmth)), warmth)

    def attention(self, report: RoundReport) -> Tensor:
        """How alike clients are taken to be: (N, N) float64 in [0, 1]."""
        return torch.as_tensor(report.attention, dtype=torch.float64)

    def dense_weights(self, report: RoundReport) -> Tensor | None:
        """What each client takes of the others' dense tensors; None: as of their LoRA factors."""
        return None

    def mixture(self, report: RoundReport) -> Mixture:
        """Weigh the clients of a round (M1-M3)."""
        warmth = self.warmth(report)
        attention = self.attention(report)
        return Mixture(
            self.weights(report, warmth),
            warmth,
            attention,
            spread(attention),
            self.dense_weights(report),
        )


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
    weighting: Weighting = "uniform"

    def __post_init__(self) -> None:
        """Raise `ConfigError` for an unknown weighting."""
        _check_choice("weighting", self.weighting, get_args(Weighting))

    def warmth(self, report: RoundReport) -> Tensor:
        """1 for all."""
        return torch.ones(len(report.losses), dtype=torch.float64)

    def weights(self, report: RoundReport, warmth: Tensor) -> Tensor:
        """1/N, or each client's share of the examples."""
        return mixture(_alike(len(warmth)), warmth, _sizes(report, self.weighting))


@dataclass(frozen=True)
class FedProx(FedAvg):
    """FedAvg whose training is pulled back (Li et al. 2020, arXiv 1812.06127); μ = 0 is FedAvg."""

    name: ClassVar[str] = "fedprox"


@dataclass(frozen=True)
class Ditto(FedAvg):
    """FedAvg, and a model of each client's own beside it (Li et al. 2021, arXiv 2012.04221).

    Both train in every round, the own one pulled towards the common one (`federation.ditto`); the
    own one is served. λ = 0 is `Local`.
    """

    name: ClassVar[str] = "ditto"


@dataclass(frozen=True)
class FedAmp(Strategy):
    """Attentive message passing (Huang et al. 2021, arXiv 2007.03797), its form for deep networks.

    HeurFedAMP: `self_weight` of a client's mixture is itself, the rest the others by the softmax of
    their cosine / temperature; training is pulled towards the mixture. self_weight = 1 is `Local`
    with a pull; 1/N with a high temperature, FedProx. Departure: training also starts from the
    mixture; in the paper it starts from the client's own model.
    """

    name: ClassVar[str] = "fedamp"
    self_weight: float = 0.5
    temperature: float = 0.1
    space: Space | None = "factors"

    def __post_init__(self) -> None:
        """Raise `ConfigError` for an option out of its range."""
        _check_choice("space", self.space, (*get_args(Space), None))
        if not 0 <= self.self_weight <= 1:
            raise ConfigError(f"self_weight is {self.self_weight}: give a number from 0 to 1")

    def attention(self, report: RoundReport) -> Tensor:
        """M1's cosines, sharpened; all 1 without a space."""
        plain = super().attention(report)
        return torch.ones_like(plain) if self.space is None else sharpen(plain, self.temperature)

    def warmth(self, report: RoundReport) -> Tensor:
        """The same for all: what is left beside themselves."""
        return torch.full((len(report.losses),), 1 - self.self_weight, dtype=torch.float64)

    def weights(self, report: RoundReport, warmth: Tensor) -> Tensor:
        """`self_weight` of oneself, the rest spread over the others by attention."""
        clients = len(warmth)
        if clients == 1:
            return torch.ones(1, 1, dtype=torch.float64)
        pull = self.attention(report).fill_diagonal_(0)
        shared = (1 - self.self_weight) * pull / pull.sum(dim=1, keepdim=True)
        return shared + self.self_weight * torch.eye(clients, dtype=torch.float64)


@dataclass(frozen=True)
class FellRec(Strategy):
    """The paper's dynamic balance: M1's attention, M2's heating. alpha = 0 is `Local`.

    Beyond the paper, for ablations and variants: heating `none` leaves attention alone, space None
    leaves heating alone (both: FedAvg); `temperature` sharpens attention (None: as published);
    dense `average` averages all that is no LoRA factor over the clients, as FedAvg does; weighting
    `examples` has clients weigh in M3, and in that average, by their training examples.
    """

    name: ClassVar[str] = "fellrec"
    alpha: float = 0.7
    beta: float = 1.0
    heating: HeatingKind = "paper"
    tau: float | None = None
    space: Space | None = "factors"
    merge: Merge = "factors"
    temperature: float | None = None
    dense: Literal["mixture", "average"] = "mixture"
    weighting: Weighting = "uniform"

    def __post_init__(self) -> None:
        """Raise `ConfigError` for an option out of its range."""
        check_heating(alpha=self.alpha, beta=self.beta, kind=self.heating, tau=self.tau)
        _check_choice("space", self.space, (*get_args(Space), None))
        _check_choice("merge", self.merge, get_args(Merge))
        _check_choice("dense", self.dense, ("mixture", "average"))
        _check_choice("weighting", self.weighting, get_args(Weighting))

    def attention(self, report: RoundReport) -> Tensor:
        """M1, sharpened if asked for; all 1 without a space."""
        plain = super().attention(report)
        if self.space is None:
            return torch.ones_like(plain)
        return plain if self.temperature is None else sharpen(plain, self.temperature)

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
        return mixture(self.attention(report), warmth, _sizes(report, self.weighting))

    def dense_weights(self, report: RoundReport) -> Tensor | None:
        """None, or what FedAvg takes of each."""
        return FedAvg(self.weighting).mixture(report).weights if self.dense == "average" else None


_STRATEGIES: dict[str, type[Strategy]] = {
    kind.name: kind for kind in (FellRec, FedAvg, FedProx, Ditto, FedAmp, Local)
}


def _alike(clients: int) -> Tensor:
    return torch.ones(clients, clients, dtype=torch.float64)


def _sizes(report: RoundReport, weighting: Weighting) -> Tensor | None:
    """What clients weigh before they are looked at: None for all the same."""
    if weighting == "uniform":
        return None
    examples = torch.as_tensor(report.examples, dtype=torch.float64)
    if not (torch.isfinite(examples) & (examples >= 0)).all() or not examples.sum() > 0:
        raise ConfigError(
            f"examples {examples.tolist()} can't weigh clients: use weighting = 'uniform'"
        )
    return examples


def _check_choice(key: str, value: str | None, known: tuple[str | None, ...]) -> None:
    if value not in known:
        names = ", ".join(str(each) for each in known)
        raise ConfigError(f"unknown {key} {value!r}: choose one of {names}")


def make_strategy(name: str, **options: Any) -> Strategy:
    """Build the strategy of this name, see the module.

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
