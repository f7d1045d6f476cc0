"""Peak memory of a client that trains its part of a model, against one that trains all of it.

    python benchmarks/client_memory.py [--quick]

BIGRec over SmolLM2-135M as in the recipe bigrec-ml100k (LoRA of rank 8 on all linear layers),
batches of 4 texts of 180 tokens. Each side is a process of its own:

client   the embedding, which is the output layer, too, the first block and the last (k_in = k_out =
         1); the 28 others in `fellrec trunk`, another process, over gRPC with mutual TLS
whole    the same code with all 30 blocks as head and tail, and no trunk

Both make the same three steps, and their losses have to agree. What counts is the largest resident
memory (VmHWM) above what is resident after the imports; pages of the mapped weights count where
they were touched. Target: client <= 0.5 x whole, both where the response alone is learned (12
tokens of each text, the default) and where the prompt is learned, too (the recipe's choice: logits
of 49,152 words at all 720 positions, on both sides). Linux.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
import transformers.models.llama.modeling_llama  # noqa: F401  # else imported when a stage is made
from transformers.utils import logging

from benchmarks.parts.deployed import ROUND, Deployed, deployed
from fellrec.config import RunConfig
from fellrec.data.sources import fetch_model
from fellrec.federation.recommenders import load_tokenizer
from fellrec.federation.settings import optimiser_settings
from fellrec.federation.workspace import load_adapted
from fellrec.models.bases import load_output
from fellrec.models.bigrec import Bigrec, BigrecSettings
from fellrec.models.layout import Layout
from fellrec.models.optimiser import Optimiser
from fellrec.models.prompts import Prompts, PromptSettings
from fellrec.models.recommender import Batch, NoTrunk, Trunk
from fellrec.split.remote import RemoteTrunk
from fellrec.split.service.channel import Link
from fellrec.split.service.messages import Greeting
from fellrec.split.service.settings import TlsFiles
from fellrec.split.service.transport import GrpcTransport

TARGET, CLIENT = 0.5, "north"
ROWS, POSITIONS, RESPONSE, TITLES, STEPS = 4, 180, 12, 1_682, 3
LEARNED = {"response": RESPONSE, "prompt+response": POSITIONS}
HALVES = {"client": 1, "whole": 15}  # blocks of the head, and as many of the tail


def recipe(half: int) -> RunConfig:
    """Return the shipped recipe, cut after `half` blocks and before the last `half`."""
    return RunConfig.from_toml(
        "bigrec-ml100k", {"model.k_in": half, "model.k_out": half, "train.batch_size": ROWS}
    )


def mebibytes(field: str) -> float:
    """Read a line of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) / 1024
    raise SystemExit(f"/proc/self/status tells no {field}")


def batch(learned: int, vocabulary: int) -> Batch:
    """Draw texts of 180 tokens whose last `learned` are targets."""
    rng = np.random.default_rng(0)
    tokens = torch.from_numpy(rng.integers(vocabulary, size=(ROWS, POSITIONS + 1)))
    lengths, counts = np.full(ROWS, POSITIONS, np.int32), np.full(ROWS, learned, np.int64)
    targets = tokens[:, -learned:].flatten()
    return Batch(Layout(lengths), tokens[:, :-1], targets, np.arange(ROWS), counts)


def train(half: int, learned: int, trunk: Trunk) -> dict[str, float]:
    """Load one side's stages and make some steps: mebibytes at each stage."""
    found = {"imports": mebibytes("VmRSS")}
    config = recipe(half)
    base = fetch_model(config.model.base)
    head, tail = (load_adapted(config, base, role) for role in ("head", "tail"))
    titles = [f"Title {number}" for number in range(TITLES)]
    prompts = Prompts(load_tokenizer(base), titles, PromptSettings())
    model = Bigrec(head, tail, load_output(base, head), prompts, BigrecSettings())
    found |= {"loaded": mebibytes("VmRSS"), "of these mapped": mebibytes("RssFile")}
    optimiser = Optimiser(
        {name: p for name, (_, p) in model.trained().items()}, optimiser_settings(config)
    )
    drawn = batch(learned, len(model.output))
    model.train()
    trunk.train()
    keys = (model.head.key, model.tail.key, trunk.key)
    for step in range(STEPS):
        for key in keys:
            key.client, key.round, key.step = CLIENT, ROUND, step
        loss = model.loss(trunk, drawn) / len(drawn.targets)
        loss.backward()
        norm = optimiser.squared_norm()
        optimiser.step(norm + trunk.end_step(norm))
    return found | {"peak": mebibytes("VmHWM"), "loss": float(loss.detach())}


def child(side: str, learned: int, port: int) -> None:
    """Train one side, told on stdin how to reach its trunk; print what was found."""
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if side == "whole":
        print(json.dumps(train(HALVES[side], learned, NoTrunk())))
        return
    told = json.loads(sys.stdin.read())
    files = TlsFiles(*map(Path, told["tls"]))
    greeting = Greeting.model_validate(told["greeting"])
    transport = GrpcTransport(Link(f"127.0.0.1:{port}", files), greeting)
    found = train(HALVES[side], learned, RemoteTrunk(transport))
    transport.close()
    print(json.dumps(found))


def measure(side: str, learned: int, trunk: Deployed) -> dict[str, float]:
    """Run one side in a process of its own."""
    tls = trunk.link(CLIENT).tls
    told = {
        "tls": [str(tls.certificate), str(tls.key), str(tls.authority)],
        "greeting": trunk.call(CLIENT).model_dump(),
    }
    done = subprocess.run(
        [sys.executable, __file__, "--child", side, str(learned), str(trunk.port)],
        input=json.dumps(told),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    """Parse the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="the default loss alone")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child[0], int(options.child[1]), int(options.child[2]))
        return
    with deployed(recipe(HALVES["client"]), [CLIENT]) as trunk:
        for loss_on in ["response"] if options.quick else LEARNED:
            found = {side: measure(side, LEARNED[loss_on], trunk) for side in HALVES}
            print(f"learned: {loss_on}, {LEARNED[loss_on]} of {POSITIONS} tokens; MiB")
            print(
                f"{'':<8}{'imports':>9}{'loaded':>9}{'mapped':>9}{'peak':>9}{'above imports':>15}"
            )
            above = {}
            for side, at in found.items():
                above[side] = at["peak"] - at["imports"]
                columns = [at[name] for name in ("imports", "loaded", "of these mapped", "peak")]
                figures = "".join(f"{value:>9,.0f}" for value in columns)
                print(f"{side:<8}{figures}{above[side]:>15,.0f}")
            if not math.isclose(found["client"]["loss"], found["whole"]["loss"], rel_tol=1e-4):
                raise SystemExit("the sides did not train the same model: their losses differ")
            ratio = above["client"] / above["whole"]
            verdict = "pass" if ratio <= TARGET else "MISSED"
            print(f"client / whole: {ratio:.3f} (target <= {TARGET}) {verdict}\n")


if __name__ == "__main__":
    main()
