"""What can stand in one table: cells of the same data, split and scored users."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fellrec.comparison.outcomes import Outcome
from fellrec.errors import RunError
from fellrec.results.cells import Cell
from fellrec.results.pairing import check_same_data


def alike(group: Sequence[Outcome]) -> list[Outcome]:
    """Return the outcomes of one table, those of peers with the scores of the runs' users alone.

    Raises RunError when cells are of different data or splits, when runs of one seed scored
    different users, or a peer lacks one of them.
    """
    _refuse_unlike(group)
    runs = {o.planned.seed: o.cell for o in group if o.cell is not None and not o.planned.peer}
    found = []
    for each in group:
        cell, run = each.cell, runs.get(each.planned.seed)
        if cell is None or run is None or not each.planned.peer:
            found.append(each)
            continue
        if not np.isin(run.rows, cell.rows).all():
            raise RunError(
                f"{run.name} and {cell.name} can't be compared: they scored different users"
            )
        here = np.isin(cell.rows, run.rows)
        scores = {metric: values[here] for metric, values in cell.scores.items()}
        found.append(replace(each, cell=replace(cell, rows=cell.rows[here], scores=scores)))
    return found


def _refuse_unlike(group: Sequence[Outcome]) -> None:
    data: dict[int | None, Cell] = {}
    scored: dict[int, Cell] = {}
    for planned, cell in ((o.planned, o.cell) for o in group if o.cell is not None):
        # Seeds share their users, unless each draws some of them.
        drawn = planned.config.data.max_users > 0
        check_same_data(data.setdefault(planned.seed if drawn else None, cell), cell)
        if planned.peer is None:
            one = scored.setdefault(planned.seed, cell)
            if not np.array_equal(one.rows, cell.rows):
                raise RunError(
                    f"{one.name} and {cell.name} can't be compared: they scored different users"
                )
