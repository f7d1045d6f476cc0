"""A map to the public head: found without a history where little was turned, else with some."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fellrec.audit.alignment import Alignment, Lookup, Usual, Whitening
from fellrec.audit.wiretap import Items

UNITS, WIDTH, COUNT = 60, 16, 300


def crossed(usual: Usual, matrix: torch.Tensor, seed: int = 0) -> list[tuple[torch.Tensor, Items]]:
    """Histories of ten units each, a little blurred, through a head that does `matrix` besides."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(COUNT // 10):
        place = torch.randint(UNITS, (10,), generator=generator)
        blur = 0.1 * torch.randn(10, WIDTH, generator=generator)
        found.append(((usual.table[place] + blur) @ matrix, usual.units[place.numpy()]))
    return found


@pytest.fixture
def usual() -> Usual:
    table = torch.randn(UNITS, WIDTH, generator=torch.Generator().manual_seed(1))
    return Usual(np.arange(100, 100 + UNITS), table)


def aligned(
    pairs: list[tuple[torch.Tensor, Items]],
    usual: Usual,
    known: list[tuple[torch.Tensor, Items]] | None = None,
) -> Alignment:
    """A map fitted to all of what crossed."""
    rows = torch.cat([rows for rows, _ in pairs])
    return Alignment.of(rows, Whitening.of(rows), usual, known or ())


def hit(fit: Alignment | Lookup, pairs: list[tuple[torch.Tensor, Items]]) -> float:
    return float(np.mean([(fit.read(rows) == units).mean() for rows, units in pairs]))


def test_a_step_in_few_directions_is_undone_without_a_history(usual: Usual) -> None:
    generator = torch.Generator().manual_seed(2)
    first, second = torch.randn(2, WIDTH, 2, generator=generator)
    pairs = crossed(usual, torch.eye(WIDTH) + first @ second.T)
    assert hit(aligned(pairs, usual), pairs) > 0.95


def test_whitened_rows_vary_alike_in_all_directions() -> None:
    generator = torch.Generator().manual_seed(5)
    rows = torch.randn(COUNT, WIDTH, generator=generator) @ torch.diag(torch.linspace(1, 5, WIDTH))
    white = Whitening.of(rows + 3).over(rows + 3)
    assert torch.allclose(white.mean(dim=0), torch.zeros(WIDTH), atol=1e-4)
    assert torch.allclose(torch.cov(white.T), torch.eye(WIDTH), atol=1e-4)


def test_any_linear_head_is_undone_with_some_histories(usual: Usual) -> None:
    matrix = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(3))
    pairs = crossed(usual, matrix)
    assert hit(aligned(pairs, usual), pairs) < 0.5
    assert hit(aligned(pairs, usual, pairs[:10]), pairs[10:]) > 0.95


def test_units_that_are_not_usual_are_no_use(usual: Usual) -> None:
    pairs = crossed(usual, torch.eye(WIDTH))
    rows = [rows for rows, _ in pairs]
    foreign = [(rows[0], np.full(10, 7)), (rows[1], np.full(10, 1000))]
    plain, with_them = (aligned(pairs, usual, known) for known in ([], foreign))
    assert torch.equal(plain.matrix, with_them.matrix)
    assert hit(plain, pairs) == 1


def test_what_is_known_is_looked_up_where_no_map_would_do(usual: Usual) -> None:
    """A head whose output is no linear function of the public one's, but the same for a unit."""
    scrambled = Usual(usual.units, usual.table[torch.arange(UNITS).flip(0)] ** 3)
    pairs = crossed(scrambled, torch.eye(WIDTH))
    rows = [rows for rows, _ in pairs]
    fitted = aligned(pairs, usual, pairs[:15])
    found = Lookup.of(Whitening.of(torch.cat(rows)), pairs[:15])
    there = np.unique(np.concatenate([units for _, units in pairs[:15]]))
    right = [
        guess == unit
        for each, units in pairs[15:]
        for guess, unit in zip(found.read(each), units, strict=True)
        if unit in there
    ]
    assert np.mean(right) > 0.95 > 0.5 > hit(fitted, pairs[15:])
    assert set(np.concatenate([found.read(each) for each in rows])) <= set(there.tolist())
