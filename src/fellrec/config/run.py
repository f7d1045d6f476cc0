"""A run's settings, checked across sections: from TOML, and back with every default.

A value is wrong here or nowhere: the rest of the library takes a `RunConfig` as sound. Each mistake
is a `ConfigError` of one line that names the key, what was expected, what was given and the file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from os import PathLike
from typing import Annotated, Any, Self

import tomli_w
from pydantic import Field, ValidationError, model_validator

from fellrec.config.checks import check_privacy, check_robust
from fellrec.config.messages import explain
from fellrec.config.sections import (
    BalanceConfig,
    BigrecConfig,
    ClientsConfig,
    DataConfig,
    EvaluationConfig,
    LoraConfig,
    ModelConfig,
    PrivacyConfig,
    RecformerConfig,
    RobustConfig,
    Section,
    SplitConfig,
    TrainConfig,
)
from fellrec.config.shipped import parse_toml, read_recipe
from fellrec.errors import ConfigError


class RunConfig(Section):
    """Everything that decides a run."""

    name: str = Field(
        default="run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", examples=["demo", "shops-2.1"]
    )
    """Name of the run and of its folder; a file without one lends its own."""
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0
    """Seed of every random draw."""
    data: DataConfig = DataConfig()
    clients: ClientsConfig = ClientsConfig()
    model: ModelConfig = ModelConfig()
    bigrec: BigrecConfig = BigrecConfig()
    recformer: RecformerConfig = RecformerConfig()
    lora: LoraConfig = LoraConfig()
    split: SplitConfig = SplitConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    train: TrainConfig = TrainConfig()
    balance: BalanceConfig = BalanceConfig()
    robust: RobustConfig = RobustConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        """Let the recommender decide on the base and the history where nobody else does."""
        model = values.get("model") if isinstance(values, dict) else None
        if not isinstance(model, dict) or model.get("recommender") != "bigrec":
            return values
        return {**values, "model": {"base": "smollm2", "history": 10, **model}}

    @model_validator(mode="after")
    def _check_across_sections(self) -> Self:
        clients, evaluation = self.clients, self.evaluation
        if clients.partition == "column" and not clients.column:
            raise ValueError('clients.column: must name a column for the partition "column"')
        counted = clients.partition not in ("column", "user")
        if counted and clients.per_round > clients.count:
            raise ValueError(
                f"clients.per_round: must be at most clients.count, {clients.count}, "
                f"got {clients.per_round}"
            )
        if self.train.micro_batches > self.train.batch_size:
            raise ValueError(
                f"train.micro_batches: must be at most train.batch_size, {self.train.batch_size}, "
                f"got {self.train.micro_batches}"
            )
        if self.balance.merge == "product" and self.lora.freeze_a:
            raise ValueError(
                'balance.merge: "product" trains new A factors, which lora.freeze_a forbids; '
                'use "factors"'
            )
        if self.lora.alternate and (self.lora.freeze_a or self.balance.merge == "product"):
            other = "lora.freeze_a" if self.lora.freeze_a else 'balance.merge = "product"'
            raise ValueError(
                f"lora.alternate: trains A and B in turn, which does not go with {other}; leave "
                "one of them out"
            )
        if int(evaluation.metric.partition("@")[2]) not in evaluation.ks:
            raise ValueError(
                f"evaluation.metric: must be one of evaluation.ks {list(evaluation.ks)}, "
                f"got {evaluation.metric!r}"
            )
        check_privacy(self)
        check_robust(self)
        return self

    @classmethod
    def from_toml(
        cls, source: str | PathLike[str], overrides: Mapping[str, object] | None = None
    ) -> Self:
        """Read a recipe or a file.

        Args:
            source: a shipped recipe's name ("demo", "paper/bigrec-games"), or the path of a TOML
                file. Other texts with a separator, and those that end in ".toml", are paths.
            overrides: values by dotted key ("train.rounds") that replace the file's.

        Raises:
            ConfigError: no such recipe or file, not TOML, or a value that is wrong; one line.

        """
        text, origin, stem = read_recipe(source)
        # The file's name without what a run's name may not have.
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).lstrip("._-")[:100] or "run"
        return cls.from_text(text, origin, {"name": name}, overrides)

    @classmethod
    def from_text(
        cls,
        text: str,
        origin: str,
        defaults: Mapping[str, object] | None = None,
        overrides: Mapping[str, object] | None = None,
    ) -> Self:
        """Read TOML from a text; ``origin`` is what errors call it. See `from_toml`."""
        values = {**(defaults or {}), **parse_toml(text, origin)}
        for key, value in (overrides or {}).items():
            _override(values, key, value)
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError(explain(cls, error, origin, overrides or {})) from None

    def to_toml(self) -> str:
        """Write every value, defaults too; reading it again gives an equal configuration."""
        return tomli_w.dumps(self.model_dump(mode="json"))


def _override(values: dict[str, Any], key: str, value: object) -> None:
    """Set one dotted key in nested tables; validation then names a key that can't exist."""
    section, dot, name = key.partition(".")
    if not dot:
        values[key] = value
        return
    table = values.get(section, {})
    if isinstance(table, dict):  # else validation names the section
        values[section] = {**table, name: value}
