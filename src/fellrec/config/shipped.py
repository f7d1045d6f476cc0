"""Where a recipe's text comes from: what is shipped by name, or a file; and a value set by hand."""

from __future__ import annotations

import shlex
import tomllib
from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable
from os import PathLike
from pathlib import Path
from typing import Any

from fellrec.errors import ConfigError


def recipes() -> list[str]:
    """Return the names of the shipped recipes, sorted; one in a folder is "folder/name"."""
    return sorted(_recipes_in(resources.files("fellrec.recipes")))


def _recipes_in(folder: Traversable, prefix: str = "") -> Iterator[str]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _recipes_in(entry, f"{prefix}{entry.name}/")
        elif entry.name.endswith(".toml"):
            yield prefix + entry.name.removesuffix(".toml")


def read_recipe(source: str | PathLike[str]) -> tuple[str, str, str]:
    """Return the text, its name for errors, and the name of a run that has none.

    A file's name is its whole path: in a run's folder they are all called alike. Raises
    `ConfigError` when there is no such recipe or file, or it is not UTF-8 text.
    """
    if isinstance(source, str):
        shipped = recipes()
        if source in shipped:
            file = resources.files("fellrec.recipes") / f"{source}.toml"
            return file.read_text("utf-8"), f"{source}.toml", source
        if not source.endswith(".toml") and Path(source).name == source:
            raise ConfigError(
                f"no recipe is named {source!r}; there are {', '.join(shipped)}, "
                f"or give the path of a .toml file"
            )
    path = Path(source)
    try:
        return path.read_text("utf-8-sig"), str(path), path.stem  # some editors begin with a mark
    except OSError as error:
        raise ConfigError(f"{path}: can't be read ({error.strerror or error})") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8 text") from None


def parse_toml(text: str, origin: str) -> dict[str, Any]:
    """Read TOML; origin: what errors call it.

    Raises `ConfigError` when it is not TOML, or has a number or a depth beyond what can be handled.
    """
    try:
        return _parse(text, origin)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{origin}: not valid TOML: {error}") from None


def _parse(text: str, origin: str) -> dict[str, Any]:
    """Read TOML whose every value can be shown in an error, which a later check may have to do.

    Raises `tomllib.TOMLDecodeError` when it is not TOML, else `ConfigError`.
    """
    try:
        values = tomllib.loads(text)
        repr(values)
    except tomllib.TOMLDecodeError:
        raise
    except RecursionError:
        raise ConfigError(
            f"{origin}: lists or tables within each other, too deep; write fewer brackets and dots"
        ) from None
    except ValueError:  # Python converts no more than some thousands of digits
        raise ConfigError(
            f"{origin}: a number of thousands of digits; write a smaller one"
        ) from None
    return values


def parse_override(text: str) -> tuple[str, Any]:
    """Read ``section.key=value``, the value in TOML's syntax; a bare word is a string.

    Returns:
        The dotted key and the value, for `RunConfig.from_toml`'s overrides.

    Raises:
        ConfigError: no "=", no key, no value, or one that `parse_toml` would not handle.

    """
    key, equals, value = (part.strip() for part in text.partition("="))
    if not (key and equals and value):
        raise ConfigError(f"{text!r}: write section.key=value, such as train.rounds=2")
    try:
        table = _parse(f"value = {value}", key)
    except tomllib.TOMLDecodeError:
        return key, value
    return key, table["value"] if len(table) == 1 else value


def parse_overrides(text: str, where: str) -> dict[str, Any]:
    """Read overrides with spaces between them, quoted as in a shell.

    where: what they are of, for the error. Raises ConfigError as `parse_override` does, and for a
    quotation that does not end.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ConfigError(
            f"{where}: can't be read ({error}); write KEY=VALUE with spaces between them"
        ) from None
    return dict(map(parse_override, words))
