"""Packages that only some uses need: named in one line where they are missing."""

from __future__ import annotations

from importlib.util import find_spec

from fellrec.errors import ConfigError


def need(extra: str, packages: tuple[str, ...], purpose: str) -> None:
    """Raise ConfigError unless the packages of an extra are installed.

    purpose: what they are needed for, such as "to serve a trunk".
    """
    for package in packages:
        if find_spec(package) is None:
            raise ConfigError(
                f"the package {package} is missing; install fellrec[{extra}] {purpose}"
            )
