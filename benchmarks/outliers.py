"""int8 on SmolLM2's real activations, a few channels of which are far larger than all others.

    python benchmarks/outliers.py [--quick]

Prompts of MovieLens-100K's titles through the first blocks. Beside the codec, which has a scale for
each 64 channels, the error of one scale a token: that is what outliers ruin. Targets: at most 0.27
of fp32's bytes, and at most 0.6 of that other error behind any number of blocks. An error is the
root mean square over that of the activations, without the four largest channels: what is in the
others is what would be lost.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from torch import Tensor

BYTES, ERROR = 0.27, 0.6
LARGEST = 4  # channels that are left out of the error


def by_token(rows: Tensor) -> Tensor:
    """Round to int8 with one scale for each row, (n, d)."""
    scale = rows.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127
    return (rows / scale).round() * scale


def error(rows: Tensor, rounded: Tensor) -> float:
    """Return the relative error of the channels that are not the largest."""
    kept = rows.square().mean(dim=0).argsort()[: rows.shape[1] - LARGEST]
    wrong = (rounded - rows)[:, kept].square().mean()
    return float((wrong / rows[:, kept].square().mean()).sqrt())


def main() -> None:
    """Print a line for each number of blocks, then whether the targets are met."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="two prompts, two depths")
    options = parser.parse_args()
    from fellrec import RunConfig
    from fellrec.audit.readers import reader_of
    from fellrec.federation.shares import load_split
    from fellrec.federation.workspace import Workspace
    from fellrec.privacy import made_up
    from fellrec.split.codecs import Codec, decode, encode, encoded_size

    fine = True
    for k_in in (1, 4) if options.quick else (1, 2, 4, 8, 16):
        overrides = {"model.k_in": k_in, "model.k_out": 1}
        config = RunConfig.from_toml("bigrec-ml100k", overrides=overrides)
        workspace = Workspace(config, load_split(config)[0])
        items = len(workspace.dataset.catalogue)
        count = 2 if options.quick else 8
        histories = made_up(np.random.default_rng(0), count, config.model.history, items)
        workspace.recommender.eval()
        reader = reader_of(workspace.recommender, items)
        rows = torch.cat(reader.activations(histories)).detach()
        n, d = rows.shape
        here = error(rows, decode(encode(rows, Codec.INT8), n, d, Codec.INT8))
        other = error(rows, by_token(rows))
        share = encoded_size(n, d, Codec.INT8) / encoded_size(n, d, Codec.FP32)
        peak = float(rows.abs().amax() / rows.square().mean().sqrt())
        print(
            f"behind {k_in} blocks: error {here:.4f}, one scale a token {other:.4f}, largest value "
            f"{peak:.0f} times the root mean square, {share:.3f} of fp32's bytes",
            flush=True,
        )
        fine = fine and here <= ERROR * other and share <= BYTES
    print(f"at most {ERROR} of the error and {BYTES} of the bytes: {fine}")


if __name__ == "__main__":
    main()
