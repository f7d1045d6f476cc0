"""Peak memory of a run with 50 clients against one with 5 on the same users.

    python benchmarks/memory.py [--quick]

Clients take turns on one model, and what is theirs is on disk in between, so the number of clients
must hardly matter. Each run is a process of its own, whose largest resident memory the system
tells; the item vectors are in the cache beforehand. Target: a ratio of at most 1.2.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

TARGET = 1.2
FEW, MANY = 5, 50


def train_once(clients: int, users: int, history: int, folder: Path) -> None:
    """Train one short round; runs in a process of its own."""
    from fellrec import RunConfig, train

    config = RunConfig.from_toml(
        "demo",
        overrides={
            "data.max_users": users,
            "clients.partition": "random",
            "clients.count": clients,
            "model.history": history,
            "train.rounds": 1,
            "train.local_epochs": 1,
        },
    )
    train(config, folder / f"run-{clients}-{users}")


def peak_bytes(clients: int, users: int, history: int, folder: Path) -> int:
    """Train in a child and return its largest resident memory."""
    arguments = [str(clients), str(users), str(history), str(folder)]
    child = os.spawnv(
        os.P_NOWAIT, sys.executable, [sys.executable, __file__, "--child", *arguments]
    )
    _, status, usage = os.wait4(child, 0)
    if status:
        raise SystemExit(f"the run with {clients} clients failed")
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    """Print one line: both peaks, their ratio, the target."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="fewer users, shorter histories")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        clients, users, history = map(int, options.child[:3])
        train_once(clients, users, history, Path(options.child[3]))
        return
    users, history = (100, 10) if options.quick else (300, 50)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        peak_bytes(1, 10, 5, folder)  # fills the cache of item vectors
        few, many = (peak_bytes(count, users, history, folder) for count in (FEW, MANY))
    print(
        f"memory: {FEW} clients {few / 2**20:,.0f} MiB, {MANY} clients {many / 2**20:,.0f} MiB, "
        f"ratio {many / few:.3f} (target {TARGET})"
    )


if __name__ == "__main__":
    main()
