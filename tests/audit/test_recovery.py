"""What counts as recovered, and what chance would give."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fellrec.audit.recovery import by_chance, placed, recovered, rouge_l
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
    # What was not guessed is wrong, and guesses behind the history's end are for nothing.
    assert placed(np.array([3, 3, 5, 1]), np.array([3, 3])) == 0.5
    assert placed(np.array([3, 3]), np.array([3, 3, 5])) == 1


@given(st.lists(st.integers(0, 3), max_size=7), st.lists(st.integers(0, 3), max_size=7))
def test_rouge_l_against_every_subsequence(text: list[int], guess: list[int]) -> None:
    def subsequences(row: list[int]) -> set[tuple[int, ...]]:
        return {kept for size in range(len(row) + 1) for kept in combinations(row, size)}

    longest = max(map(len, subsequences(text) & subsequences(guess)))
    whole = len(text) + len(guess)
    expected = 2 * longest / whole if whole else 1.0
    assert rouge_l(np.array(text), np.array(guess)) == pytest.approx(expected)


def test_chance_by_hand() -> None:
    """Items 4 and 0 are the most popular: of {0, 2, 4} they and 1 give two."""
    popular = np.array([4, 0, 1, 3, 2])
    assert by_chance(np.array([0, 2, 4, 4]), popular) == pytest.approx(2 / 3)
    assert by_chance(np.array([2]), popular) == 0
    assert by_chance(np.arange(5), popular) == 1


def test_nothing_to_recover_is_refused() -> None:
    nothing = np.empty(0, dtype=np.int64)
    with pytest.raises(DataError, match="nothing to recover"):
        recovered(nothing, np.array([1]))
    with pytest.raises(DataError, match="nothing to recover"):
        placed(nothing, np.array([1]))
