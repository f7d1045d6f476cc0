"""Which items were touched, from how a round changed the item table."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fellrec.audit.touched import told_apart, turned
from fellrec.data.interactions import Ragged


def test_what_turns_from_the_usual_way_stands_out() -> None:
    """Four items are pushed along (1, 0); one turns by a right angle, one goes the other way."""
    before = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    change = torch.tensor([[1.0, 0], [2, 0], [0, 1], [1, 0], [-1, 0], [3, 0]])
    scores = turned(before, before + change)
    assert scores == pytest.approx([0, 0, 1, 0, 2, 0], abs=1e-6)
    assert told_apart(scores, Ragged.from_rows([[2, 4], [4]])) == 1
    assert told_apart(-scores, Ragged.from_rows([[2, 4]])) == 0
    # Of 2 x 4 pairs of a touched and another item {4, 0} wins 4 and ties with 3, loses one to 2.
    assert told_apart(scores, Ragged.from_rows([[4, 0]])) == pytest.approx((4 + 3 / 2) / 8)


def test_nothing_is_to_be_told_where_all_or_none_were_touched() -> None:
    every, nothing = np.array([0, 1, 2]), np.empty(0, dtype=np.int32)
    for row in (every, nothing):
        assert math.isnan(told_apart(np.arange(3.0), Ragged.from_rows([row])))
