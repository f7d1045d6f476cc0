"""How long the parts of a training step take on this machine."""

from __future__ import annotations

import time
from dataclasses import dataclass

from fellrec.data.interactions import Split
from fellrec.federation.turns import ClientModel, turn
from fellrec.federation.workspace import Workspace
from fellrec.models.recommender import Kind, Trunk

_STEPS = 3  # the fastest one counts: whatever else the machine does only makes steps longer


@dataclass(frozen=True)
class Speed:
    """Seconds for each position of a training batch. block: forward and backward through a block.

    ends: what a client does besides: embeddings, loss, scores.
    """

    block: float
    ends: float

    def seconds(self, positions: float, blocks: int, *, client: bool) -> float:
        """Return how long one side takes for a step."""
        return positions * (blocks * self.block + (self.ends if client else 0.0))


def measured(workspace: Workspace, name: str, data: Split) -> Speed:
    """Train for a few steps on a client's data, with every part in this process, and drop it all.

    workspace: untrained, with at least a block on the server.
    """
    client = workspace.client(name, data)
    start = ClientModel(
        workspace.initial(Kind.LORA, Kind.DENSE),
        workspace.initial(Kind.PRIVATE),
        workspace.initial_trunk(),
    )
    recommender, trunk = client.recommender, client.trunk
    times = []
    with turn(workspace, client, 0, start):
        batch = max(client.epoch(0, 0), key=lambda each: each.layout.total)
        client.begin_serving()  # recformer's losses rest on item vectors
        recommender.train()
        trunk.train()
        for step in range(_STEPS):
            trunk.key.step = step
            begun, waited = time.perf_counter(), _waited(trunk)
            (recommender.loss(trunk, batch) / len(batch.targets)).backward()
            trunk.end_step(0.0)
            there = _waited(trunk) - waited
            times.append((there, time.perf_counter() - begun - there))
    there, here = map(min, zip(*times, strict=True))
    server = workspace.server
    blocks = 0 if server is None else server.base.blocks
    own = recommender.head.blocks + recommender.tail.blocks
    positions = batch.layout.total
    block = there / (positions * max(blocks, 1))
    return Speed(block, max(here / positions - own * block, 0.0))


def _waited(trunk: Trunk) -> float:
    return float(getattr(trunk, "seconds", 0.0))
