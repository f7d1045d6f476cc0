"""What a split training step costs beside the same step of an unsplit model.

    python benchmarks/split_step.py [--quick] [--repeats 30]

Three ways to train an HLLM over MiniLM on the same batch (16 histories of 50 items, 1,682 items,
LoRA rank 16 on query and value), measured alternately in one run on one thread:

A   head -> remote trunk (fp32, in process) -> tail; norms exchanged, AdamW on both sides
B   the plain transformers model with a peft adapter, one AdamW; the same keyed dropout
C   as B with torch's own dropout

The floor is the time of the matrix products alone: their floating point operations over the rate of
the largest of them, measured in the same run.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModel, PreTrainedModel
from transformers.utils import logging

from fellrec.data.interactions import Ragged
from fellrec.data.sources import fetch_model
from fellrec.models.adapters import LoraSettings, attach
from fellrec.models.bases import load_config, load_stage
from fellrec.models.dropout import StepKey, key_dropouts
from fellrec.models.hllm import Hllm, HllmSettings
from fellrec.models.optimiser import Optimiser, OptimiserSettings
from fellrec.models.recommender import Batch
from fellrec.models.stages import Role, Stage
from fellrec.split.remote import RemoteTrunk
from fellrec.split.transport import InProcessTransport
from fellrec.split.trunk import SessionSettings, TrunkServer

ITEMS, WIDTH, POSITIONS, ROWS, RANK = 1682, 384, 50, 16, 16
DROPOUT = 0.1
LORA = LoraSettings(rank=RANK, alpha=32, dropout=0.05)
ADAM = OptimiserSettings(learning_rate=1e-3)
Step = Callable[[], None]


def text_vectors() -> torch.Tensor:
    """Return random unit vectors in place of the catalogue's."""
    generator = torch.Generator().manual_seed(0)
    return F.normalize(torch.randn(ITEMS, WIDTH, generator=generator), dim=-1)


def load(role: Role) -> Stage:
    """Load a stage of MiniLM, cut after its first and before its last block, with its adapter."""
    stage = load_stage(fetch_model("minilm"), role, 1, 1, dropout=DROPOUT)
    attach(stage, LORA, 0)
    return stage


def split_step() -> tuple[Step, Batch, RemoteTrunk]:
    """Return A, the batch that all three train on, and the trunk that A talks to."""
    recommender = Hllm(load("head"), load("tail"), text_vectors(), HllmSettings(POSITIONS), 0)
    server = TrunkServer(load("trunk"), SessionSettings(optimiser=ADAM))
    server.open("a", 0)
    remote = RemoteTrunk(InProcessTransport(server))
    remote.key.client = recommender.head.key.client = recommender.tail.key.client = "a"
    rng = np.random.default_rng(0)
    histories = Ragged.from_rows(
        [rng.integers(ITEMS, size=POSITIONS + 1, dtype=np.int32) for _ in range(ROWS)]
    )
    (batch,) = recommender.training_batches(histories, ROWS, 1, rng)
    optimiser = Optimiser({n: p for n, (_, p) in recommender.trained().items()}, ADAM)
    recommender.train()
    remote.train()
    step = 0

    def run() -> None:
        nonlocal step
        for key in (recommender.head.key, recommender.tail.key, remote.key):
            key.step = step
        loss = recommender.loss(remote, batch) / len(batch.targets)
        loss.backward()
        norm = optimiser.squared_norm()
        optimiser.step(norm + remote.end_step(norm))
        step += 1

    return run, batch, remote


