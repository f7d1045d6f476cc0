"""Which positions of a padded batch are real."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fellrec.models.layout import Layout, Side
from fellrec.models.recommender import Batch
from tests.builders import layout_of

lengths_and_side = st.tuples(
    st.lists(st.integers(1, 7), min_size=1, max_size=6), st.sampled_from(["left", "right"])
)


def test_right_padding() -> None:
    layout = layout_of([1, 3])
    assert (layout.width, layout.total, layout.full) == (3, 4, False)
    assert layout.valid.tolist() == [[True, False, False], [True, True, True]]
    assert layout.positions.tolist() == [[0, 1, 2], [0, 1, 2]]
    assert layout.index.tolist() == [0, 3, 4, 5]
    assert layout.last.tolist() == [0, 5]


def test_left_padding() -> None:
    layout = layout_of([1, 3], "left")
    assert layout.valid.tolist() == [[False, False, True], [True, True, True]]
    assert layout.positions.tolist() == [[0, 0, 0], [0, 1, 2]]
    assert layout.index.tolist() == [2, 3, 4, 5]
    assert layout.last.tolist() == [2, 5]


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_full_batch(side: Side) -> None:
    layout = layout_of([2, 2], side)
    assert layout.full
    assert layout.positions.tolist() == [[0, 1], [0, 1]]
    packed = torch.arange(12.0).view(4, 3)
    assert torch.equal(layout.unpack(packed), packed.view(2, 2, 3))
    assert torch.equal(layout.pack(packed.view(2, 2, 3)), packed)


@given(lengths_and_side, st.integers(1, 4))
def test_unpack_and_pack_are_inverse(drawn: tuple[list[int], Side], channels: int) -> None:
    lengths, side = drawn
    layout = Layout(np.array(lengths, np.int32), side)
    packed = torch.arange(1.0, sum(lengths) * channels + 1).view(-1, channels)
    padded = layout.unpack(packed)
    assert torch.equal(layout.pack(padded), packed)
    start = 0
    for row, length in enumerate(lengths):  # by slices, without `valid`
        place = slice(0, length) if side == "right" else slice(layout.width - length, layout.width)
        assert torch.equal(padded[row, place], packed[start : start + length])
        assert layout.positions[row, place].tolist() == list(range(length))
        assert (
            padded.flatten(0, 1)[layout.last[row]].tolist() == packed[start + length - 1].tolist()
        )
        start += length
    assert int((padded != 0).sum()) == packed.numel()  # the padding is zeros


@given(lengths_and_side, st.integers(1, 8))
def test_micro_batches_are_the_batch(drawn: tuple[list[int], Side], count: int) -> None:
    lengths, side = drawn
    layout = layout_of(lengths, side)
    total = sum(lengths)
    inputs = layout.unpack(torch.arange(1, total + 1)[:, None]).squeeze(-1)
    counts = np.array(lengths, np.int64)
    batch = Batch(layout, inputs, torch.arange(total), np.arange(len(lengths)) + 10, counts)
    parts = batch.micro(count)
    assert len(parts) == min(count, len(lengths))
    for part in parts:
        assert part.layout.side == side
        assert part.inputs.shape == part.layout.valid.shape
        assert torch.equal(part.inputs[part.layout.valid], part.targets + 1)
    assert torch.equal(torch.cat([part.targets for part in parts]), batch.targets)
    assert np.concatenate([part.rows for part in parts]).tolist() == batch.rows.tolist()
    assert np.concatenate([part.layout.lengths for part in parts]).tolist() == lengths
