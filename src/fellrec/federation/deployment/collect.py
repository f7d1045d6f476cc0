"""From what each party of a rehearsal was left with to one run directory, as a simulation's.

In a deployment nobody may do this: it puts every client's part beside the coordinator's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fellrec.config import RunConfig
from fellrec.data.folders import new_folder
from fellrec.errors import RunError
from fellrec.evaluation.ranking import mean_metrics
from fellrec.federation.client import Scores
from fellrec.federation.deployment.dispatch import trunk_outline
from fellrec.federation.deployment.grounds import Grounds
from fellrec.federation.origin import ORIGIN
from fellrec.federation.store import CLIENT, SERVER, RunStore
from fellrec.federation.summary import About, ClientResult, summarise
from fellrec.files import link_or_copy, read_json, read_lines, write_bytes, write_json
from fellrec.split.ledger import Ledger

_MEASURED = ("tokens", "steps", "seconds", "waiting_seconds")  # what a client alone knows


@dataclass(frozen=True)
class Part:
    """A client's folder of the run, and its name."""

    name: str
    path: Path


def collect(out: Path, coordinator: Path, parts: Sequence[Part]) -> dict[str, Any]:
    """Make the run directory `out`, whole or not at all; return its summary.

    coordinator: the directory that a finished deployment left. parts: every client's. Of one that
    the coordinator has no score of, what it counted is taken and nothing else: a run directory has
    no client without scores.

    Raises RunError for a part that is missing or not finished, or an `out` that is there.
    """
    told = read_json(coordinator / "summary.json")
    config = RunConfig.from_toml(coordinator / "config.toml")
    state = RunStore(coordinator).state()
    if out.exists():
        raise RunError(f"{out} exists already; choose another folder")
    here = {part.name: part for part in parts}
    lines = {str(line["id"]): line for line in told["clients"]}
    if missing := sorted(lines.keys() - here.keys()):
        raise RunError(f"{coordinator}: has scores of {', '.join(missing)}; bring their parts, too")
    with new_folder(out) as folder:
        for name in ("config.toml", ORIGIN):
            write_bytes(folder / name, (coordinator / name).read_bytes())
        for side in (CLIENT, SERVER):
            for name in lines:
                for file in sorted((coordinator / side / name).glob("*.safetensors")):
                    link_or_copy(file, folder / side / name / file.name)
        results = [_part(folder, here[name], line, config) for name, line in lines.items()]
        _merge_metrics(folder, coordinator, parts)
        _merge_ledgers(folder, coordinator, parts)
        sizes = {
            key: value
            for key, value in told["cost"].items()
            if key.startswith(("client_", "server_")) and "seconds" not in key
        }
        trunk = trunk_outline(config)
        about = About(
            told["dataset"],
            told["users"],
            told["users_dropped"],
            told["items"],
            sizes,
            trunk.width if trunk.blocks else 0,
        )
        summary = summarise(config, folder, about, state, results)
        write_json(folder / "summary.json", summary)
    return summary


def collect_all(out: Path, grounds: Grounds) -> dict[str, Any]:
    """Do it for all parties of one machine."""
    run = str(read_json(grounds.coordinator / "deployment.json")["run"])
    parts = [Part(name, grounds.place(name).run(run)) for name in grounds.names]
    return collect(out, grounds.coordinator, parts)


def _part(folder: Path, part: Part, line: Mapping[str, Any], config: RunConfig) -> ClientResult:
    """Take over a client's tensors and scores; line: the coordinator's of it."""
    source = part.path / CLIENT / part.name
    if not (source / "scores.parquet").is_file():
        raise RunError(f"{part.path}: client {part.name} has not finished its run")
    for file in sorted(source.iterdir()):
        link_or_copy(file, folder / CLIENT / part.name / file.name)
    scores = _scores(source / "scores.parquet")
    metric = config.evaluation.metric
    return ClientResult(
        part.name,
        line["users"],
        line["examples"],
        line["valid_users"],
        int(np.count_nonzero(~np.isnan(scores[metric]))),
        mean_metrics(scores),
        scores,
    )


def _scores(path: Path) -> Scores:
    frame = pd.read_parquet(path)
    return {name: frame[name].to_numpy(np.float64) for name in frame.columns if name != "user"}


def _merge_metrics(folder: Path, coordinator: Path, parts: Sequence[Part]) -> None:
    """Complete the coordinator's lines by what each client measured."""
    own: dict[tuple[int, str], dict[str, Any]] = {}
    for part in parts:
        for line in _lines(part.path / "metrics.jsonl"):
            own[line["round"], part.name] = line
    lines = []
    for line in _lines(coordinator / "metrics.jsonl"):
        measured = own.get((line["round"], line["client"]))
        if measured is not None and "failed" not in line:
            line |= {key: measured[key] for key in _MEASURED}
        lines.append(json.dumps(line) + "\n")
    if lines:
        write_bytes(folder / "metrics.jsonl", "".join(lines).encode())


def _lines(path: Path) -> list[dict[str, Any]]:
    return read_lines(path) if path.exists() else []


def _merge_ledgers(folder: Path, coordinator: Path, parts: Sequence[Part]) -> None:
    """Add what crossed to the trunk, which clients counted, to what the coordinator counted."""
    ledger = Ledger()
    for path in (coordinator, *(part.path for part in parts)):
        if (path / "ledger.csv").exists():
            ledger.merge(Ledger.read(path / "ledger.csv"))
    ledger.append_csv(folder / "ledger.csv")
