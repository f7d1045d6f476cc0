"""How much of a history a guess recovers, and how much guessing what is popular would."""

from __future__ import annotations

import numpy as np

from fellrec.audit.wiretap import Items
from fellrec.errors import DataError


def recovered(items: Items, guess: Items) -> float:
    """Return the share of a history's different items that are among those guessed, in [0, 1].

    Order does not count: what matters is what somebody took. Raises DataError for an empty history.
    """
    if not len(items):
        raise DataError("an empty history has nothing to recover")
    return float(np.isin(np.unique(items), guess).mean())


def placed(items: Items, guess: Items) -> float:
    """Return the share of positions whose item was guessed, in [0, 1].

    Raises DataError for an empty history or a guess of another length.
    """
    if not len(items) or len(items) != len(guess):
        raise DataError(f"{len(guess)} guesses for {len(items)} positions: give one for each")
    return float((items == guess).mean())


def by_chance(items: Items, places: Items) -> float:
    """Return what `recovered` gives to as many of the most popular items as the history has.

    places: (items,) each item's place by popularity, see `evaluation.popularity.places`.
    """
    return recovered(items, np.argsort(places)[: len(np.unique(items))])
