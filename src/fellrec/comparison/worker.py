"""One cell in a process of its own: what fails, or takes the memory, ends alone.

    python -m fellrec.comparison.worker COMPARISON.toml NAME RUNS RESULTS

Trains the recipe of the cell of that name in RUNS/NAME, or goes on there, or fits the peer, and
keeps what comes of it in RESULTS. Prints one line and exits with 2 where the library refuses. Ends
when the process that started it does, however that ended.
"""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

import fellrec
from fellrec.comparison.outcomes import code_of, outcome, place_of, shown_by
from fellrec.comparison.parent import end_with_parent
from fellrec.comparison.plan import Comparison, Planned
from fellrec.config import RunConfig
from fellrec.errors import FellrecError, RunError
from fellrec.evaluation.ranking import mean_metrics
from fellrec.federation.dryrun import dry_run
from fellrec.federation.origin import sessions
from fellrec.federation.runs import train
from fellrec.federation.shares import share_data
from fellrec.files import alone_in, finite
from fellrec.peers import run_peer
from fellrec.results.cells import write
from fellrec.results.keeping import describe, keep_alone

REFUSED = 2


def work(planned: Planned, runs: Path, results: Path) -> None:
    """Make a cell, unless it is there: another comparison that asks for it is waited for.

    Raises a FellrecError of the kind that fits.
    """
    at_work = making(planned, runs)
    at_work.mkdir(parents=True, exist_ok=True)
    with alone_in(at_work, "another process makes this cell", math.inf):
        there = outcome(planned, results)
        if there.cell is None or not there.current:
            _make(planned, runs, results)


def making(planned: Planned, runs: Path) -> Path:
    """Return the folder in which a process is alone while it makes a cell, under any label."""
    return runs / ".making" / planned.key


def _make(planned: Planned, runs: Path, results: Path) -> None:
    target = place_of(planned, results)
    if planned.peer is not None:
        _keep_peer(planned, planned.peer, target)
        return
    run = runs / planned.name
    begun = _begun(planned, run, results)
    if not (run / "summary.json").is_file():
        train(begun or planned.config, run, resume=begun is not None)
    memory = dry_run(planned.config)["memory"]
    keep_alone(run, target.parent, target.name, {"memory": memory})


def _begun(planned: Planned, run: Path, results: Path) -> RunConfig | None:
    """Return the recipe of a run that can go on, None where one begins.

    It may differ in what no score depends on. What other code has begun, or with another recipe,
    this code can't finish, unless it is vouched to match that code: the run is set aside.
    """
    if not (run / "config.toml").is_file():
        return None
    stored = RunConfig.from_toml(run / "config.toml")
    codes = {session.code for session in sessions(run)}
    known = not codes or shown_by(planned, codes, results) is not None
    if known and replace(planned, config=stored).key == planned.key:
        return stored
    others = set() if known else codes - {code_of(planned)}
    name = f"{run.name}.by-{min(others, default='another-recipe')}"
    names = (f"{name}-{number}" if number else name for number in count())
    run.rename(next(path for path in map(run.with_name, names) if not path.exists()))
    return None


def _keep_peer(planned: Planned, peer: str, target: Path) -> None:
    """Fit a peer to the recipe's data and keep its scores."""
    config, code = planned.config, code_of(planned)
    shares = share_data(config)
    dataset, split = shares.dataset, shares.split
    items = len(dataset.catalogue)
    found = run_peer(
        peer,
        split,
        items,
        shares.partition.assignment,
        ks=config.evaluation.ks,
        metric=config.evaluation.metric,
        seed=config.seed,
    )
    summary = {
        "dataset": dataset.name,
        "recommender": peer,
        "seed": config.seed,
        "users": len(split),
        "items": items,
        "overall": mean_metrics(found.scores),
        "valid": {config.evaluation.metric: found.valid},
        "chosen": found.chosen,
        "tried": [{**settings, "valid": score} for settings, score in found.tried],
        "cost": {"parameters": found.parameters, "seconds": round(found.seconds, 1)},
    }
    origin = {
        "fellrec": fellrec.__version__,
        "date": datetime.now(UTC).date().isoformat(),
        "seed": config.seed,
        "seconds": round(found.seconds, 1),
        "code": [code],
        "data": describe(config, dataset, split),
    }
    write(target, None, finite(summary), found.scores, origin)


def main() -> None:
    """Read the arguments, work, and say in one line why not."""
    end_with_parent()
    source, name, runs, results = sys.argv[1:]
    try:
        cells = {each.name: each for each in Comparison.read(Path(source)).cells}
        if name not in cells:
            raise RunError(f"{source}: asks for no cell {name}; compare again")
        work(cells[name], Path(runs), Path(results))
    except FellrecError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(REFUSED) from error


if __name__ == "__main__":
    main()
