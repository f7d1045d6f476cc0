"""Start, continue and finish a run: from a recipe to a run directory with everything in it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from fellrec.config import RunConfig
from fellrec.data.interactions import Split
from fellrec.data.partition import describe
from fellrec.errors import ConfigError, RunError
from fellrec.federation.client import Scores
from fellrec.federation.coordinator import Coordinator
from fellrec.federation.ditto import FILES, PERSONAL, Ditto
from fellrec.federation.observer import Observer
from fellrec.federation.origin import begin_session, end_session
from fellrec.federation.rounds import Books
from fellrec.federation.same_data import note_data
from fellrec.federation.shares import share_data
from fellrec.federation.simulation import Simulation
from fellrec.federation.sizes import sizes
from fellrec.federation.store import CLIENT, SERVER, RunStore
from fellrec.federation.summary import About, is_summary, result_of, summarise
from fellrec.federation.workspace import Workspace
from fellrec.files import alone_in, read_json, sync_folder, write_bytes, write_json
from fellrec.models.placement import device_name
from fellrec.models.recommender import Kind
from fellrec.privacy import Secret


@dataclass(frozen=True)
class RunResult:
    """path: the run directory. summary: what its summary.json says."""

    path: Path
    summary: Mapping[str, Any]


def train(
    config: RunConfig,
    out: Path | None = None,
    *,
    resume: bool = False,
    observer: Observer | None = None,
) -> RunResult:
    """Train a recipe in one process and leave a run directory.

    out: the directory, `runs/<name>` unless given; it may not exist, unless `resume` goes on with
    it. A resumed run ends as it would have without the interruption.

    Raises a FellrecError of the kind that fits; nothing half-written is left that `resume` would
    mistake for complete.
    """
    observer = observer or Observer()
    path = out if out is not None else Path("runs") / config.name
    begun = time.perf_counter()
    config = claim(path, config, resume)
    with alone_in(path, "another process works on this run; let it end"):
        return _train(config, path, observer, begun, resume=resume)


def _train(
    config: RunConfig, path: Path, observer: Observer, begun: float, *, resume: bool
) -> RunResult:
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    try:
        begin_session(path, config.model.recommender, device_name(config.model.device))
        observer.note("loading data and weights")
        shares = share_data(config)
        note_data(path, shares)
        workspace = Workspace(
            config,
            shares.dataset,
            secret=Secret.of_seed(config.seed),
            progress=lambda done, total: observer.working("item texts", done, total),
        )
        two, keep = config.balance.strategy == "ditto", config.evaluation.keep_rounds
        store = RunStore(path, keep, FILES, PERSONAL) if two else RunStore(path, keep)
        simulation = (Ditto if two else Simulation)(config, shares, workspace, store, observer)
        coordinator = Coordinator(config, Books(store, workspace.ledger, observer))
    except BaseException:
        if not resume:
            shutil.rmtree(path)  # nothing was learned yet, so nothing is lost
        raise
    state = store.resume()
    observer.clients(describe(shares.split, shares.partition), shares.split.dropped)
    state = coordinator.run(state, simulation)
    scores = simulation.test(state)
    for name, client in simulation.clients.items():
        if not store.publish(state.round, name):
            adapter = workspace.initial(Kind.LORA, Kind.DENSE)
            own = {"adapter": adapter, "private": simulation.started[name]}
            store.publish_start(name, {CLIENT: own, SERVER: {"adapter": workspace.initial_trunk()}})
        write_scores(path / "clients" / name / "scores.parquet", client.data, scores[name])
    server = workspace.server.base if workspace.server is not None else None
    about = About(
        shares.dataset.name,
        len(shares.split),
        shares.split.dropped,
        len(shares.dataset.catalogue),
        sizes(workspace.recommender, server),
        server.width if server is not None else 0,
    )
    metric = config.evaluation.metric
    results = [result_of(c, scores[name], metric) for name, c in simulation.clients.items()]
    summary = summarise(config, path, about, state, results)
    end_session(path, time.perf_counter() - begun)
    write_json(path / "summary.json", summary)
    return RunResult(path, summary)


def finished(path: Path) -> tuple[RunConfig, dict[str, Any]]:
    """Read the recipe and the summary of a finished run.

    Raises RunError when the folder is none, the run is not finished, or its summary damaged.
    """
    if not (path / "config.toml").is_file():
        raise RunError(f"{path}: not a run directory; give the folder that a training run left")
    if not (path / "summary.json").is_file():
        raise RunError(f"{path}: the run is not finished; go on with fellrec train … --resume")
    config, summary = RunConfig.from_toml(path / "config.toml"), read_json(path / "summary.json")
    if not is_summary(summary):
        raise RunError(f"{path / 'summary.json'}: not a run's summary; train the recipe again")
    return config, summary


def write_scores(path: Path, data: Split, scores: Scores) -> None:
    """Write a client's per-user scores, with the users' ids: they stay in the client's folder."""
    frame = pd.DataFrame({"user": list(data.users), **scores})
    write_bytes(path, frame.to_parquet(index=False))


def claim(path: Path, config: RunConfig, resume: bool) -> RunConfig:
    """Make the run directory, or take over one whose recipe is the same."""
    recipe = path / "config.toml"
    if resume and not path.exists():
        raise RunError(f"{path}: no run to resume; leave out --resume to start one")
    if resume and recipe.is_file():
        stored = RunConfig.from_toml(recipe)
        changed = difference(stored, config)
        if changed:
            raise ConfigError(f"{path}: --resume needs the same recipe, but {changed} differs")
        return stored
    # A start that was killed before it wrote its recipe leaves no more than a part of it.
    begun = {f".{recipe.name}.partial"}
    if path.exists() and not (path.is_dir() and {p.name for p in path.iterdir()} <= begun):
        hint = "it is no run directory" if resume else "or go on with --resume"
        raise RunError(f"{path} exists already; choose another --out, {hint}")
    try:
        path.mkdir(parents=True, exist_ok=True)
        write_bytes(recipe, config.to_toml().encode())
        sync_folder(path)
    except OSError as error:
        raise RunError(f"{path}: can't be written ({error.strerror})") from error
    return config


def difference(stored: RunConfig, given: RunConfig) -> str:
    """Name the first key in which two recipes differ; the run's name does not count."""
    for key, value in stored.model_dump().items():
        other = given.model_dump()[key]
        if isinstance(value, dict):
            for name, entry in value.items():
                if entry != other[name]:
                    return f"{key}.{name}"
        elif value != other and key != "name":
            return key
    return ""
