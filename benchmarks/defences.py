"""What each defence takes from an attacker, and what it costs: the runs of a comparison, audited.

    fellrec compare study-privacy
    python benchmarks/defences.py [--comparison NAME] [--runs DIR] [--users N]

Reads the runs that the comparison has left (`--runs`, as for `fellrec compare`), audits those that
have no `audit.json` yet, without the attacks for which clients train, and prints one table: score,
bytes and seconds beside what is read back.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def main() -> None:
    """Audit what has not been audited, and print the table in Markdown."""
    options = _options()
    from fellrec.comparison.plan import Comparison

    cells = Comparison.read(options.comparison).cells
    print("| defence | NDCG@10 | bytes a step | client, s a step | public weights | adapters too |")
    print("|---|---|---|---|---|---|")
    for cell in cells:
        run = options.runs / cell.name
        if cell.peer is not None or not (run / "summary.json").is_file():
            continue
        if not (run / "audit.json").is_file():
            _audit(run, options.users)
        summary, found = (json.loads((run / f"{n}.json").read_text()) for n in ("summary", "audit"))
        read = " | ".join(_best(found, knows) for knows in ("base", "adapters"))
        print(f"| {cell.label} | {_cost(summary)} | {read} |")
    print(f"| chance | | | | {_interval(found['chance'])} | |")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--comparison", default="study-privacy")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--users", type=int, default=20)
    return parser.parse_args()


def _audit(run: Path, users: int) -> None:
    from fellrec.audit import audit
    from fellrec.serving.run import load_run

    audit(load_run(run), users=users, uploads=False)


def _cost(summary: dict[str, Any]) -> str:
    cost = summary["cost"]
    crossed = (cost["bytes_up"] + cost["bytes_down"]) / max(cost["steps"], 1)
    score = summary["overall"]["ndcg@10"]
    return f"{score:.4f} | {crossed / 1e6:.1f} MB | {cost['client_seconds_per_step']:.3f}"


def _best(found: dict[str, Any], knows: str) -> str:
    """The share of items that the best attack finds, and of last targets that are told first."""
    own = [each["recovered"] for each in found["inversion"] if each["knows"] == knows]
    told = [each["first"]["mean"] for each in found["labels"] if each["knows"] == knows]
    return f"{_interval(max(own, key=lambda each: each['mean']))}; last target {max(told):.2f}"


def _interval(value: dict[str, float]) -> str:
    return f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


if __name__ == "__main__":
    main()
