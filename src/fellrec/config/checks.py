"""Checks of a recipe that look at several of its sections: each raises ValueError in one line."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fellrec.config.run import RunConfig

LEAST_USER_NOISE = 0.3  # below it ε soon passes a hundred, and is slow to work out


def check_privacy(config: RunConfig) -> None:
    """Refuse settings of [privacy] that defeat each other; ValueError."""
    privacy, model, train = config.privacy, config.model, config.train
    if privacy.bound and not privacy.noise:
        raise ValueError("privacy.bound: clips what noise is added to; set privacy.noise too")
    if privacy.noise and train.in_flight > 1:
        raise ValueError(
            "privacy.noise: is drawn for one part of a batch after another; set train.in_flight = 1"
        )
    if privacy.private_head and model.recommender == "hllm" and model.item_residual == "shared":
        raise ValueError(
            "privacy.private_head: keeps at home what items are read by, but "
            'model.item_residual = "shared" exchanges it; set "local" or "none"'
        )
    if privacy.secret_start and not privacy.private_head:
        raise ValueError(
            "privacy.secret_start: is no secret in a head that is exchanged; set "
            "privacy.private_head"
        )
    if privacy.secret_start and model.quantize != "none":
        raise ValueError(
            "privacy.secret_start: is measured against weights, which model.quantize packs; "
            "leave one of them out"
        )
    if privacy.epsilon and not privacy.user_noise:
        raise ValueError("privacy.epsilon: is spent with noise; set privacy.user_noise too")
    if 0 < privacy.user_noise < LEAST_USER_NOISE:
        raise ValueError(
            f"privacy.user_noise: promises next to nothing below {LEAST_USER_NOISE}, got "
            f"{privacy.user_noise}; raise it"
        )
    if privacy.user_noise and (train.windows > 1 or train.samples):
        key = "train.samples = 0" if train.samples else "train.windows = 1"
        raise ValueError(f"privacy.user_noise: each user may add one window to a step; set {key}")
    if privacy.shuffle and model.recommender != "recformer":
        raise ValueError(
            f'privacy.shuffle: a causal model ("{model.recommender}") needs the order of '
            "positions; leave it out"
        )


def check_robust(config: RunConfig) -> None:
    """Refuse settings of [robust] that no round could meet; ValueError."""
    robust, clients = config.robust, config.clients
    if 0 < robust.clip < 1:
        raise ValueError(f"robust.clip: must be 0 or at least 1, got {robust.clip}")
    if 0 < robust.refuse <= max(robust.clip, 1):
        raise ValueError(
            f"robust.refuse: must be 0 or above {max(robust.clip, 1)}, got {robust.refuse}"
        )
    if config.balance.merge == "product" and robust.rule in ("median", "trimmed-mean"):
        raise ValueError(
            f'robust.rule: "{robust.rule}" compares values of factors, which '
            'balance.merge = "product" does not mix; use "krum", or merge "factors"'
        )
    counted = clients.partition not in ("column", "user")
    fewest = robust.fewest()
    drawn = clients.per_round or (clients.count if counted else fewest)
    if drawn < fewest:
        raise ValueError(
            f'robust.rule: "{robust.rule}" needs {fewest} clients in a round, got '
            f"{drawn}; take more clients, expect fewer malicious ones or use another rule"
        )
