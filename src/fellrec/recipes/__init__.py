"""Complete runs a person can start by name: ``fellrec train demo``."""

from __future__ import annotations

from importlib import resources


def about(name: str) -> str:
    """Return what a shipped recipe says of itself: its first comment line."""
    text = (resources.files(__name__) / f"{name}.toml").read_text("utf-8")
    return next((line.lstrip("# ") for line in text.splitlines() if line.startswith("#")), "")
