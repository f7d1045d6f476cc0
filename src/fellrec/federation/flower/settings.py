"""What a run is told besides its recipe: the keys of Flower's run configuration."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fellrec.config import RunConfig, parse_overrides
from fellrec.errors import ConfigError
from fellrec.split.service.settings import TlsFiles

DEFAULTS: Mapping[str, str | int | float | bool] = {
    "recipe": "demo",
    "overrides": "",
    "out": "",
    "resume": False,
    "clients": "",
    "trunk": "",
    "certificate": "",
    "key": "",
    "authority": "",
    "wait-seconds": 600.0,
    "answer-seconds": 43_000.0,
    "token-seconds": 900.0,
    "events": "",
    "record": "",
}
"""Every key with what it is when nothing is said; docs/deployment.md explains them."""


@dataclass(frozen=True)
class ServerSettings:
    """config: the recipe, resolved. out: the run directory. resume: go on with it.

    clients: names in their order, empty to take whoever comes, as many as `clients.count`.
    trunks: "HOST:PORT" each. tls: by which trunks know the coordinator; None without trunks.
    wait_seconds: how long clients have to come. answer_seconds: how long to answer one message.
    token_seconds: how long after it was told to work a client may come to its trunk.
    events: a file that is told what happens, one JSON object a line, or None. record: a folder in
    which every message is recorded, or None.
    """

    config: RunConfig
    out: Path
    resume: bool
    clients: tuple[str, ...]
    trunks: tuple[str, ...]
    tls: TlsFiles | None
    wait_seconds: float
    answer_seconds: float
    token_seconds: float
    events: Path | None
    record: Path | None

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> ServerSettings:
        """Read a run configuration; ConfigError names a key that is wrong or missing."""
        values = {key: _typed(key, given.get(key, default)) for key, default in DEFAULTS.items()}
        changes = parse_overrides(values["overrides"], "run configuration: overrides")
        config = RunConfig.from_toml(values["recipe"], changes)
        clients = tuple(n for name in values["clients"].split(",") if (n := name.strip()))
        for name, times in Counter(clients).items():
            if times > 1:
                raise ConfigError(f"run configuration: clients names {name!r} twice")
        trunks = tuple(values["trunk"].replace(",", " ").split())
        files = [values[key] for key in ("certificate", "key", "authority")]
        if trunks and not all(files):
            raise ConfigError(
                "run configuration: trunk needs certificate, key and authority beside it: the "
                "coordinator's own, which the trunk knows it by"
            )
        return cls(
            config=config,
            out=Path(values["out"] or Path("runs") / config.name),
            resume=values["resume"],
            clients=clients,
            trunks=trunks,
            tls=TlsFiles(*map(Path, files)) if trunks else None,
            wait_seconds=values["wait-seconds"],
            answer_seconds=values["answer-seconds"],
            token_seconds=values["token-seconds"],
            events=Path(values["events"]) if values["events"] else None,
            record=Path(values["record"]) if values["record"] else None,
        )


def _typed(key: str, value: Any) -> Any:
    """Check a value's type; Flower reads 60 as a whole number where 60.0 is meant."""
    kind = type(DEFAULTS[key])
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind or (type(value) is float and not 0 < value < math.inf):
        raise ConfigError(
            f"run configuration: {key} must be a {kind.__name__}, above 0 if a number, "
            f"got {value!r}"
        )
    return value
