"""What a session holds, estimated before it is computed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fellrec.models.adapters import LoraSettings
from fellrec.split.trunk import SessionSettings, TrunkServer
from fellrec.split.wire import Frame, FrameKind
from tests.builders import KINDS, TARGETS, layout_of, random_hidden, stage_of, tiny


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("lengths", [[5, 5], [9, 3, 7]])
@pytest.mark.parametrize("kind", [*KINDS, "longformer"])
def test_what_a_step_keeps_is_estimated_before(
    kind: str, lengths: list[int], dropout: float
) -> None:
    lora = LoraSettings(rank=4, alpha=8, dropout=dropout, targets=TARGETS[kind])
    causal = kind != "longformer"
    trunk = stage_of(tiny(kind), "trunk", 1, 1, causal=causal, dropout=dropout, lora=lora)
    session = TrunkServer(trunk, SessionSettings(micro_batches=2)).session("a", 0)
    own = {p.untyped_storage().data_ptr() for p in session.stage.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    layout = layout_of(lengths)
    tensor = layout.pack(random_hidden(layout))
    forward = Frame(FrameKind.FORWARD, "a", training=True, lengths=layout.lengths, tensor=tensor)
    assert session.held_bytes() == 0
    expected = session.demand(forward)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        session.answer(forward)
    assert session.held_bytes() == expected
    assert sum(kept.values()) <= expected <= 2.5 * sum(kept.values())
    session.answer(Frame(FrameKind.GRADIENT, "a", training=True, tensor=tensor))
    assert session.held_bytes() == 0


def test_what_is_remembered_is_counted_as_it_grows() -> None:
    trunk = stage_of(tiny("llama"), "trunk", 1, 1)
    session = TrunkServer(trunk, SessionSettings()).session("a", 0)
    layout = layout_of([2, 5], "left")
    positions = layout.lengths * 0
    prompts = Frame(
        FrameKind.FORWARD,
        "a",
        side="left",
        lengths=layout.lengths,
        positions=positions,
        tensor=layout.pack(random_hidden(layout)),
    )
    asked = session.demand(prompts)
    session.answer(prompts)
    assert session.held_bytes() == asked == 2 * 5 * trunk.cache_bytes
    word = Frame(
        FrameKind.FORWARD,
        "a",
        side="left",
        lengths=positions + 1,
        positions=layout.lengths,
        beams=positions + layout.lengths.argsort().astype("int32"),
        tensor=random_hidden(layout_of([1, 1]))[:, 0],
    )
    asked = session.demand(word)
    session.answer(word)
    assert session.held_bytes() == asked == 2 * 6 * trunk.cache_bytes
