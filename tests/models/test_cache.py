"""Reading token by token is reading at once, whatever rows go on and wherever padding stands."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fellrec.models.adapters import LoraSettings, adapter
from fellrec.models.stages import Role, Stage
from tests.builders import (
    TARGETS,
    install,
    layout_of,
    random_factors,
    random_hidden,
    stage_of,
    tiny,
)

DECODERS = ("llama", "mistral", "qwen3", "smollm3", "gemma")
PROMPTS = (5, 2, 9)
# Which rows go on at each step: spread over two beams each, crossed, one prompt done, one row left.
STEPS = ([0, 0, 1, 1, 2, 2], [1, 0, 2, 2, 5, 4], [2, 3, 5, 4], [0, 0, 3, 2], [3, 1], [0])


def stage(kind: str, role: Role = "trunk", blocks: int = 2) -> Stage:
    model = copy.deepcopy(tiny(kind))
    lora = LoraSettings(rank=4, alpha=8, dropout=0.0, targets=TARGETS[kind])
    cuts = {"head": (blocks, 0), "trunk": (1, 5 - blocks), "tail": (6 - blocks, blocks)}
    made = stage_of(model, role, *cuts[role], lora=lora)
    if blocks:
        install(made, random_factors(adapter(made)))
    return made


def written(kind: str, role: Role, blocks: int, steps: tuple[list[int], ...] = STEPS) -> None:
    """Extend rows step by step, and compare each new position with the whole row read at once."""
    made = stage(kind, role, blocks)
    layout = layout_of(PROMPTS, "left")
    prompts = random_hidden(layout)
    rows: list[Tensor] = [prompts[i, layout.width - n :] for i, n in enumerate(PROMPTS)]
    with torch.no_grad():
        found = made.prefill(prompts, layout)
        for i, row in enumerate(rows):
            alone = made(row[None], layout_of([len(row)]))[0]
            torch.testing.assert_close(
                found[i, layout.width - len(row) :], alone, atol=1e-5, rtol=1e-5
            )
        for number, beams in enumerate(steps):
            new = random_hidden(layout_of([1] * len(beams)), seed=number + 1)
            rows = [torch.cat([rows[beam], new[i]]) for i, beam in enumerate(beams)]
            found = made.extend(new, np.array(beams, np.int32))
            for i, row in enumerate(rows):
                alone = made(row[None], layout_of([len(row)]))[0, -1]
                torch.testing.assert_close(found[i, 0], alone, atol=1e-5, rtol=1e-5)
    assert made.cache is not None
    assert made.cache.lengths.tolist() == [len(row) for row in rows]


@pytest.mark.parametrize("kind", DECODERS)
def test_a_stage_that_remembers_reads_as_at_once(kind: str) -> None:
    written(kind, "trunk", 2)


@pytest.mark.parametrize("role", ["head", "tail"])
@pytest.mark.parametrize("blocks", [0, 1])
def test_so_do_heads_and_tails(role: Role, blocks: int) -> None:
    written("llama", role, blocks)


@given(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=6), min_size=1, max_size=4))
def test_any_rows_may_go_on(drawn: list[list[int]]) -> None:
    rows, steps = len(PROMPTS), []
    for beams in drawn:
        steps.append([beam % rows for beam in beams])
        rows = len(beams)
    written("llama", "trunk", 2, tuple(steps))


def test_memory_grows_past_its_first_size() -> None:
    written("llama", "trunk", 1, tuple([0, 0] if n == 0 else [n % 2, 1] for n in range(29)))


def test_what_is_forgotten_cannot_go_on() -> None:
    made = stage("llama")
    with pytest.raises(RuntimeError, match="prefill comes first"):
        made.extend(random_hidden(layout_of([1])), np.zeros(1, np.int32))
    made.prefill(random_hidden(layout_of([3])), layout_of([3], "left"))
    made.forget()
    assert made.cache is None


def test_a_copy_of_a_stage_remembers_nothing_of_it() -> None:
    made = stage("llama")
    twin = made.replica()
    twin.prefill(random_hidden(layout_of([3])), layout_of([3], "left"))
    assert made.cache is None


def test_the_size_of_what_is_remembered() -> None:
    made = stage("llama")  # 2 blocks, 2 heads of 8 channels for keys and for values, 4 bytes
    assert made.cache_bytes == 2 * 2 * 8 * 2 * 4
    made.prefill(random_hidden(layout_of([3, 3])), layout_of([3, 3], "left"))
    assert made.cache is not None and made.cache.columns == 3
    assert made.cache.room == 3 + 32  # memory is laid out for a title
    assert len(made.cache.blocks.layers) == made.blocks
