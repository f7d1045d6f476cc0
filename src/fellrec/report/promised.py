"""What a run promises its users, in sentences; see `federation.promises`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def sentences(promised: Mapping[str, Any]) -> list[str]:
    """Say what a summary's `privacy` states, a sentence for each promise."""
    found = []
    if "uploads" in promised:
        own = promised["uploads"]
        spent = own["epsilon"].values()
        limit = f" of {own['budget']:g}" if own["budget"] else ""
        most = _epsilon(None if None in spent else max(spent, default=None))
        found.append(
            f"What clients exchanged tells of one user at most ε = {most}{limit} at δ = "
            f"{own['delta']:g} (added or removed, all rounds together)."
        )
    if "activations" in promised:
        own = promised["activations"]
        found.append(
            f"Activations crossed under noise of {own['noise']:g} times their length: of a history "
            f"of {own['positions']} positions they tell ε = {_epsilon(own['epsilon'])} at δ = "
            f"{own['delta']:g} over {own['crossings']} crossings."
        )
    return found


def _epsilon(value: float | None) -> str:
    return "∞" if value is None else f"{value:,.2f}" if value < 100 else f"{value:,.0f}"
