"""Texts taken apart into pieces and read again, exactly where nothing is wrong."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fellrec.audit.pieces import Pieces, align, spans
from fellrec.audit.wiretap import Items
from fellrec.data.interactions import Ragged

# Items 1 and 4 have one text; an item ends with a comma (7) but for the last, as in a prompt.
NAMES = [[1], [2, 3], [4, 5, 6], [1, 2], [2, 3]]
COMMA, OPEN, CLOSE, QUOTE = 7, 8, 9, 10


def text(history: Sequence[int]) -> Items:
    inside = [t for item in history for t in (QUOTE, *NAMES[item], COMMA)][:-1]
    return np.array([OPEN, *inside, CLOSE, CLOSE])


def taken_apart() -> Pieces:
    items = range(len(NAMES))
    return Pieces.of([text([item]) for item in items], [text([item, item]) for item in items])


def test_what_all_texts_share_is_no_piece() -> None:
    pieces = taken_apart()
    assert pieces.before.tolist() == [OPEN, QUOTE] and pieces.after.tolist() == [CLOSE, CLOSE]
    assert pieces.alike.tolist() == [0, 1, 2, 3, 1] and pieces.items.tolist() == [0, 1, 2, 3]
    # The next item's quote stands in the piece before it, since all begin with one.
    assert [row.tolist() for row in (pieces.inner[1], pieces.last[1])] == [
        [2, 3, COMMA, QUOTE],
        [2, 3],
    ]
    assert pieces.tokens().tolist() == [1, 2, 3, 4, 5, 6, COMMA, OPEN, CLOSE, QUOTE]


@given(st.lists(st.integers(0, len(NAMES) - 1), min_size=1, max_size=9))
def test_every_history_is_read_from_its_text(history: list[int]) -> None:
    pieces = taken_apart()
    inside = text(history)[2:-2]
    assert pieces.read(inside).tolist() == pieces.alike[history].tolist()
    numbers = np.searchsorted(pieces.items, pieces.alike[history])
    assert np.array_equal(pieces.spell(numbers.tolist()), inside)


def test_a_wrong_token_costs_no_more_than_its_item() -> None:
    history = [2, 0, 3, 1]
    inside = text(history)[2:-2]
    inside[6] = 99  # the comma behind item 0
    assert taken_apart().read(inside).tolist() == history


def test_a_length_that_no_pieces_have_gives_nothing() -> None:
    pieces = Pieces.of([np.array([1, 2, 5]), np.array([1, 3, 5])], [np.array([1, 2, 1, 2, 5])] * 2)
    assert pieces.read(np.array([2, 9])).tolist() == []


def test_alignment_is_the_cheapest_of_all_ways() -> None:
    """Against every way of cutting a text of five positions into the pieces."""
    rng = np.random.default_rng(3)
    rows = Ragged.from_rows([[0], [1, 2], [3, 4], [5, 6, 7]])
    empty = np.empty(0, np.int64)
    pieces = Pieces(np.arange(4), np.arange(4), empty, empty, rows, rows)
    inner, last = (torch.from_numpy(rng.random((5, 8))) for _ in range(2))

    def ways(left: int) -> list[list[int]]:
        sizes = rows.lengths().tolist()
        return (
            [[]]
            if not left
            else [
                [piece, *rest]
                for piece, size in enumerate(sizes)
                if size <= left
                for rest in ways(left - size)
            ]
        )

    def cost(way: list[int]) -> float:
        total, place = 0.0, 0
        for number, piece in enumerate(way):
            table = last if number == len(way) - 1 else inner
            for token in range(rows.offsets[piece], rows.offsets[piece + 1]):
                total, place = total + float(table[place, token]), place + 1
        return total

    assert align(inner, last, pieces) == min(ways(5), key=cost)
    assert spans(inner, rows, np.array([1, 2]))[1, 0] == pytest.approx(
        float(inner[1, 1] + inner[2, 2])
    )
