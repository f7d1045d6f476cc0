"""What the coordinator decides: who takes part, what is best so far, who stops.

It sees adapters, mean losses, example counts and aggregate scores; no history, no user.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from fellrec.balance import Mixture, RoundReport, Strategy, make_strategy
from fellrec.config import BalanceConfig, RunConfig
from fellrec.errors import ConfigError
from fellrec.federation.aggregate import similarity
from fellrec.federation.client import TrainReport
from fellrec.federation.rows import Rows
from fellrec.federation.store import Standing


def strategy_for(config: RunConfig) -> Strategy:
    """Build the strategy of a recipe; ConfigError where it does not go with its adapters."""
    strategy = strategy_of(config.balance)
    if strategy.space == "update" and config.lora.freeze_a:
        raise ConfigError(
            'balance.space: "update" compares the products BA, but lora.freeze_a keeps A from '
            'the coordinator; use "factors"'
        )
    return strategy


def check_deployable(config: RunConfig) -> None:
    """Raise ConfigError for a strategy that needs all of a client's models in one process."""
    if config.balance.strategy == "ditto":
        raise ConfigError(
            'balance.strategy: "ditto" keeps two models for each client, which a deployment does '
            "not; run it in one process (fellrec train), or take another strategy"
        )


def passes(config: RunConfig) -> int:
    """Return how many models a client trains in a round."""
    return 2 if config.balance.strategy == "ditto" else 1


def strategy_of(balance: BalanceConfig) -> Strategy:
    """Build the strategy that a recipe names."""
    space = None if balance.space == "none" else balance.space
    match balance.strategy:
        case "fellrec":
            return make_strategy(
                "fellrec",
                alpha=balance.alpha,
                beta=balance.beta,
                heating=balance.heating,
                tau=balance.tau or None,
                space=space,
                merge=balance.merge,
                temperature=balance.temperature or None,
                dense=balance.dense,
                weighting=balance.weighting,
            )
        case "fedavg" | "fedprox" | "ditto" as name:
            return make_strategy(name, weighting=balance.weighting)
        case "fedamp":
            options = {"temperature": balance.temperature} if balance.temperature else {}
            return make_strategy("fedamp", self_weight=balance.self_weight, space=space, **options)
        case name:
            return make_strategy(name)


def draw(
    names: Sequence[str],
    standings: Mapping[str, Standing],
    per_round: int,
    rng: np.random.Generator,
) -> list[str]:
    """Choose the clients of a round, in their usual order: those that have not stopped.

    per_round: how many at most, 0 for all.
    """
    going = [name for name in names if not standings.get(name, Standing()).stopped]
    if per_round and per_round < len(going):
        chosen = rng.choice(len(going), per_round, replace=False)
        return [going[i] for i in sorted(chosen)]
    return going


def weigh(
    strategy: Strategy, t: int, reports: Sequence[TrainReport], rows: Rows, start: Rows | None
) -> Mixture:
    """Turn a round's losses and adapters into everyone's weights (M1-M3)."""
    return strategy.mixture(
        RoundReport(
            t,
            torch.tensor([report.loss for report in reports], dtype=torch.float64),
            torch.tensor([report.examples for report in reports], dtype=torch.float64),
            similarity(rows, strategy.space or "factors", start),
        )
    )


def judge(standing: Standing, score: float, round: int, patience: int) -> tuple[Standing, bool]:
    """Compare a mixed model's validation score with the best one: new standing, improved or not.

    A client without validation targets (a score that is no number) always takes the newest model.
    patience: rounds without a better score before the client stops, 0 for never.
    """
    best = standing.best_score
    if math.isnan(score):
        return Standing(None, round, 0, False, round), True
    if best is None or score > best:
        return Standing(score, round, 0, False, round), True
    stale = standing.stale + 1
    stopped = bool(patience) and stale >= patience
    return Standing(best, standing.best_round, stale, stopped, round), False
