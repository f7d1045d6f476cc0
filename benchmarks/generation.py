"""Writing with the split model against `transformers`' own `generate` on the model in one piece.

    python benchmarks/generation.py [--quick]

SmolLM2-135M with LoRA adapters, four beams, prompts of real titles' length, both write the same
number of tokens (no text ends early) and are timed alternately in one process on one thread; the
medians' ratio is what counts. Target: the split model writes at least 0.8 times the tokens per
second. Then, titles of a catalogue: what one recommendation costs as more titles are written for
it; target: no faster than in proportion to their number.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils import logging

from fellrec.data.interactions import Ragged
from fellrec.data.sources import fetch_model
from fellrec.models.adapters import LoraSettings, attach
from fellrec.models.bases import load_output, load_stage
from fellrec.models.beams import beam_search
from fellrec.models.bigrec import Bigrec, BigrecSettings, SplitWriter
from fellrec.models.prompts import Prompts, PromptSettings
from fellrec.models.recommender import Batch
from fellrec.models.stages import Role, Stage
from fellrec.split.remote import RemoteTrunk
from fellrec.split.transport import InProcessTransport
from fellrec.split.trunk import SessionSettings, TrunkServer

TARGET, BEAMS, NEVER = 0.8, 4, -1
TITLES, WORDS = 1_682, ("silent", "river", "garden", "of", "the", "last", "empire", "night", "two")
LORA = LoraSettings(rank=8, alpha=16, dropout=0.0)


def titles() -> list[str]:
    """Make titles of one to six words, about as long in tokens as MovieLens'."""
    rng = np.random.default_rng(0)
    return [
        " ".join([*rng.choice(WORDS, rng.integers(1, 5)), str(i)]).title() for i in range(TITLES)
    ]


def split_model() -> tuple[Bigrec, RemoteTrunk]:
    """Build the recommender, cut at (1, 1), its trunk behind the wire's codec."""
    folder = fetch_model("smollm2")

    def stage(role: Role) -> Stage:
        made = load_stage(folder, role, 1, 1, tokens=True)
        attach(made, LORA, 0)
        return made

    server = TrunkServer(stage("trunk"), SessionSettings())
    server.open("bench", 0)
    remote = RemoteTrunk(InProcessTransport(server))
    remote.key.client = "bench"
    head = stage("head")
    prompts = Prompts(AutoTokenizer.from_pretrained(folder), titles(), PromptSettings())
    model = Bigrec(head, stage("tail"), load_output(folder, head), prompts, BigrecSettings())
    model.eval()
    remote.eval()
    return model, remote


def whole_model() -> torch.nn.Module:
    """Load the model in one piece, with an adapter of the same shape."""
    base = AutoModelForCausalLM.from_pretrained(fetch_model("smollm2"), dtype=torch.float32)
    lora = LoraConfig(r=LORA.rank, lora_alpha=LORA.alpha, target_modules=["q_proj", "v_proj"])
    model: torch.nn.Module = get_peft_model(base, lora)
    return model.eval()


def seconds(task: Callable[[], object]) -> float:
    """Time one call."""
    start = time.perf_counter()
    task()
    return time.perf_counter() - start


def free_texts(model: Bigrec, remote: RemoteTrunk, rows: int, length: int, repeats: int) -> float:
    """Print both speeds for `rows` prompts at a time, and return their ratio."""
    batch = prompts_of(model, rows)
    plain = whole_model()
    settings = GenerationConfig(
        num_beams=BEAMS,
        max_new_tokens=length,
        do_sample=False,
        length_penalty=0.0,
        eos_token_id=None,
        pad_token_id=0,
    )
    mask = batch.layout.valid.long()

    def ours() -> object:
        writer = SplitWriter(model.head, remote, model.tail, model.output)
        with torch.no_grad():
            return beam_search(
                writer, batch.inputs, batch.layout, beams=BEAMS, longest=length, end=NEVER
            )

    def theirs() -> Tensor:
        generate: Callable[..., Tensor] = plain.generate  # type: ignore[assignment]  # nn.Module
        return generate(input_ids=batch.inputs, attention_mask=mask, generation_config=settings)

    ours(), theirs()
    times = np.array([(seconds(ours), seconds(theirs)) for _ in range(repeats)])
    split, whole = np.median(times, axis=0)
    tokens = rows * length
    ratio = float(whole / split)
    print(
        f"{rows} prompts of {int(batch.layout.lengths.mean())} tokens, {length} tokens each: split "
        f"{tokens / split:.1f} tokens/s, in one piece {tokens / whole:.1f}, ratio {ratio:.2f} "
        f"(target {TARGET})"
    )
    return ratio


def written_titles(model: Bigrec, remote: RemoteTrunk, repeats: int) -> None:
    """Print what one recommendation costs by the number of titles that are written for it."""
    batch = prompts_of(model, 1)
    counts = (5, 10, 20, 40)

    def write(beams: int) -> object:
        longest = int(model.prompts.responses.lengths().max())
        return model.write(remote, batch, beams=beams, longest=longest, free=False)

    write(counts[0])
    times = np.array([[seconds(partial(write, c)) for c in counts] for _ in range(repeats)])
    medians = np.median(times, axis=0)
    said = ", ".join(
        f"{count}: {taken:.2f} s" for count, taken in zip(counts, medians, strict=True)
    )
    growth, titles_growth = float(medians[-1] / medians[0]), counts[-1] / counts[0]
    print(
        f"titles written for one recommendation: {said}; {titles_growth:.0f} times the titles cost "
        f"{growth:.2f} times the seconds (target: at most {titles_growth:.0f})"
    )


def prompts_of(model: Bigrec, rows: int) -> Batch:
    """Return a serving batch of histories of ten titles."""
    rng = np.random.default_rng(1)
    drawn = (rng.choice(TITLES, 10, replace=False) for _ in range(rows))
    histories = Ragged.from_rows([row.astype(np.int32) for row in drawn])
    return next(iter(model.serving_batches(histories, rows)))


def main() -> None:
    """Parse the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="one repeat, short texts")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model, remote = split_model()
    repeats, length = (1, 8) if quick else (5, 24)
    for rows in (1, 8):
        free_texts(model, remote, rows, length, repeats)
    written_titles(model, remote, repeats)


if __name__ == "__main__":
    main()
