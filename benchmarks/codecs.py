"""How fast the wire's codecs are, against the floor: a bare copy of the same float32 values.

    python benchmarks/codecs.py [--rows 781] [--channels 384] [--repeats 30]

Prints, for each codec and for whole frames, the gigabytes of float32 per second and how many times
longer it takes than the copy, measured in the same run on one thread. The default is 1.2 MB, one
batch of 16 histories of 50 items at width 384.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from fellrec.split.codecs import Codec, decode, encode
from fellrec.split.wire import Frame, FrameKind, decode_frame, encode_frame


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Return the median time of one call, in seconds, after a first one that is not counted."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def measure(rows: int, channels: int, repeats: int) -> list[tuple[str, float, float]]:
    """Return (name, GB/s of float32, times the copy's duration) of each operation."""
    generator = torch.Generator().manual_seed(0)
    tensor = torch.randn(rows, channels, generator=generator)
    source, target = tensor.numpy(), np.empty((rows, channels), np.float32)
    floor = seconds(lambda: np.copyto(target, source), repeats)
    results = [("copy (floor)", source.nbytes / floor / 1e9, 1.0)]

    def add(name: str, work: Callable[[], object]) -> None:
        taken = seconds(work, repeats)
        results.append((name, source.nbytes / taken / 1e9, taken / floor))

    for codec in Codec:
        data = encode(tensor, codec)
        add(f"{codec} encode", partial(encode, tensor, codec))
        add(f"{codec} decode", partial(decode, data, rows, channels, codec))
    add("int8 encode, stochastic", partial(encode, tensor, Codec.INT8, generator))
    lengths = np.array([rows], np.int32)
    for codec in Codec:
        frame = Frame(FrameKind.FORWARD, "a", lengths=lengths, tensor=tensor, codec=codec)
        message = encode_frame(frame)
        limit = 2 * source.nbytes
        add(f"{codec} frame, encode", partial(encode_frame, frame))
        add(f"{codec} frame, decode", partial(decode_frame, message, max_bytes=limit))
    return results


def main() -> None:
    """Parse the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=781)
    parser.add_argument("--channels", type=int, default=384)
    parser.add_argument("--repeats", type=int, default=30)
    options = parser.parse_args()
    torch.set_num_threads(1)
    megabytes = options.rows * options.channels * 4 / 1e6
    print(f"{options.rows} x {options.channels} float32, {megabytes:.2f} MB, one thread")
    print(f"{'operation':<26}{'GB/s':>8}{'x copy':>9}")
    for name, speed, ratio in measure(options.rows, options.channels, options.repeats):
        print(f"{name:<26}{speed:>8.2f}{ratio:>9.1f}")


if __name__ == "__main__":
    main()
