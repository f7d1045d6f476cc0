"""The whole description of a run: read from TOML, checked, written back with every default.

RunConfig.from_toml("demo", overrides={"train.rounds": 2})
"""

from fellrec.config.run import RunConfig
from fellrec.config.sections import (
    PROXIMAL,
    BalanceConfig,
    Count,
    RobustConfig,
    Section,
    Text,
    Tuple,
)
from fellrec.config.shipped import parse_override, parse_overrides, parse_toml, recipes

__all__ = [
    "PROXIMAL",
    "BalanceConfig",
    "Count",
    "RobustConfig",
    "RunConfig",
    "Section",
    "Text",
    "Tuple",
    "parse_override",
    "parse_overrides",
    "parse_toml",
    "recipes",
]
