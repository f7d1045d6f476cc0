"""What parts of a run read of its recipe."""

from __future__ import annotations

from fellrec.config import PROXIMAL, RunConfig
from fellrec.federation.client import ClientSettings
from fellrec.federation.shares import Quota
from fellrec.models.adapters import LoraSettings
from fellrec.models.optimiser import OptimiserSettings
from fellrec.privacy import UserLevel


def lora_settings(config: RunConfig) -> LoraSettings:
    """Read the [lora] section."""
    lora = config.lora
    return LoraSettings(lora.rank, lora.alpha, lora.dropout, tuple(lora.targets), lora.freeze_a)


def optimiser_settings(config: RunConfig) -> OptimiserSettings:
    """Read the optimiser's part of the [train] section, and a strategy's proximal term."""
    train, balance = config.train, config.balance
    proximal = balance.proximal if balance.strategy in PROXIMAL else 0.0
    return OptimiserSettings(train.learning_rate, train.weight_decay, train.clip, proximal)


def client_settings(config: RunConfig, quota: Quota) -> ClientSettings:
    """Read what a client needs of the [train] and [evaluation] sections."""
    train, evaluation = config.train, config.evaluation
    return ClientSettings(
        seed=config.seed,
        optimiser=optimiser_settings(config),
        local_epochs=train.local_epochs,
        batch_size=train.batch_size,
        micro_batches=train.micro_batches,
        in_flight=train.in_flight,
        windows=train.windows,
        ks=tuple(evaluation.ks),
        evaluation_batch=evaluation.batch_size,
        samples=quota.samples,
        valid_users=quota.valid_users,
        test_users=quota.test_users,
        alternate=config.lora.alternate,
        user_level=user_level(config),
    )


def user_level(config: RunConfig) -> UserLevel | None:
    """Read what the [privacy] section asks of steps; None where these are not private."""
    privacy = config.privacy
    return UserLevel(privacy.user_noise, privacy.user_clip) if privacy.user_noise else None
