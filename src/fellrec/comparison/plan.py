"""What a comparison consists of: a file of strategies, seeds and axes, and the cells it asks for.

    name = "shops"
    title = "Strategies on our shops"
    recipe = "ml100k"                 # what all cells start from, a shipped recipe or a file
    seeds = [0, 1, 2]
    reference = "fedavg"              # what the others are read against
    peers = ["popularity", "sasrec"]  # recommenders that are no language models, see `peers`

    [set]                             # settings of every cell
    "train.rounds" = 5

    [strategies.fedavg]               # settings of one row of the table
    "balance.strategy" = "fedavg"

    [axes]                            # everything above, once for each value
    "clients.count" = [3, 5]

    [axes.partition]                  # or for each of some settings, by a name for them
    even = { "clients.partition" = "random" }
    uneven = { "clients.partition" = "dirichlet", "clients.concentration" = 0.1 }

Every cell is an ordinary run of a recipe. Two cells that ask for the same, in the same or in
different comparisons, are one.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from fellrec.comparison.checks import Peer, blamed, check, check_tables
from fellrec.config import Count, RunConfig, Section, Text, Tuple, parse_toml
from fellrec.config.messages import explain
from fellrec.errors import ConfigError

Value = str | bool | int | float | list[Any]
Settings = dict[str, Value]
Listed = BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)

_SAME = ("data", "evaluation")
"""Sections in which the cells of one table agree: else they could not be compared."""
_ASIDE = ("name", "train.threads", "model.device", "evaluation.keep_rounds")
"""Settings that no score depends on. On an accelerator sums run in another order, as they do from
one kind of CPU to the next; which it was, a cell's origin says."""
_PEER_READS = ("seed", "data", "evaluation")


class ComparisonFile(Section):
    """A comparison as it is written; see the module."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", examples=["shops"])
    """Name of the comparison and of its folder."""
    title: Text = "Comparison"
    """Its heading."""
    about: str = ""
    """What it is there to find out, in a few sentences."""
    recipe: Text
    """What every cell starts from."""
    seeds: Tuple[Annotated[int, Field(ge=0, le=2**32 - 1)]] = (0,)
    """Every cell is run once for each; differences are between cells of the same seed."""
    reference: str = ""
    """The strategy that others are read against; none where it is empty."""
    floor: str = "local"
    """The strategy of clients that learn alone, for each client's gain."""
    ceiling: str = "centralised"
    """The strategy of all data in one place."""
    peers: Annotated[tuple[Peer, ...], Listed] = ()
    """Recommenders that are no language models."""
    shown: Count = 10
    """Length of the list whose scores are shown first."""
    set: Settings = Field(default_factory=dict)
    """Settings of every cell, by dotted key."""
    strategies: dict[str, Settings] = Field(default_factory=dict)
    """What each row of the table changes, by its label."""
    axes: dict[str, Tuple[Value] | dict[str, Settings]] = Field(default_factory=dict)
    """What all rows are run for: the values of a dotted key, or settings by a name for them."""

    @model_validator(mode="before")
    @classmethod
    def _check_tables(cls, values: Any) -> Any:
        """Say of settings and axes what is wrong in words that fit them."""
        check_tables(values)
        return values


@dataclass(frozen=True)
class Planned:
    """One cell that a comparison asks for.

    label: of its row. axes: the values that its table stands for. config: the recipe; of a peer,
    that whose data and clients it is scored on. peer: its name, None for a recipe's run.
    """

    label: str
    axes: tuple[tuple[str, Any], ...]
    config: RunConfig
    peer: str | None = None

    @property
    def seed(self) -> int:
        """Return the seed of all its draws."""
        return self.config.seed

    @property
    def key(self) -> str:
        """Return 12 hexadecimal digits that all cells share which ask for the same.

        Made of the values that differ from the defaults, so that a setting which is new and left
        alone changes nothing.
        """
        wanted = _differing(self.config.model_dump(mode="json"))
        if self.peer is not None:
            kept = _PEER_READS + (("clients",) if self.peer == "sasrec-federated" else ())
            wanted = {k: v for k, v in wanted.items() if k.partition(".")[0] in kept}
            wanted["peer"] = self.peer
        text = json.dumps(wanted, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def name(self) -> str:
        """Return the name of its folders: for people first, then the key."""
        values = [f"{key.rpartition('.')[2]}-{value}" for key, value in self.axes]
        words = [self.label, *values, f"s{self.seed}", self.key]
        return re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(words))[-100:].lstrip("._-")


