"""Reading a history back from the activations at the first cut, for a causal head that is known.

The attacker has a head and a table of what it may read (items' vectors, or tokens' embeddings), as
near to the client's as it knows (`knowledge`), and what crossed. Two ways:

`nearest` compares each position with every unit read alone, both centred: what a position has from
its neighbours and its place is taken for noise. No search, one pass over the table. It works for
any head, the better the fewer blocks it has.

`search` goes from the first position to the last. A causal head's output at a position depends on
this unit and the earlier ones alone, so with the earlier ones found, the true unit gives what was
seen to the last bits, and any other does not: of a head that is known nothing is left to guess.
Candidates are tried in the order of how well they would fit if a unit's own part and its
neighbours' part of the output simply added up; more of them where none fits exactly. Of a head that
is not quite the client's none does; then the nearest is taken, after what the two heads differ by
on average so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fellrec.audit.wiretap import Items
from fellrec.models.layout import Layout
from fellrec.models.stages import Stage

_TRIED = (8, 64)
"""Candidates of the first tries at each position; the last try takes as many as allowed."""
EXACT = 1e-3
"""A candidate whose distance is below this share of what was seen is taken at once."""
_DOUBT = 4.0
"""Positions after which means over what was found count as much as what was there at first."""
_BATCH = 512  # rows that the head reads at a time


@dataclass(frozen=True)
class Units:
    """What an attacker knows of what may stand at a position, and of a head that read some of it.

    table: (units, d) what the head reads. before: (n, d) what every text begins with. alone:
    (units, d) the head's output for each unit behind that beginning; with none, for a history of
    one. centre: (d,) the mean of all positions that were seen, of all histories.
    """

    head: Stage
    table: Tensor
    before: Tensor
    alone: Tensor
    centre: Tensor

    @classmethod
    def of(cls, head: Stage, table: Tensor, before: Tensor, seen: Sequence[Tensor]) -> Units:
        """Read every unit once. seen: (length, d) each, without the positions of `before`."""
        alone = _Followed(head, before).by(table)
        head.forget()
        return cls(head, table, before, alone, torch.cat(list(seen)).mean(dim=0).to(table.device))


def nearest(seen: Tensor, units: Units) -> Items:
    """Guess the unit of each position by distance: (length,) int64. seen: (length, d)."""
    away = seen.to(units.table.device) - units.centre
    alone = units.alone - units.alone.mean(dim=0)
    guess: Items = torch.cdist(away, alone).argmin(dim=1).cpu().numpy()
    return guess


def search(seen: Tensor, units: Units, most: int) -> Items:
    """Guess the units from the first to the last: (length,) int64.

    seen: (length, d), without the positions of `units.before`. most: candidates tried at a position
    at most; all where it is 0 or larger than the table.
    """
    head, table, alone = units.head, units.table, units.alone
    most = min(most, len(table)) or len(table)
    followed = _Followed(head, units.before)
    found: list[int] = []
    # What neighbours and place add to a unit's own part, and what the client's head adds to this
    # one: means over what was found so far.
    added, unknown = (units.centre - alone.mean(dim=0)) * _DOUBT, torch.zeros_like(units.centre)
    for number, goal in enumerate(seen.to(table.device)):
        exact = EXACT**2 * float(goal.square().sum())
        usual, bias = added / (number + _DOUBT), unknown / (number + _DOUBT)
        order = _ordered(alone, goal - usual)
        done, best, least, output = 0, 0, float("inf"), goal
        for tries in (*(tries for tries in _TRIED if tries < most), most):
            outputs = followed.by(table[order[done:tries]])
            plain = (outputs - goal).square().sum(dim=1)
            hit = float(plain.min()) <= exact
            away = plain if hit else (outputs + bias - goal).square().sum(dim=1)
            if hit or float(away.min()) < least:
                at = int(away.argmin())
                best, least, output = int(order[done + at]), float(away.min()), outputs[at]
            if hit:
                break
            done = tries
            again = _ordered(alone, goal - bias - (output - alone[best]))
            order = torch.cat([order[:done], again[~torch.isin(again, order[:done])]])
        followed.settle(table[best])
        added, unknown = added + goal - alone[best], unknown + goal - output
        found.append(best)
    head.forget()
    return np.asarray(found, dtype=np.int64)


def _ordered(alone: Tensor, wanted: Tensor) -> Tensor:
    """The units by how near what they give alone is to what is wanted, the nearest first."""
    return (alone - wanted).square().sum(dim=1).argsort()


class _Followed:
    """A head that has read the same units, and is asked what each of many would give next.

    What was read is remembered by the cache that serves writing. Rows that were asked about cannot
    be taken back; if the next unit is one of the last ones asked about, its row goes on, else the
    beginning is read anew.
    """

    def __init__(self, head: Stage, before: Tensor) -> None:
        self._head = head
        self._read = before
        self._row: int | None = None  # remembered row that holds just what was read
        self._asked = before[:0]

    def by(self, units: Tensor) -> Tensor:
        """Return the head's output for each unit behind what was read: (units, d) both."""
        outputs = []
        for part in units.split(_BATCH):
            if not len(self._read):
                outputs.append(self._head.prefill(part[:, None], _rows(len(part), 1)))
            else:
                if self._row is None:
                    self._head.prefill(self._read[None], _rows(1, len(self._read)))
                    self._row = 0
                beams = np.full(len(part), self._row, dtype=np.int32)
                outputs.append(self._head.extend(part[:, None], beams))
            self._row, self._asked = None, part
        return torch.cat(outputs)[:, 0]

    def settle(self, unit: Tensor) -> None:
        """Take a unit, (d,), for read."""
        self._read = torch.cat([self._read, unit[None]])
        same = (self._asked == unit).all(dim=1).nonzero()
        self._row = int(same[0]) if len(same) else None


def _rows(count: int, length: int) -> Layout:
    return Layout(np.full(count, length, dtype=np.int32), "left")
