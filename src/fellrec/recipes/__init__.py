"""Complete runs a person can start by name: ``fellrec train demo``."""

from __future__ import annotations

from importlib import resources


def about(name: str, package: str = __name__) -> str:
    """Return what a shipped recipe says of itself: its first comment line.

    package: where it is shipped, this one or that of comparisons.
    """
    text = (resources.files(package) / f"{name}.toml").read_text("utf-8")
    return next((line.lstrip("# ") for line in text.splitlines() if line.startswith("#")), "")
