"""By which states of the code, and on which devices, the cells of a table were made.

Said as far as a reader has to know.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import product

from fellrec.comparison.rows import Row, Table
from fellrec.results.vouched import Vouched

Names = tuple[str, ...]
CPU = "cpu"
ALL = "all but peers"


def vouched_for(rows: Sequence[Row]) -> list[tuple[Names, list[str]]]:
    """Return the labels of rows with cells of earlier code that today's is vouched to match.

    Those for which the same cells showed it are together, behind the names of these cells.
    """
    found: dict[Names, list[str]] = {}
    for row in rows:
        if row.shown_by and row.label not in found.setdefault(row.shown_by, []):
            found[row.shown_by].append(row.label)
    return list(found.items())


def unlike(table: Table, vouched: Vouched) -> list[str]:
    """Return lines in Markdown on runs that other code has made than most.

    A page is a function of what is in the folder of results: today's code plays no part.
    """
    rows = [row for row in table.rows if row.cells and not row.peer]
    if not rows:
        return []
    usual, _ = Counter(_codes(row) for row in rows).most_common(1)[0]
    found: dict[Names | None, list[str]] = {}
    for row in rows:
        if _codes(row) != usual:
            found.setdefault(_linked(row, usual, vouched), []).append(f"`{row.label}`")
    return [
        f"- made by another state of the code than the others{_how(cells)}: {', '.join(labels)}\n"
        for cells, labels in found.items()
    ]


def computed_on(rows: Sequence[Row]) -> list[tuple[str, list[str]]]:
    """Return accelerators on which runs computed, each with the labels of these rows.

    No labels stand for all rows but peers. What was made before this was noted was made on a CPU.
    """
    trained = [row for row in rows if row.cells and not row.peer]
    found: dict[Names, list[str]] = {}
    for row in trained:
        names = {str(cell.origin.get("device") or CPU) for cell in row.cells}
        if names != {CPU}:
            found.setdefault(tuple(sorted(names)), []).append(row.label)
    everywhere = {row.label for row in trained}
    return [
        (_devices(names), [] if {*labels} == everywhere else list(dict.fromkeys(labels)))
        for names, labels in found.items()
    ]


def _devices(names: Names) -> str:
    accelerators = ", ".join(name for name in names if name != CPU)
    return f"{accelerators} and, in part, a CPU" if CPU in names else accelerators


def _codes(row: Row) -> Names:
    """Return the digests of the code that made a row's cells."""
    return tuple(sorted({code for cell in row.cells for code in cell.origin["code"]}))


def _linked(row: Row, usual: Names, vouched: Vouched) -> Names | None:
    """Return which cells showed that a row's code and the usual one match; None if none did."""
    config = row.cells[0].config
    if config is None:
        return None
    shown: set[str] = set()
    for code, other in product(_codes(row), usual):
        found = vouched.link(config.model.recommender, code, other)
        if found is None:
            return None
        shown.update(found)
    return tuple(sorted(shown))


def _how(cells: Names | None) -> str:
    if not cells:
        return ""
    return f", which gives the same, as {', '.join(f'`{name}`' for name in cells)} showed"
