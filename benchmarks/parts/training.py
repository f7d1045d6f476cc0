"""The training that benchmarks of the wire share: an HLLM over MiniLM on made-up histories."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from fellrec.config import RunConfig
from fellrec.data.interactions import Ragged, Split
from fellrec.data.sources import fetch_model
from fellrec.federation.client import Client
from fellrec.federation.recommenders import hllm
from fellrec.federation.settings import client_settings
from fellrec.federation.shares import Quota
from fellrec.federation.workspace import load_adapted
from fellrec.models.recommender import Trunk

ITEMS, TEXT_WIDTH, POSITIONS = 1682, 384, 50


def recipe(rows: int, micro_batches: int = 1, in_flight: int = 1) -> RunConfig:
    """Return the demo's model (LoRA of rank 16 on query and value) with batches of `rows`."""
    return RunConfig.from_toml(
        "demo",
        {
            "train.batch_size": rows,
            "train.micro_batches": micro_batches,
            "train.in_flight": in_flight,
            "train.local_epochs": 1,
            "train.threads": 1,
        },
    )


def client(config: RunConfig, name: str, trunk: Trunk, steps: int) -> Client:
    """Make a client whose round takes so many steps of whole batches, every row of 50 positions."""
    base = fetch_model(config.model.base)
    head, tail = (load_adapted(config, base, role) for role in ("head", "tail"))
    vectors = torch.randn(ITEMS, TEXT_WIDTH, generator=torch.Generator().manual_seed(0))
    recommender = hllm(config, head, tail, F.normalize(vectors, dim=-1))
    trunk.key.client = name
    return Client(
        name,
        histories(config.train.batch_size * steps),
        recommender,
        trunk,
        client_settings(config, Quota()),
    )


def histories(users: int) -> Split:
    """Draw histories of 50 items and one to predict."""
    rng = np.random.default_rng(0)
    rows = rng.integers(ITEMS, size=(users, POSITIONS + 1), dtype=np.int32)
    nothing = Ragged.from_rows([[]] * users)
    names = tuple(map(str, range(users)))
    return Split(names, Ragged.from_rows(rows), nothing, nothing, 0, {})
