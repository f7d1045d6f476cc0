"""How much of a history a guess recovers, and how much guessing what is popular would."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fellrec.audit.wiretap import Items
from fellrec.errors import DataError


@dataclass(frozen=True)
class Content:
    """What a history held, or what somebody guesses that it did.

    items: (n,) int64, in the order in which the recommender reads them. Of items whose texts are
    the same it names the first. tokens: (length,) int64 what spells them, in recommenders that read
    texts; None where each position is an item.
    """

    items: Items
    tokens: Items | None = None


def recovered(items: Items, guess: Items) -> float:
    """Return the share of a history's different items that are among those guessed, in [0, 1].

    Order does not count: what matters is what somebody took. Raises DataError for an empty history.
    """
    if not len(items):
        raise DataError("an empty history has nothing to recover")
    return float(np.isin(np.unique(items), guess).mean())


def placed(items: Items, guess: Items) -> float:
    """Return the share of places whose item was guessed, in [0, 1]; a missing guess is a wrong one.

    Raises DataError for an empty history.
    """
    if not len(items):
        raise DataError("an empty history has nothing to recover")
    both = min(len(items), len(guess))
    return float((items[:both] == guess[:both]).sum() / len(items))


def rouge_l(tokens: Items, guess: Items) -> float:
    """Return ROUGE-L of two texts as tokens, in [0, 1]: F1 of their longest common subsequence.

    After Lin, *ROUGE: A Package for Automatic Evaluation of Summaries* (2004), with beta 1. Two
    empty texts are equal.
    """
    if not len(tokens) or not len(guess):
        return float(len(tokens) == len(guess))
    longest = np.zeros(len(guess) + 1, np.int64)
    for token in tokens:
        # Where the tokens meet, one more than before both; else the better of leaving one out.
        met = np.where(guess == token, longest[:-1] + 1, longest[1:])
        longest[1:] = np.maximum.accumulate(met)
    return float(2 * longest[-1] / (len(tokens) + len(guess)))


def by_chance(items: Items, popular: Items) -> float:
    """Return what `recovered` gives to as many of the most popular items as the history has.

    popular: item indices, the most popular first, see `evaluation.popularity.places`.
    """
    return recovered(items, popular[: len(np.unique(items))])
