"""The ledger against a count by hand: every kind, client, round and direction, to the byte.

Nothing of the wire's or the ledger's own arithmetic is used: what crosses follows from the lengths
of histories, the width of the base and the form of a frame as docs/crossing.md has it. That a
rehearsal's ledger is the same row by row is in tests/integration/test_rehearsal.py.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from fellrec.config import RunConfig
from fellrec.data.interactions import Split
from fellrec.federation.runs import train
from fellrec.federation.shares import share_data
from fellrec.split.ledger import Ledger
from tests.toys import ITEMS, WIDTH, Toys

pytestmark = pytest.mark.usefixtures("own_cache")

HEADER, ROW, NUMBER = 35, 4, 8
RANK, HISTORY, EPOCHS, MICRO, BATCH, ROUNDS = 2, 8, 2, 2, 4, 2
BLOCKS_ON_CLIENT, TARGETS = 2, 2  # one in the head, one in the tail; q and v

Key = tuple[int, str, str, str]


def tensors(positions: int, frames: int, codec: str) -> int:
    """Bytes of activations: int8 has a 16-bit scale for each 64 channels, fp16 one a frame."""
    match codec:
        case "fp32":
            return 4 * WIDTH * positions
        case "bf16":
            return 2 * WIDTH * positions
        case "fp16":
            return 2 * WIDTH * positions + 4 * frames
    return (WIDTH + 2 * -(-WIDTH // 64)) * positions


def expected(config: RunConfig, codec: str, exchanges: bool) -> dict[Key, int]:
    """Bytes by (round, client, direction, kind)."""
    shares = share_data(config)
    found: Counter[Key] = Counter()
    for number, name in enumerate(shares.partition.names):
        own = shares.of(number)
        for t in range(ROUNDS):
            found += _round(own, name, t, codec, exchanges)
        found += _scoring(own.history("test").lengths(), name, ROUNDS, codec)
        found[ROUNDS, name, "up", "metrics"] = NUMBER * (2 * 2 + 1)  # two metrics at two K; users
    return dict(found)


def _round(own: Split, name: str, t: int, codec: str, exchanges: bool) -> Counter[Key]:
    lengths = own.train.lengths()
    read = np.minimum(lengths[lengths >= 2] - 1, HISTORY)
    rows, positions = len(read), int(read.sum())
    batches = [BATCH] * (rows // BATCH) + [rows % BATCH] * (rows % BATCH > 0)
    frames = sum(min(MICRO, size) for size in batches)
    found: Counter[Key] = Counter()
    for direction in ("up", "down"):
        crossed = EPOCHS * tensors(positions, frames, codec)
        found[t, name, direction, "activation"] = found[t, name, direction, "gradient"] = crossed
        found[t, name, direction, "scalar"] = EPOCHS * len(batches) * NUMBER
        told = EPOCHS * (2 * frames + len(batches))
        found[t, name, direction, "layout"] = told * (HEADER + len(name))
        if exchanges:
            # q and v map WIDTH to WIDTH: an A and a B of RANK x WIDTH each, as float32.
            found[t, name, direction, "lora"] = BLOCKS_ON_CLIENT * TARGETS * 2 * RANK * WIDTH * 4
            text_width = 24
            found[t, name, direction, "dense"] = 4 * (WIDTH * text_width + 1 + ITEMS * WIDTH)
    found[t, name, "up", "layout"] += EPOCHS * rows * ROW
    # Validation of the mixture, and before mixing where there is any.
    for _ in range(1 + exchanges):
        found += _scoring(own.history("valid").lengths(), name, t, codec)
    found[t, name, "up", "metrics"] = NUMBER * (3 + exchanges)  # loss, examples, validation
    return found


def _scoring(lengths: np.ndarray, name: str, t: int, codec: str) -> Counter[Key]:
    """One frame each way: toys' users fit a batch."""
    crossed = tensors(int(np.minimum(lengths, HISTORY).sum()), 1, codec)
    told = HEADER + len(name)
    return Counter(
        {
            (t, name, "up", "activation"): crossed,
            (t, name, "down", "activation"): crossed,
            (t, name, "up", "layout"): told + ROW * len(lengths),
            (t, name, "down", "layout"): told,
        }
    )


@pytest.mark.parametrize("codec", ["fp32", "bf16", "fp16", "int8"])
@pytest.mark.parametrize("strategy", ["fellrec", "local"])
def test_every_byte_is_accounted_for(toys: Toys, tmp_path: Path, codec: str, strategy: str) -> None:
    config = toys.recipe(
        {
            "split.codec": codec,
            "balance.strategy": strategy,
            "train.rounds": ROUNDS,
            "train.local_epochs": EPOCHS,
            "train.micro_batches": MICRO,
            "train.batch_size": BATCH,
        }
    )
    path = train(config, tmp_path / "run").path
    found = {
        (row.round, row.client, row.direction, row.kind): row.bytes
        for row in Ledger.read(path / "ledger.csv").rows()
    }
    assert found == expected(config, codec, exchanges=strategy == "fellrec")