@dataclass(frozen=True)
class Comparison:
    """A comparison and the cells that it asks for, table by table, row by row, seed by seed."""

    file: ComparisonFile
    text: str
    cells: tuple[Planned, ...]

    @classmethod
    def read(cls, source: str | PathLike[str]) -> Self:
        """Read a shipped comparison by name, or a TOML file.

        Raises ConfigError, in one line, for a file that is none, a setting that is wrong, a label
        that is not there, or cells that could not be compared.
        """
        text, origin = _read(source)
        try:
            file = ComparisonFile.model_validate(parse_toml(text, origin))
        except ValidationError as error:
            raise ConfigError(explain(ComparisonFile, error, origin, ())) from None
        return cls(file, text, tuple(_cells(file, origin)))


def comparisons() -> list[str]:
    """Return the names of the shipped comparisons, sorted."""
    found = resources.files("fellrec.comparisons").iterdir()
    return sorted(each.name.removesuffix(".toml") for each in found if each.name.endswith(".toml"))


def _read(source: str | PathLike[str]) -> tuple[str, str]:
    shipped = comparisons()
    if isinstance(source, str):
        if source in shipped:
            file = resources.files("fellrec.comparisons") / f"{source}.toml"
            return file.read_text("utf-8"), f"{source}.toml"
        if (
            not source.endswith(".toml")
            and Path(source).name == source
            and not Path(source).exists()
        ):
            raise ConfigError(
                f"no comparison is named {source!r}; there are {', '.join(shipped)}, or give the "
                "path of a .toml file"
            )
    path = Path(source)
    path = path / "comparison.toml" if path.is_dir() else path
    try:
        return path.read_text("utf-8-sig"), path.name
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: can't be read as a comparison ({error})") from None


def _cells(file: ComparisonFile, origin: str) -> Iterator[Planned]:
    check(file, origin)
    for points in itertools.product(*(_points(*axis) for axis in file.axes.items())):
        axes = tuple((key, value) for key, value, _ in points)
        common = {**file.set}
        for _, _, settings in points:
            common |= settings
        for seed in file.seeds:
            base = _config(file, {**common, "seed": seed}, None, origin)
            for peer in file.peers:
                yield Planned(peer, axes, base, peer)
            for label, own in file.strategies.items():
                config = _config(file, {**common, **own, "seed": seed}, label, origin)
                for section in _SAME:
                    if getattr(config, section) != getattr(base, section):
                        raise ConfigError(
                            f"{origin}: [strategies.{label}]: changes [{section}], so that it "
                            "could not be compared with the others; make it an axis"
                        )
                yield Planned(label, axes, config)


def _points(
    key: str, values: tuple[Value, ...] | dict[str, Settings]
) -> Iterator[tuple[str, Value, Settings]]:
    """Yield the points of an axis: its key, the value that is shown, the settings behind it."""
    if isinstance(values, dict):
        yield from ((key, name, settings) for name, settings in values.items())
    else:
        yield from ((key, value, {key: value}) for value in values)


def _config(file: ComparisonFile, changes: Settings, label: str | None, origin: str) -> RunConfig:
    """Return the recipe with changes; label: of the strategy that is among them."""
    try:
        config = RunConfig.from_toml(file.recipe, changes)
    except ConfigError as error:
        where = blamed(file, str(error).partition(":")[0], label)
        raise ConfigError(f"{origin}: {where}{error}") from None
    if file.shown not in config.evaluation.ks:
        known = ", ".join(map(str, config.evaluation.ks))
        raise ConfigError(
            f"shown: must be one of evaluation.ks, {known}, got {file.shown} ({origin})"
        )
    return config


def _differing(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that are not the defaults of their recommender, by dotted key."""
    model = {"recommender": values["model"]["recommender"]}
    plain = RunConfig.model_validate({"model": model}).model_dump(mode="json")
    flat, usual = _flat(values), _flat(plain)
    kept = {k: v for k, v in flat.items() if k not in _ASIDE and v != usual[k]}
    return kept | {"model.recommender": values["model"]["recommender"]}


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= {f"{key}.{name}": each for name, each in value.items()}
        else:
            found[key] = value
    return found
