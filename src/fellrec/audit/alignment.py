"""Reading activations of a head that nobody was shown, by what it has in common with a public one.

A private head that starts elsewhere gives other activations, but the same for the same unit, and as
often. The server has the activations of all users that were ever scored, and those of the public
head for histories that it makes up. It looks for a linear map that turns the first into the second:
both are whitened, each unit is paired with the positions that are most like its usual activation
and like no other's, the map is fitted to these pairs by ridge regression, and with that map pairs
are looked for again. That is how dictionaries are found between languages without a word known
(Conneau et al. 2018, arXiv 1710.04087, whose hubness-corrected likeness is used; here the map need
not be a rotation).

`aligned` knows no history. `acquainted` knows those of a few users, as a server does that has made
accounts of its own: it begins with pairs that are right. `lookup` knows them too and asks for no
public head: a position is what that known position was which is most like it. It finds nothing that
no known history holds, and needs no map where none is linear.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fellrec.audit.readers.reader import Reader
from fellrec.audit.recovery import Content
from fellrec.audit.wiretap import Items
from fellrec.data.interactions import Ragged

_ROWS = 4096  # positions that a map is fitted to
_ROUNDS = 12
_NEAREST = 10  # neighbours by which a place's hubness is told
_PAIRS = 8  # positions that a unit may be paired with
_RIDGE = 0.1  # over the mean of the sources' squares
_FLOOR = 1e-2  # variances below this share of their mean count as that much


@dataclass(frozen=True)
class Whitening:
    """What makes the directions of rows, (…, d), vary alike.

    centre: (d,), taken off first. matrix: (d, d), symmetric, then multiplied by.
    """

    centre: Tensor
    matrix: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, rows: Tensor) -> Self:
        """Fit it to rows, (n, d)."""
        values, vectors = torch.linalg.eigh(torch.cov(rows.T))
        scale = values.clamp(min=_FLOOR * values.mean()).rsqrt()
        return cls(rows.mean(dim=0), (vectors * scale) @ vectors.T)

    def over(self, rows: Tensor) -> Tensor:
        """Whiten rows: (n, d) both."""
        return (rows - self.centre) @ self.matrix


@dataclass(frozen=True)
class Usual:
    """What the public head gives for units, whitened.

    units: (n,) int64, sorted, those that made-up histories held. table: (n, d) the mean activation
    of each.
    """

    units: Items
    table: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, reader: Reader, histories: Ragged) -> Self:
        """Let the head that is installed, the public one, read made-up histories."""
        rows = torch.cat(reader.activations(histories))
        units, place = np.unique(np.concatenate(reader.inputs(histories)), return_inverse=True)
        at = torch.from_numpy(place)
        counts = torch.bincount(at, minlength=len(units))[:, None]
        sums = torch.zeros(len(units), rows.shape[1]).index_add_(0, at, rows)
        return cls(units, Whitening.of(rows).over(sums / counts))


@dataclass(frozen=True)
class Alignment:
    """A map from what crossed to what is usual.

    matrix: (d, d), of what has been whitened. hubness: (units,), of the usual activations.
    """

    usual: Usual
    whitening: Whitening
    matrix: Tensor
    hubness: Tensor

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        seen: Tensor,
        whitening: Whitening,
        usual: Usual,
        known: Sequence[tuple[Tensor, Items]] = (),
    ) -> Self:
        """Fit a map to positions that were seen, (n, d).

        known: of users whose histories the server has, what it saw and the unit of each position.
        """
        rows = seen[torch.linspace(0, len(seen) - 1, min(_ROWS, len(seen))).long()]
        own, table = whitening.over(rows), usual.table
        sure = [(whitening.over(each), units) for each, units in known]
        sources, targets = cls._known(sure, usual, own.shape[1])
        fitted = _fit(sources, targets) if len(sources) else torch.eye(own.shape[1])
        for _ in range(_ROUNDS):
            likeness = _likeness(own @ fitted, table)
            near = likeness.topk(min(_PAIRS, len(own)), dim=0).indices
            units = torch.arange(len(table)).expand_as(near)
            mutual = likeness.argmax(dim=1)[near] == units
            fitted = _fit(
                torch.cat([own[near[mutual]], sources]), torch.cat([table[units[mutual]], targets])
            )
        hubness = _nearest(_cosines(own @ fitted, table), dim=0)
        return cls(usual, whitening, fitted, hubness)

    @staticmethod
    def _known(
        sure: Sequence[tuple[Tensor, Items]], usual: Usual, width: int
    ) -> tuple[Tensor, Tensor]:
        """Pairs of known positions and what is usual of their units, where that is known."""
        sources, targets = [torch.zeros(0, width)], [torch.zeros(0, width)]
        for rows, units in sure:
            place = np.searchsorted(usual.units, units).clip(max=len(usual.units) - 1)
            there = torch.from_numpy(usual.units[place] == units)
            sources.append(rows[there])
            targets.append(usual.table[torch.from_numpy(place)[there]])
        return torch.cat(sources), torch.cat(targets)

    @torch.no_grad()
    def read(self, seen: Tensor) -> Items:
        """Guess the unit of each position, (length,) int64. seen: (length, d)."""
        cosines = _cosines(self.whitening.over(seen) @ self.matrix, self.usual.table)
        found: Items = self.usual.units[(2 * cosines - self.hubness).argmax(dim=1).numpy()]
        return found


@dataclass(frozen=True)
class Lookup:
    """Positions whose units a server knows, to compare others with.

    rows: (n, d) what was seen of known positions, whitened; units: (n,) int64, what they were.
    """

    whitening: Whitening
    rows: Tensor
    units: Items

    @classmethod
    @torch.no_grad()
    def of(cls, whitening: Whitening, known: Sequence[tuple[Tensor, Items]]) -> Self:
        """Keep what was seen of users whose histories are known; see `Alignment.of`."""
        rows = whitening.over(torch.cat([rows for rows, _ in known]))
        return cls(whitening, rows, np.concatenate([units for _, units in known]))

    @torch.no_grad()
    def read(self, seen: Tensor) -> Items:
        """Guess the unit of each position, (length,) int64. seen: (length, d)."""
        likeness = _cosines(self.whitening.over(seen), self.rows)
        found: Items = self.units[likeness.argmax(dim=1).numpy()]
        return found


def read_by_fit(
    reader: Reader,
    usual: Usual,
    seen: Sequence[Tensor],
    others: Sequence[Tensor],
    acquainted: Sequence[Items],
) -> dict[str, list[Content]]:
    """Guess histories by `aligned`, `acquainted` and `lookup`; without known ones all are one.

    seen: (length, d) each, what crossed of them. others: of other users of the client; acquainted:
    the units of each position of the first of these, which the server has.
    """
    every, known = torch.cat([*seen, *others]), list(zip(others, acquainted, strict=False))
    whitening = Whitening.of(every)
    aligned = Alignment.of(every, whitening, usual)
    fits: dict[str, Alignment | Lookup] = {
        "aligned": aligned,
        "acquainted": Alignment.of(every, whitening, usual, known) if known else aligned,
        "lookup": Lookup.of(whitening, known) if known else aligned,
    }
    return {name: [reader.content(fit.read(each)) for each in seen] for name, fit in fits.items()}


def _fit(sources: Tensor, targets: Tensor) -> Tensor:
    """Return the matrix of ridge regression, (d, d)."""
    gram = sources.T @ sources
    ridge = _RIDGE * gram.diagonal().mean() + torch.finfo(gram.dtype).tiny
    found: Tensor = torch.linalg.solve(gram + ridge * torch.eye(len(gram)), sources.T @ targets)
    return found


def _likeness(rows: Tensor, table: Tensor) -> Tensor:
    """Return cosines, less what each side has in common with its nearest: (rows, units)."""
    cosines = _cosines(rows, table)
    return 2 * cosines - _nearest(cosines, dim=1)[:, None] - _nearest(cosines, dim=0)


def _cosines(rows: Tensor, table: Tensor) -> Tensor:
    return F.normalize(rows, dim=1) @ F.normalize(table, dim=1).T


def _nearest(cosines: Tensor, dim: int) -> Tensor:
    """The mean of the largest along a dimension."""
    return cosines.topk(min(_NEAREST, cosines.shape[dim]), dim=dim).values.mean(dim=dim)
