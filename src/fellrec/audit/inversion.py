"""Reading a history back from the activations at the first cut, for a head that the server knows.

The attacker has a head and a table of item vectors of its own, as near to the client's as it knows
(`knowledge`), and what crossed. Two ways:

`nearest` compares each position with every item read alone, as a history of one, both centred: what
a position has from its neighbours and its place is taken for noise. No search, one pass over the
catalogue. It works for any head, the better the fewer blocks it has.

`search` goes from the oldest position to the newest. A causal head's output at a position depends
on this item and the earlier ones alone, so with the earlier ones found, the true item gives what
was seen to the last bits, and any other does not: of a head that is known nothing is left to guess.
Candidates are tried in the order of how well they would fit if an item's own part and its
neighbours' part of the output simply added up; more of them where none fits exactly.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fellrec.audit.wiretap import Items, Seen
from fellrec.models.layout import Layout
from fellrec.models.stages import Stage

_TRIED = (8, 64)
"""Candidates of the first tries at each position; the last try takes as many as allowed."""
_EXACT = 1e-3
"""A candidate whose distance is below this share of what was seen is taken at once."""
_BATCH = 512  # histories that the head reads at a time


def read_alone(head: Stage, table: Tensor) -> Tensor:
    """Return the head's output for every item as a history of one: (items, d)."""
    rows = torch.split(table, _BATCH)
    return torch.cat([head(part[:, None], _rows(len(part), 1))[:, 0] for part in rows])


def nearest(seen: Seen, alone: Tensor, centre: Tensor) -> Items:
    """Guess the item of each position by distance: (length,) int64.

    alone: (items, d), see `read_alone`. centre: (d,) the mean of all positions that were seen, of
    all histories.
    """
    away = (seen.activations - centre).to(alone.device)
    guess: Items = torch.cdist(away, alone - alone.mean(dim=0)).argmin(dim=1).cpu().numpy()
    return guess


def search(seen: Seen, head: Stage, table: Tensor, alone: Tensor, most: int) -> Items:
    """Guess the items from the oldest to the newest: (length,) int64.

    table: (items, d) vectors that the head reads. most: candidates tried at a position at most; all
    items where it is 0 or larger than the catalogue.
    """
    items = len(table)
    most = min(most, items) or items
    found: list[int] = []
    for place in range(len(seen.activations)):
        goal = seen.activations[place].to(table.device)
        before = table[found]
        # What the earlier items and the place add, by the best guess of the item so far.
        guess = int((alone - goal).square().sum(dim=1).argmin())
        for _ in range(2):
            added = _last(head, before, table[[guess]])[0] - alone[guess]
            order = (alone - (goal - added)).square().sum(dim=1).argsort()
            guess = int(order[0])
        done, best, least = 0, guess, float("inf")
        for tries in (*(tries for tries in _TRIED if tries < most), most):
            candidates = order[done:tries]
            away = (_last(head, before, table[candidates]) - goal).square().sum(dim=1)
            if float(away.min()) < least:
                best, least = int(candidates[away.argmin()]), float(away.min())
            if least <= _EXACT**2 * float(goal.square().sum()):
                break
            done = tries
        found.append(best)
    return np.asarray(found, dtype=np.int64)


def _last(head: Stage, before: Tensor, candidates: Tensor) -> Tensor:
    """Return the head's output for each candidate behind the same items: (candidates, d).

    The items before are read once for all candidates, by the cache that serves writing.
    """
    outputs = []
    for part in torch.split(candidates[:, None], _BATCH):
        if len(before):
            head.prefill(before[None], _rows(1, len(before)))
            outputs.append(head.extend(part, np.zeros(len(part), dtype=np.int32)))
        else:
            outputs.append(head(part, _rows(len(part), 1)))
    head.forget()
    return torch.cat(outputs)[:, 0]


def _rows(count: int, length: int) -> Layout:
    return Layout(np.full(count, length, dtype=np.int32), "left")
