"""Similarity and mixing (M1-M3) of a thousand clients against the bare matrix products.

    python benchmarks/mixing.py [--clients 1000] [--columns 500000] [--repeats 1] [--folder FOLDER]
    python benchmarks/mixing.py --quick

One row of float32 a client lies in a file, LoRA factors of rank 16 on width 384. The coordinator's
own path (`weigh`, then `mix_rows`) takes it to a second file. Beside it, from a memory map of the
same file to a third and in the same blocks of columns, run the bare products in float32, X Xᵀ and
W X, on the same number of threads; the products without their reading and writing are timed too.
Both take turns in one process. Its memory beyond files is watched while the coordinator's path
runs, libraries and all. On a busy machine the processor seconds say more than the clock.
Targets: twice the bare products' time, 512 MB.

Takes three files of the clients' size in the folder, 6 GB unless told otherwise.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.parts.memory import Peak, own_memory
from fellrec.balance import FellRec
from fellrec.federation.aggregate import mix_rows
from fellrec.federation.client import TrainReport
from fellrec.federation.decisions import weigh
from fellrec.federation.rows import Rows

TARGET, TARGET_BYTES = 2.0, 512e6
RANK, WIDTH, ROUND = 16, 384, 1
QUICK = (200, 20_000)
TOLERANCE = 1e-4  # what float32 products may differ by, on values near 1


@dataclass
class Spent:
    """What one turn took: seconds, of them the products' alone, and processor seconds."""

    compared: float = 0.0
    mixed: float = 0.0
    products: float = 0.0
    processor: float = 0.0

    @property
    def total(self) -> float:
        """Return the turn's seconds."""
        return self.compared + self.mixed


def shapes(columns: int) -> dict[str, torch.Size]:
    """Return pairs of LoRA factors, and one last factor that fills up the columns."""
    found, pair = {}, 2 * RANK * WIDTH
    for module in range(columns // pair):
        found[f"{module}.lora_A.weight"] = torch.Size((RANK, WIDTH))
        found[f"{module}.lora_B.weight"] = torch.Size((WIDTH, RANK))
    if columns % pair:
        found["last.lora_A.weight"] = torch.Size((1, columns % pair))
    return found


def fill(rows: Rows) -> None:
    """Draw clients that share most of what they are, as after a common start."""
    rng = np.random.default_rng(0)
    for name in rows.shapes:
        for first, last in rows.blocks(name):
            own = rng.standard_normal((rows.clients, last - first), dtype=np.float32)
            shared = rng.standard_normal(last - first, dtype=np.float32)
            rows.write_columns(first, torch.from_numpy(shared + own / 2))


def ours(rows: Rows, mixed: Rows, peak: Peak) -> tuple[Spent, Tensor]:
    """Compare, weigh and mix as the coordinator does; return the weights in float32, too."""
    strategy = FellRec()
    reports = [TrainReport(1 + c / rows.clients, 100, 0, 1, 0, 0) for c in range(rows.clients)]
    with own_memory(peak):
        processor, start = time.process_time(), time.perf_counter()
        mixture = weigh(strategy, ROUND, reports, rows, None)
        half = time.perf_counter()
        mix_rows(rows, mixed, mixture, strategy)
        end = time.perf_counter()
    spent = Spent(half - start, end - half, 0, time.process_time() - processor)
    return spent, mixture.weights.float()


def bare(
    rows: Rows, values: NDArray[np.float32], out: NDArray[np.float32], weights: Tensor
) -> Spent:
    """Do what no comparing and mixing can do without, in float32."""
    spent = Spent()

    def product(left: Tensor, right: Tensor) -> Tensor:
        start = time.perf_counter()
        result = left @ right
        spent.products += time.perf_counter() - start
        return result

    spans = [span for name in rows.shapes for span in rows.blocks(name)]
    processor, start = time.process_time(), time.perf_counter()
    gram = torch.zeros(rows.clients, rows.clients)
    for first, last in spans:
        block = torch.from_numpy(values[:, first:last].copy())
        gram += product(block, block.T)
    half = time.perf_counter()
    for first, last in spans:
        block = torch.from_numpy(values[:, first:last].copy())
        out[:, first:last] = product(weights, block).numpy()
    spent.compared, spent.mixed = half - start, time.perf_counter() - half
    spent.processor = time.process_time() - processor
    return spent


def run(clients: int, columns: int, repeats: int, folder: Path) -> str:
    """Measure, and return the table."""
    rows, mixed = (Rows(folder / name, clients, shapes(columns)) for name in ("rows", "mixed"))
    fill(rows)
    shape, peak = (clients, columns), Peak()
    values = np.memmap(folder / "rows", np.float32, "r", shape=shape)
    out = np.memmap(folder / "bare", np.float32, "w+", shape=shape)
    weights, turns = torch.full((clients, clients), 1 / clients), []
    for turn in range(repeats):
        if turn % 2:
            floor = bare(rows, values, out, weights)
            spent, _ = ours(rows, mixed, peak)
        else:
            spent, weights = ours(rows, mixed, peak)
            floor = bare(rows, values, out, weights)
        turns.append((spent, floor))
    for first, last in rows.blocks(next(iter(rows.shapes))):
        difference = np.abs(mixed.read_columns(first, last).numpy() - out[:, first:last]).max()
        if not difference < TOLERANCE:
            raise SystemExit(f"the two mixtures differ by {difference:.1e}")
    return table(turns, clients, columns, peak)


def table(turns: list[tuple[Spent, Spent]], clients: int, columns: int, peak: Peak) -> str:
    """Show each turn, the median ratio and the memory."""
    lines = [
        f"mixing: {clients:,} clients x {columns:,} values, {torch.get_num_threads()} threads",
        "              compare      mix       all  alone   processor   (seconds)",
    ]
    for spent, floor in turns:
        for name, took in (("coordinator", spent), ("bare", floor)):
            alone = f"{took.products:.2f}" if took.products else ""
            times = f"{took.compared:9.2f}{took.mixed:9.2f}{took.total:10.2f}"
            lines.append(f"{name:<12}{times}{alone:>7}{took.processor:12.2f}")

    def ratio(of: Callable[[Spent, Spent], float]) -> str:
        return f"{statistics.median(of(spent, floor) for spent, floor in turns):.2f}"

    lines += [
        f"ratio {ratio(lambda a, b: a.total / b.total)} (target {TARGET}), "
        f"of processor seconds {ratio(lambda a, b: a.processor / b.processor)}, "
        f"to the products alone {ratio(lambda a, b: a.total / b.products)}",
        f"memory beyond files {peak.bytes / 1e6:,.0f} MB (target {TARGET_BYTES / 1e6:.0f})",
    ]
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--columns", type=int, default=500_000, help="values of each client")
    parser.add_argument("--repeats", type=int, default=1, help="turns, in alternating order")
    parser.add_argument("--threads", type=int, help="of the products; the library's own choice")
    parser.add_argument("--folder", type=Path, help="where the files lie; a temporary folder's")
    parser.add_argument("--quick", action="store_true", help="{} clients x {:,}".format(*QUICK))
    options = parser.parse_args()
    clients, columns = QUICK if options.quick else (options.clients, options.columns)
    if options.threads:
        torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        print(run(clients, columns, options.repeats, Path(temporary)))


if __name__ == "__main__":
    main()
