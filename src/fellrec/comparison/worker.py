"""One cell in a process of its own: what fails, or takes the memory, ends alone.

    python -m fellrec.comparison.worker COMPARISON.toml NAME RUNS RESULTS

Trains the recipe of the cell of that name in RUNS/NAME, or goes on there, or fits the peer, and
keeps what comes of it in RESULTS. Prints one line and exits with 2 where the library refuses.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path

import fellrec
from fellrec.comparison.outcomes import code_of
from fellrec.comparison.plan import Comparison, Planned
from fellrec.errors import FellrecError
from fellrec.evaluation.ranking import mean_metrics
from fellrec.federation.dryrun import dry_run
from fellrec.federation.origin import sessions
from fellrec.federation.runs import train
from fellrec.federation.workspace import share_data
from fellrec.files import finite
from fellrec.peers import run_peer
from fellrec.results.cells import COMPARED, write
from fellrec.results.keeping import describe, keep_alone

REFUSED = 2


def work(planned: Planned, runs: Path, results: Path) -> None:
    """Make a cell. Raises a FellrecError of the kind that fits."""
    if planned.peer is None:
        run = runs / planned.name
        others = {session.code for session in sessions(run)} - {code_of(planned)}
        if others:  # what other code has begun, this code can't finish
            run.rename(run.with_name(f"{run.name}.by-{min(others)}"))
        if not (run / "summary.json").is_file():
            train(planned.config, run, resume=(run / "config.toml").is_file())
        memory = dry_run(planned.config)["memory"]
        keep_alone(run, results / COMPARED, planned.name, {"memory": memory})
    else:
        _keep_peer(planned, planned.peer, results)


def _keep_peer(planned: Planned, peer: str, results: Path) -> None:
    """Fit a peer to the recipe's data and keep its scores."""
    config = planned.config
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
        "code": [code_of(planned)],
        "data": describe(config, dataset, split),
    }
    write(results / COMPARED / planned.name, None, finite(summary), found.scores, origin)


def main() -> None:
    """Read the arguments, work, and say in one line why not."""
    source, name, runs, results = sys.argv[1:]
    try:
        comparison = Comparison.read(Path(source))
        planned = next(each for each in comparison.cells if each.name == name)
        work(planned, Path(runs), Path(results))
    except FellrecError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(REFUSED) from error


if __name__ == "__main__":
    main()
