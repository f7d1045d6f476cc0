"""What a session holds, estimated before it is computed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fellrec.errors import WireError
from fellrec.models.adapters import LoraSettings
from fellrec.split.trunk import Session, SessionSettings, TrunkServer
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


def remembered(session: Session) -> int:
    """Count the memory of keys and values as it was laid out."""
    assert session.stage.cache is not None
    layers = session.stage.cache._layers
    memories = [memory for layer in layers for memory in (layer._keys, layer._values)]
    return sum(memory.untyped_storage().nbytes() for memory in memories if memory is not None)


def test_what_is_remembered_is_counted_as_it_grows() -> None:
    trunk = stage_of(tiny("llama", positions=100), "trunk", 1, 1)
    session = TrunkServer(trunk, SessionSettings()).session("a", 0)
    layout = layout_of([2, 5], "left")
    prompts = Frame(
        FrameKind.FORWARD,
        "a",
        side="left",
        lengths=layout.lengths,
        positions=layout.lengths * 0,
        tensor=layout.pack(random_hidden(layout)),
    )
    asked = session.demand(prompts)
    session.answer(prompts)
    assert session.held_bytes() == asked == remembered(session) == 2 * 37 * trunk.cache_bytes
    lengths, held = layout.lengths, [asked]
    beams = np.array([0, 1, 1], np.int32)  # a row more, then the same ones on
    for _ in range(40):
        lengths = lengths[beams]
        word = Frame(
            FrameKind.FORWARD,
            "a",
            side="left",
            lengths=lengths * 0 + 1,
            positions=lengths,
            beams=beams,
            tensor=random_hidden(layout_of([1] * len(beams)))[:, 0],
        )
        asked = session.demand(word)
        session.answer(word)
        assert session.held_bytes() == asked == remembered(session)
        held.append(asked)
        lengths, beams = lengths + np.int32(1), np.arange(3, dtype=np.int32)
    # 5 columns of the prompt with room for 32 more, and once these are filled for 33 + 32.
    assert sorted({size // trunk.cache_bytes for size in held}) == [2 * 37, 3 * 37, 3 * 70]


def test_what_a_session_may_remember_is_what_it_lays_out() -> None:
    trunk = stage_of(tiny("llama"), "trunk", 1, 1)
    rows = 50
    layout = layout_of([1] * rows, "left")
    prompts = Frame(
        FrameKind.FORWARD,
        "a",
        side="left",
        lengths=layout.lengths,
        positions=layout.lengths * 0,
        tensor=layout.pack(random_hidden(layout)),
    )
    limit = rows * 33 * trunk.cache_bytes
    for spare, refused in ((0, False), (-1, True)):
        settings = SessionSettings(max_cache_bytes=limit + spare)
        session = TrunkServer(trunk, settings).session("a", 0)
        if refused:
            with pytest.raises(WireError, match=r"50 rows with room for 33 positions.*max_cache"):
                session.answer(prompts)
            assert session.held_bytes() == 0
        else:
            session.answer(prompts)
            assert remembered(session) == limit
