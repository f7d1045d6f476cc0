"""The memory that a dry run foresees for a client and a trunk server, beside what they take.

    python benchmarks/foreseen_memory.py [--quick] [NAME …]

Each side is a process of its own, as deployed, over gRPC with mutual TLS. One client has all users
of a part of MovieLens-100K, trains for a round and is tested; its figure is the larger of both.
What counts is the largest resident memory (VmHWM), libraries and all. Target: what `fellrec train
--dry-run` foresees is within 10 % of it on both sides. Linux.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.parts.peaks import measure
from fellrec.config import RunConfig
from fellrec.federation.dryrun import dry_run

TARGET = 0.1
_ONE = {"clients.partition": "random", "clients.count": 1, "train.threads": 1}
_SAMPLED = {"train.samples": 16, "evaluation.valid_users": 8, "evaluation.test_users": 16}
SETTINGS: Mapping[str, tuple[str, Mapping[str, object]]] = {
    "hllm": ("demo", {"data.max_users": 200, "train.local_epochs": 1}),
    "hllm k_in=3 batch=64": (
        "demo",
        {"data.max_users": 200, "train.local_epochs": 1, "model.k_in": 3, "train.batch_size": 64},
    ),
    "hllm batch=64 in 4, int8": (
        "ml100k",
        {
            "data.max_users": 200,
            "train.local_epochs": 1,
            "train.windows": 1,
            "train.batch_size": 64,
            "train.micro_batches": 4,
            "train.in_flight": 2,
            "split.codec": "int8",
        },
    ),
    "recformer": ("recformer-ml100k", {"data.max_users": 150, "train.windows": 1}),
    "recformer k_in=3 batch=32 history=20": (
        "recformer-ml100k",
        {
            "data.max_users": 150,
            "train.windows": 1,
            "model.k_in": 3,
            "train.batch_size": 32,
            "model.history": 20,
            "evaluation.batch_size": 32,
        },
    ),
    "bigrec": ("bigrec-ml100k", _SAMPLED),
    "bigrec k_in=10 batch=8 in 4": (
        "bigrec-ml100k",
        {
            **_SAMPLED,
            "model.k_in": 10,
            "train.batch_size": 8,
            "train.micro_batches": 4,
            "bigrec.beams": 4,
        },
    ),
}
QUICK = ("hllm", "recformer")


def main() -> None:
    """Parse the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help=f"{' and '.join(QUICK)} alone")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(SETTINGS))
    options = parser.parse_args()
    names = options.names or (QUICK if options.quick else SETTINGS)
    print(f"{'MiB':<38}{'side':<8}{'foreseen':>9}{'measured':>10}{'ratio':>8}")
    missed = 0
    for name in names:
        recipe, changes = SETTINGS[name]
        config = RunConfig.from_toml(recipe, {**_ONE, **changes})
        foreseen, found = dry_run(config)["memory"], measure(config)
        for side, measured in (("client", found.client), ("server", found.server)):
            ratio = foreseen[side]["total"] / measured
            verdict = "" if abs(ratio - 1) <= TARGET else " MISSED"
            missed += bool(verdict)
            mebibytes = (foreseen[side]["total"] / 2**20, measured / 2**20)
            figures = f"{mebibytes[0]:>9,.0f}{mebibytes[1]:>10,.0f}{ratio:>8.3f}{verdict}"
            print(f"{name:<38}{side:<8}{figures}", flush=True)
    print("pass" if not missed else f"{missed} further off than {TARGET:.0%}")


if __name__ == "__main__":
    main()
