"""From a finished run to a cell, with the baseline of its data beside it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

import fellrec
from fellrec.config import RunConfig
from fellrec.data.digest import data_digest
from fellrec.data.interactions import Dataset, Split
from fellrec.errors import RunError
from fellrec.evaluation.popularity import popularity_metrics
from fellrec.evaluation.ranking import mean_metrics
from fellrec.federation.client import Scores
from fellrec.federation.origin import sessions
from fellrec.federation.runs import finished
from fellrec.federation.shares import load_split
from fellrec.files import finite, read_lines
from fellrec.results.cells import POPULARITY, Cell, read, write
from fellrec.results.plan import command

_TABLE = "scores.parquet"
_FEW_CLIENTS = 10
_TOLERANCE = 1e-9  # scores are means of a few hundred numbers; one changed rank is far larger


@dataclass(frozen=True)
class Kept:
    """cell: what was kept. baseline: popularity on the same data, which is kept beside it."""

    cell: Cell
    baseline: Cell


def keep(
    run: Path,
    folder: Path,
    name: str | None = None,
    *,
    replace: bool = False,
    progress: Callable[[str], None] = lambda what: None,
) -> Kept:
    """Keep a finished run as a cell of `folder`, and popularity on its data if it is not there.

    name: the run's folder's unless given. replace: put it in the place of a cell of that name.
    Raises as `keep_alone`.
    """
    cell, config, dataset, split = _keep(run, folder, name, replace, progress, {})
    progress("ranking by popularity")
    return Kept(cell, _keep_popularity(folder, config, dataset, split, cell.origin["data"]))


def keep_alone(run: Path, folder: Path, name: str, also: Mapping[str, Any]) -> Cell:
    """Keep a finished run as a cell, in the place of one of that name, and nothing beside it.

    also: what origin.json says besides. The data set is loaded, since the order of its users is
    that of the scores.

    Raises RunError when the run is not finished, a file of it is damaged, its scores are not all
    there or contradict its summary, or, in `keep`, the name is taken.
    """
    return _keep(run, folder, name, True, lambda what: None, also)[0]


def _keep(
    run: Path,
    folder: Path,
    name: str | None,
    replace: bool,
    progress: Callable[[str], None],
    also: Mapping[str, Any],
) -> tuple[Cell, RunConfig, Dataset, Split]:
    name = run.resolve().name if name is None else name
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):  # as for runs
        raise RunError(f"{name!r} can't name a cell; give a plain name with --name")
    if (folder / name).exists() and not replace:
        raise RunError(f"{folder / name} exists already; choose another --name, or --replace it")
    config, summary = finished(run)
    progress("loading the data")
    dataset, split = load_split(config)
    scores, clients = _joined(run, split, summary)
    worked = sessions(run)
    seconds = [session.seconds for session in worked]
    data = describe(config, dataset, split)
    origin = {
        "command": command(config, name, folder.name),
        "seed": config.seed,
        "fellrec": worked[-1].fellrec if worked else None,
        "python": worked[-1].python if worked else None,
        "torch": worked[-1].torch if worked else None,
        "device": worked[-1].device if worked else "",
        "date": worked[-1].began[:10] if worked else None,
        "seconds": None if None in seconds or not worked else round(sum(filter(None, seconds)), 1),
        "code": list(dict.fromkeys(session.code for session in worked)),
        "data": data,
        **also,
    }
    rounds = _rounds(run, len(summary["clients"]))
    recipe = config.to_toml()
    cell = write(folder / name, recipe, summary, scores, origin, clients=clients, rounds=rounds)
    return cell, config, dataset, split


def describe(config: RunConfig, dataset: Dataset, split: Split) -> dict[str, Any]:
    """Return what identifies the data of a result."""
    return {
        "dataset": dataset.name,
        "split": config.data.split,
        "users": len(split),
        "items": len(dataset.catalogue),
        "digest": data_digest(dataset, split),
    }


def _joined(
    run: Path, split: Split, summary: Mapping[str, Any]
) -> tuple[Scores, NDArray[np.int64]]:
    """Bring the clients' scores into the order of the split.

    Returns metric -> (users,), NaN unscored, and each user's client as its place in the summary.
    """
    order = pd.Index(split.users)
    joined: Scores = {}
    whose = np.full(len(split), -1, dtype=np.int64)
    for number, client in enumerate(summary["clients"]):
        path = run / "clients" / client["id"] / _TABLE
        try:
            table = pd.read_parquet(path)
        except (OSError, ValueError) as error:
            raise RunError(f"{path}: can't be read ({error}); is the run complete?") from error
        rows = order.get_indexer(table.pop("user").astype(str))
        if (rows < 0).any():
            raise RunError(f"{path}: has users that the data lack; the data have changed")
        whose[rows] = number
        for metric, values in table.items():
            joined.setdefault(str(metric), np.full(len(split), np.nan))[rows] = values
    means = finite(mean_metrics(joined))
    for metric, before in summary["overall"].items():
        now = means.get(metric)
        if now is None or before is None or abs(now - before) > _TOLERANCE:
            raise RunError(f"{run}: {metric} of its users is {now}, summary.json says {before}")
    return joined, whose


def _rounds(run: Path, clients: int) -> str:
    """Read the log of rounds; with many clients without the rows that grow with their square."""
    path = run / "metrics.jsonl"
    if not path.exists():  # no round was asked for
        return ""
    lines = read_lines(path)
    left_out = () if clients <= _FEW_CLIENTS else ("attention", "weights")
    kept = [{k: v for k, v in line.items() if k not in left_out} for line in lines]
    return "".join(json.dumps(line) + "\n" for line in kept)


def _keep_popularity(
    folder: Path, config: RunConfig, dataset: Dataset, split: Split, data: Mapping[str, Any]
) -> Cell:
    """Return the baseline's cell for these data; make it unless one has all that is asked for."""
    path = folder / f"{POPULARITY}-{dataset.name}-{data['digest'][:6]}"
    wanted = set(config.evaluation.ks)
    if path.exists():
        there = read(path)
        known = {int(metric.partition("@")[2]) for metric in there.scores}
        if wanted <= known:
            return there
        wanted |= known
    metrics = popularity_metrics(split, len(dataset.catalogue), sorted(wanted))
    summary = {
        "dataset": dataset.name,
        "recommender": POPULARITY,
        "users": len(split),
        "items": len(dataset.catalogue),
        "overall": finite(mean_metrics(metrics)),
    }
    origin = {
        "fellrec": fellrec.__version__,
        "date": datetime.now(UTC).date().isoformat(),
        "data": data,
    }
    return write(path, None, summary, metrics, origin)
