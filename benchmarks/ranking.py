"""Full ranking against its floor: the bare product and top-k of the same blocks.

    python benchmarks/ranking.py [--quick]

Both are timed alternately in one process, so that a busy machine slows both; the medians' ratio is
what counts. Target: at most 2.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fellrec.data.interactions import Ragged
from fellrec.evaluation.ranking import rank

TARGET = 2.0
K, BLOCK, MEAN_HISTORY = 20, 512, 100


def floor(queries: Tensor, items: Tensor) -> None:
    """Do what no ranking can do without."""
    for first in range(0, len(queries), BLOCK):
        torch.topk(queries[first : first + BLOCK] @ items.T, K, dim=1)


def seconds(task: Callable[[], object]) -> float:
    """Time one call."""
    start = time.perf_counter()
    task()
    return time.perf_counter() - start


def main() -> None:
    """Print one line: seconds of both, their ratio, the target."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="a tenth of the users, for a look")
    users = 870 if parser.parse_args().quick else 8_700
    count, width, repeats = 17_332, 384, 5

    rng = np.random.default_rng(0)
    queries = torch.from_numpy(rng.standard_normal((users, width), dtype=np.float32))
    items = torch.from_numpy(rng.standard_normal((count, width), dtype=np.float32))
    lengths = rng.geometric(1 / MEAN_HISTORY, users)
    values = rng.integers(count, size=int(lengths.sum()), dtype=np.int32)
    history = Ragged(np.concatenate([[0], np.cumsum(lengths)]), values)

    rank(queries[:BLOCK], items, history.take(range(min(BLOCK, users))), K)  # warm up
    ours, bare = [], []
    for _ in range(repeats):
        ours.append(seconds(lambda: rank(queries, items, history, K, block=BLOCK)))
        bare.append(seconds(lambda: floor(queries, items)))
    top, bottom = statistics.median(ours), statistics.median(bare)
    print(
        f"ranking: {users} users x {count} items x {width}: rank {top:.2f} s, "
        f"bare product and top-k {bottom:.2f} s, ratio {top / bottom:.2f} (target {TARGET})"
    )


if __name__ == "__main__":
    main()
