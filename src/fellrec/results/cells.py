"""A folder of finished results, each a cell: small enough to be committed, complete enough to pair.

    results/<name>/
      config.toml    the resolved recipe (a baseline that was not trained has none)
      summary.json   as the run left it
      scores.csv     a line per scored user: the row in the split, the number of its client in the
                     summary (where users belong to clients), then each metric, to six digits
      rounds.jsonl   what the run logged of each round and client (where there were rounds)
      origin.json    command, seed, versions, date, seconds, digests of code, data and these files

A row is a position in the split, an order that the data fix: whoever has the same data can pair two
cells, and there are no ids. Still these are per-user scores, which a client of a deployment keeps
to itself. Keep cells of simulations on data that may be shown.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fellrec.config import RunConfig
from fellrec.errors import FellrecError, RunError
from fellrec.federation.summary import is_summary

Scores = Mapping[str, NDArray[np.float64]]

RECIPE, SUMMARY, SCORES, ORIGIN = "config.toml", "summary.json", "scores.csv", "origin.json"
ROUNDS = "rounds.jsonl"
COMPARED = "cells"
"""The folder, beside those of results, that comparisons fill."""
POPULARITY = "popularity"
"""What the summary of the baseline calls its recommender."""

_DIGITS = 6
_PLAIN = ("recommender", "dataset", "users", "items", "overall")
_OF_PEER = ("code", "seed")
_OF_RUN = (*_OF_PEER, "command", "date", "seconds")
_OF_DATA = ("dataset", "split", "users", "items", "digest")


@dataclass(frozen=True, eq=False)
class Cell:
    """A finished result.

    Attributes:
        name: of its folder.
        config: the recipe; None for a baseline that was not trained.
        summary: what the run's summary.json says; a baseline has no more than `recommender`,
            `dataset`, `users`, `items` and `overall`.
        origin: see the module; `data` has `dataset`, `split`, `users`, `items` and `digest`.
        rows: (u,) int64, the scored users as rows of the split, ascending.
        scores: by metric, (u,) float64.
        clients: (u,) int64, the client of each scored user as its place in the summary; None where
            users belong to nobody.
        rounds: what was logged, a mapping per round and client; empty for a baseline.
    """

    name: str
    config: RunConfig | None
    summary: Mapping[str, Any]
    origin: Mapping[str, Any]
    rows: NDArray[np.int64]
    scores: Scores
    clients: NDArray[np.int64] | None = None
    rounds: tuple[Mapping[str, Any], ...] = ()

    def of(self, rows: NDArray[np.int64], metric: str) -> NDArray[np.float64]:
        """Return one metric of these users, (n,): NaN where a user was not scored."""
        found = np.full(len(rows), np.nan)
        _, here, there = np.intersect1d(self.rows, rows, assume_unique=True, return_indices=True)
        found[there] = self.scores[metric][here]
        return found


def read(path: Path) -> Cell:
    """Read a cell; RunError names a file that is missing, damaged or changed since it was kept."""
    try:
        origin: dict[str, Any] = json.loads((path / ORIGIN).read_text("utf-8"))
        if not {SUMMARY, SCORES} <= origin["files"].keys() or not origin["data"]["digest"]:
            raise ValueError(f"{ORIGIN} is incomplete")
        for file, digest in origin["files"].items():
            if _digest((path / file).read_bytes()) != digest:
                raise RunError(f"{path / file} was changed since it was kept; add the run again")
        recipe = path / RECIPE
        config = RunConfig.from_toml(recipe) if RECIPE in origin["files"] else None
        rows, clients, scores = _parse((path / SCORES).read_text("utf-8"))
        summary = json.loads((path / SUMMARY).read_text("utf-8"))
        _check(config, summary, origin)
        lines = (path / ROUNDS).read_text("utf-8").splitlines() if ROUNDS in origin["files"] else []
        rounds = tuple(json.loads(line) for line in lines)
        return Cell(path.name, config, summary, origin, rows, scores, clients, rounds)
    except FellrecError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(f"{path} is no cell of results ({error!r}); add the run again") from error


def _check(config: RunConfig | None, summary: Any, origin: Mapping[str, Any]) -> None:
    """Raise ValueError where a reader would miss something; config: None but for a run."""
    peer = config is None and "seed" in summary  # the baseline has none
    plain = {*_PLAIN, "cost"} if peer else {*_PLAIN}
    if not (is_summary(summary) if config is not None else summary.keys() >= plain):
        raise ValueError(f"{SUMMARY} is incomplete")
    needed = _OF_RUN if config is not None else _OF_PEER if peer else ()
    lacking = [key for key in needed if key not in origin]
    lacking += [f"data.{key}" for key in _OF_DATA if key not in origin["data"]]
    if lacking:
        raise ValueError(f"{ORIGIN} lacks {', '.join(lacking)}")
    if needed and not isinstance(origin["code"], list):
        raise ValueError(f"{ORIGIN} has a code that is no list")


def read_all(folder: Path) -> list[Cell]:
    """Read every cell of a folder, by name; RunError when there is none.

    Those of comparisons, in its folder `cells`, are not among them.
    """
    found = sorted(path for path in folder.glob("*") if not path.name.startswith("."))
    found = [path for path in found if path.name != COMPARED]
    cells = [read(path) for path in found if path.is_dir()]
    if not cells:
        raise RunError(f"{folder}: no results yet; keep a finished run with fellrec results add")
    return cells


def write(
    path: Path,
    recipe: str | None,
    summary: Mapping[str, Any],
    scores: Scores,
    origin: Mapping[str, Any],
    *,
    clients: NDArray[np.integer] | None = None,
    rounds: str = "",
) -> Cell:
    """Write a cell under another name, then give it its own; of a killed write nothing counts.

    clients: (users,), see `Cell`. rounds: the text of `rounds.jsonl`.
    """
    files = {} if recipe is None else {RECIPE: recipe}
    files[SUMMARY] = json.dumps(summary, indent=2, allow_nan=False) + "\n"
    files[SCORES] = _format(scores, clients)
    if rounds:
        files[ROUNDS] = rounds
    digests = {file: _digest(text.encode()) for file, text in files.items()}
    files[ORIGIN] = json.dumps({**origin, "files": digests}, indent=2) + "\n"
    partial, old = (path.with_name(f".{path.name}.{end}") for end in ("partial", "old"))
    try:
        for stray in (partial, old):
            shutil.rmtree(stray, ignore_errors=True)
        partial.mkdir(parents=True)
        for file, text in files.items():
            (partial / file).write_bytes(text.encode())
        if path.exists():
            path.rename(old)
        os.replace(partial, path)
    except OSError as error:
        raise RunError(f"{path}: can't be written ({error.strerror or error})") from error
    shutil.rmtree(old, ignore_errors=True)
    return read(path)


def _format(scores: Scores, clients: NDArray[np.integer] | None) -> str:
    """Write the scored users' rows and values as CSV."""
    names = list(scores)
    table = np.stack([scores[name] for name in names], axis=1)
    rows = np.flatnonzero(~np.isnan(table).any(axis=1))
    if not len(rows):
        raise RunError("no user was scored, so there is no result to keep")
    whose = [] if clients is None else [clients[rows].tolist()]
    lines = [",".join(["row", *(["client"] if whose else []), *names])]
    for row, *client, values in zip(rows.tolist(), *whose, table[rows].tolist(), strict=True):
        lines.append(",".join([str(row), *map(str, client), *map(_short, values)]))
    return "\n".join(lines) + "\n"


def _short(value: float) -> str:
    return f"{value:.{_DIGITS}f}".rstrip("0").rstrip(".")


def _parse(
    text: str,
) -> tuple[NDArray[np.int64], NDArray[np.int64] | None, dict[str, NDArray[np.float64]]]:
    """Read what `_format` wrote; ValueError when it is not that."""
    header, *lines = text.splitlines()
    first, *names = header.split(",")
    table = np.asarray([[float(cell) for cell in line.split(",")] for line in lines])
    if first != "row" or not names or table.ndim != 2 or table.shape[1] != 1 + len(names):
        raise ValueError("scores.csv has another form")
    rows, clients = table[:, 0].astype(np.int64), None
    table = table[:, 1:]
    if names[0] == "client":
        clients, names, table = table[:, 0].astype(np.int64), names[1:], table[:, 1:]
    if not (np.diff(rows, prepend=-1) > 0).all():
        raise ValueError("scores.csv has rows out of order")
    if not ((table >= 0) & (table <= 1)).all():
        raise ValueError("scores.csv has a score outside 0 to 1")
    return rows, clients, {name: table[:, n].copy() for n, name in enumerate(names)}


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