def plain_step(batch: Batch, *, keyed: bool) -> Step:
    """Return B or C: nothing of the split in it."""
    folder = fetch_model("minilm")
    config = load_config(folder)
    config.is_decoder = True
    config.attention_probs_dropout_prob = 0.0
    config.hidden_dropout_prob = DROPOUT
    base: PreTrainedModel = AutoModel.from_pretrained(
        folder, config=config, add_pooling_layer=False, dtype=torch.float32
    )
    lora = LoraConfig(
        r=RANK, lora_alpha=32, lora_dropout=LORA.dropout, target_modules=["query", "value"]
    )
    model = get_peft_model(base, lora)
    key = StepKey()
    if keyed:
        key_dropouts(base, key, lambda path: path)
    text = text_vectors()
    projection = nn.Parameter(torch.eye(WIDTH))
    residual = nn.Parameter(torch.zeros(ITEMS, WIDTH))
    scale = nn.Parameter(torch.tensor(10.0))
    trained = [p for p in model.parameters() if p.requires_grad] + [projection, residual, scale]
    optimiser = torch.optim.AdamW(trained, ADAM.learning_rate, fused=True)
    model.train()

    def run() -> None:
        table = text @ projection.T + residual
        hidden = model(inputs_embeds=F.embedding(batch.inputs, table), use_cache=False)
        outputs = F.normalize(hidden.last_hidden_state.flatten(0, 1), dim=-1)
        logits = scale * outputs @ F.normalize(table, dim=-1).T
        F.cross_entropy(logits, batch.targets).backward()
        nn.utils.clip_grad_norm_(trained, ADAM.clip)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        key.step += 1

    return run


def floor_seconds(repeats: int) -> tuple[float, float]:
    """Return the seconds of a step's matrix products at the measured rate, and that rate in flop/s.

    A block's products with frozen weights are needed forward and for the gradient of their input
    (2 x), those with trained ones and attention's a third time.
    """
    n, d, inner, blocks = ROWS * POSITIONS, WIDTH, 4 * WIDTH, 6
    frozen = 2 * n * (4 * d * d + 2 * d * inner)
    lora = 2 * 2 * n * 2 * d * RANK
    attention = 2 * 2 * n * POSITIONS * d
    items = 2 * ITEMS * d * d  # projection: forward and its own gradient
    logits = 2 * n * ITEMS * d
    flops = blocks * (2 * frozen + 3 * (lora + attention)) + 2 * items + 3 * logits
    left, right = torch.randn(n, d), torch.randn(d, inner)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        left @ right
        times.append(time.perf_counter() - start)
    rate = 2 * n * d * inner / float(np.median(times))
    return flops / rate, rate


def main() -> None:
    """Parse the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--quick", action="store_true", help="five repeats")
    options = parser.parse_args()
    repeats = 5 if options.quick else options.repeats
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    a, batch, remote = split_step()
    steps = {
        "A split": a,
        "B plain, keyed dropout": plain_step(batch, keyed=True),
        "C plain, torch's dropout": plain_step(batch, keyed=False),
    }
    for run in steps.values():
        run()
        run()
    times: dict[str, list[float]] = {name: [] for name in steps}
    remote.seconds = 0.0
    for _ in range(repeats):
        for name, run in steps.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    medians = {name: float(np.median(taken)) for name, taken in times.items()}
    floor, rate = floor_seconds(max(repeats, 20))
    tokens = batch.layout.total
    print(f"{ROWS} x {POSITIONS} positions, {ITEMS} items, {repeats} steps each, one thread")
    print(f"{'':<26}{'ms':>8}{'tokens/s':>10}{'A / it':>8}{'x floor':>9}")
    for name, taken in medians.items():
        speed, ratio = tokens / taken, medians["A split"] / taken
        print(f"{name:<26}{1e3 * taken:>8.1f}{speed:>10.0f}{ratio:>8.3f}{taken / floor:>9.2f}")
    print(f"{'floor':<26}{1e3 * floor:>8.1f}{tokens / floor:>10.0f}   at {rate / 1e9:.0f} Gflop/s")
    share = remote.seconds / repeats / medians["A split"]
    print(f"of A, waiting for the trunk (four of six blocks, codecs): {share:.0%}")


if __name__ == "__main__":
    main()
