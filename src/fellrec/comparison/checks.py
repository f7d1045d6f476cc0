"""What can be wrong with a comparison's file besides the type of a key, and where it stands."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, get_args

from fellrec.errors import ConfigError

if TYPE_CHECKING:
    from fellrec.comparison.plan import ComparisonFile

Peer = Literal["popularity", "item-knn", "als", "sasrec", "sasrec-federated"]

_LABEL = re.compile(r"[a-z0-9][a-z0-9.+-]{0,39}")
_PLAIN = (str, bool, int, float, list)


def check_tables(values: Any) -> None:
    """Raise ValueError, which names the key, for settings or axes of another shape.

    values: what the file says, not checked yet.
    """
    for where, settings in _tables(values):
        for key, value in settings.items():
            if not isinstance(value, _PLAIN):
                raise ValueError(
                    f"{where}.{key}: must be a text, a number, true or false, or a list, under a "
                    f'key in quotes such as "train.rounds", got {value!r:.60}'
                )
            _check_finite(f"{where}.{key}", value)
    for key, axis in _table(_table(values).get("axes")).items():
        listed = isinstance(axis, list) and all(isinstance(each, _PLAIN) for each in axis)
        named = isinstance(axis, dict) and all(isinstance(each, dict) for each in axis.values())
        if not (listed or named) or not axis:
            raise ValueError(
                f"axes.{key}: must be a list of values, or a table of settings by name, not "
                f"empty, got {axis!r:.60}"
            )


def _check_finite(where: str, value: Any) -> None:
    """Raise ValueError for a number that is none, or is without end, in a value or its lists."""
    for each in value if isinstance(value, list) else ():
        _check_finite(where, each)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where}: must be a finite number, got {value}")


def check(file: ComparisonFile, origin: str) -> None:
    """Raise ConfigError for keys that do not go together."""
    if not file.strategies and not file.peers:
        raise ConfigError(f"strategies: name at least one, or a peer ({origin})")
    for label in file.strategies:
        if label in get_args(Peer) or not _LABEL.fullmatch(label):
            raise ConfigError(
                f"strategies.{label}: take another label, of lower-case letters, digits, '.', '+' "
                f"and '-', at most 40, and not a peer's name ({origin})"
            )
    for role in ("reference", "floor", "ceiling"):
        label = getattr(file, role)
        if label and role in file.model_fields_set and label not in file.strategies:
            known = ", ".join(file.strategies)
            raise ConfigError(f"{role}: must be one of {known}, got {label!r} ({origin})")
    for key in ("seeds", "peers"):
        listed = getattr(file, key)
        if len(set(listed)) < len(listed):
            raise ConfigError(f"{key}: must name each once, got {list(listed)} ({origin})")
    for where, settings in _tables(file.model_dump()):
        if "seed" in settings:
            raise ConfigError(f"{where}.seed: name seeds under seeds, not as a setting ({origin})")


def blamed(file: ComparisonFile, key: str, label: str | None) -> str:
    """Return which table of the file a wrong key comes from, as "[set]: "; "" where from none.

    label: of the strategy whose settings are among those that were tried.
    """
    found = ""
    for where, settings in _tables(file.model_dump()):
        others = where.startswith("strategies.") and where != f"strategies.{label}"
        if key in settings and not others:  # a later table replaces what earlier ones say
            found = f"[{where}]: "
    return found


def _tables(values: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield each table of settings, by where it stands, in the order in which they apply."""
    yield "set", _table(_table(values).get("set"))
    for key, axis in _table(_table(values).get("axes")).items():
        if isinstance(axis, list | tuple):
            yield "axes", {key: list(axis)}
        for name, settings in _table(axis).items():
            yield f"axes.{key}.{name}", _table(settings)
    for label, settings in _table(_table(values).get("strategies")).items():
        yield f"strategies.{label}", _table(settings)


def _table(value: Any) -> Mapping[str, Any]:
    """Return a table, an empty one in the place of anything else."""
    return value if isinstance(value, Mapping) else {}
