"""What counts as recovered, and what chance would give."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fellrec.audit.recovery import by_chance, placed, recovered
from fellrec.errors import DataError

histories = st.lists(st.integers(0, 9), min_size=1, max_size=12)


@given(histories, histories)
def test_recovered_against_sets(items: list[int], guess: list[int]) -> None:
    found = recovered(np.array(items), np.array(guess))
    assert found == pytest.approx(len(set(items) & set(guess)) / len(set(items)))


@given(histories)
def test_the_history_itself_is_all_of_it(items: list[int]) -> None:
    given_back = np.array(items)
    assert recovered(given_back, given_back) == placed(given_back, given_back) == 1
    assert recovered(given_back, np.array([10])) == 0


def test_places_count_one_by_one() -> None:
    assert placed(np.array([3, 3, 5, 1]), np.array([3, 1, 5, 3])) == 0.5


def test_chance_by_hand() -> None:
    """Items 4 and 0 are the most popular: of {0, 2, 4} they and 1 give two."""
    places = np.array([1, 2, 4, 3, 0])
    assert by_chance(np.array([0, 2, 4, 4]), places) == pytest.approx(2 / 3)
    assert by_chance(np.array([2]), places) == 0
    assert by_chance(np.arange(5), places) == 1


def test_nothing_to_recover_is_refused() -> None:
    nothing = np.empty(0, dtype=np.int64)
    with pytest.raises(DataError, match="nothing to recover"):
        recovered(nothing, np.array([1]))
    with pytest.raises(DataError, match="give one for each"):
        placed(np.array([1, 2]), np.array([1]))
