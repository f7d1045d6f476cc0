"""Cells made by hand, so that what a table says of them can be worked out beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fellrec.comparison.outcomes import Failure, Outcome
from fellrec.comparison.plan import Comparison, Planned
from fellrec.comparison.rows import Compared
from fellrec.comparison.table import compare
from fellrec.results.cells import Cell

DATA = {"dataset": "toys", "split": "leave-one-out", "users": 4, "items": 9, "digest": "abc"}
COST = {"bytes_up": 2**20, "bytes_down": 2**20, "client_parameter_share": 0.4}


def description(folder: Path, text: str) -> Comparison:
    """Read a comparison from a text; it is written into the folder."""
    path = folder / "comparison.toml"
    path.write_text(text)
    return Comparison.read(path)


def line(round_: int, client: str, valid: float | None, **more: Any) -> dict[str, Any]:
    """Return what is logged of a round and client."""
    spread = more.pop("spread", [0.5, 0.6, 0.75])
    usual = {"warmth": 1.0, "spread": spread, "seconds": 2.0}
    return {"round": round_, "client": client, "valid": valid, **usual, **more}


def cell(
    planned: Planned,
    scores: Sequence[float],
    whose: Sequence[int] | None,
    *,
    rows: Sequence[int] | None = None,
    rounds: Sequence[Mapping[str, Any]] = (),
    data: Mapping[str, Any] | None = None,
) -> Cell:
    """Return the cell of these users' scores, at every length and for both metrics."""
    kept = np.arange(len(scores)) if rows is None else np.array(rows)
    values = {f"{metric}@10": np.array(scores, dtype=float) for metric in ("recall", "ndcg")}
    summary: dict[str, Any] = {"cost": COST}
    if whose is not None:
        names = [f"c{number}" for number in range(max(whose) + 1)]
        summary["clients"] = [
            {"id": name, "valid_users": whose.count(n)} for n, name in enumerate(names)
        ]
    config = None if planned.peer else planned.config
    users = len(scores) if rows is None else DATA["users"]
    origin = {"data": {**DATA, "users": users, **(data or {})}, "code": ["now"]}
    clients = None if whose is None else np.array(whose)
    return Cell(planned.name, config, summary, origin, kept, values, clients, tuple(rounds))


def found(planned: Planned, result: Cell | str | None, *, current: bool = True) -> Outcome:
    """Return an outcome: a cell, the reason of a failure, or nothing."""
    path = Path("results") / planned.name
    if isinstance(result, str):
        return Outcome(planned, path, None, Failure(result, "now", "2026-01-01"), current)
    return Outcome(planned, path, result, None, current and result is not None)


def compared(
    comparison: Comparison, results: Mapping[tuple[str, int], Cell | str | None]
) -> Compared:
    """Compare what is given by label and seed; the rest is missing."""
    outcomes = [found(each, results.get((each.label, each.seed))) for each in comparison.cells]
    return compare(comparison, outcomes)
