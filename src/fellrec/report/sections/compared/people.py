"""Real users, and what every main row recommends to them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fellrec.comparison.rows import Row
from fellrec.errors import FellrecError
from fellrec.report.blocks import Block, Case, Cases, Entry, Offer, Text
from fellrec.report.sections.compared.view import View, listed
from fellrec.results.cells import Cell

if TYPE_CHECKING:
    from fellrec.serving.samples import Sample

MOST_USERS = 6
MOST_ROWS = 6


def blocks(view: View, runs: Path | None, per_client: int) -> list[Block]:
    """Serve a few users of the first seed by every main row whose run's folder is still there.

    Each row costs the seconds in which its data and weights are loaded.
    """
    # What serves a run brings torch and its models, which a page without examples does not need.
    from fellrec.serving.run import load_run
    from fellrec.serving.samples import draw, sample

    if runs is None:
        return [Text(["No folder of runs was given, so nobody can be served."])]
    cells = [(row.label, view.cell(row)) for row in _main(view)]
    found = {label: None if cell is None else _folder(runs, cell) for label, cell in cells}
    folders = {label: path for label, path in found.items() if path is not None}
    if not folders:
        name = runs.resolve().name
        said = f"No run of a row is left in {name}, so nobody can be served from here."
        return [Text([said])]
    users: list[int] = []
    served: dict[str, list[Sample]] = {}
    refused: dict[str, str] = {}

    try:
        lender = _divided(view, list(folders))
        first = load_run(folders[lender])
        clients = len(first.names)
        users = draw(first, min(per_client * clients, MOST_USERS))
        served[lender] = [sample(first, user) for user in users]
    except FellrecError as error:
        return [Text([f"Nobody can be served: {error}."])]
    for label in folders:
        if label not in served:
            try:
                run = load_run(folders[label])
                served[label] = [sample(run, user) for user in users]
            except FellrecError as error:
                refused[label] = str(error)
    if not users:
        return [Text(["No user has a history and a held-out item."])]
    shown = [label for label in folders if label in served]
    return [
        Text(_lead(view, shown, refused, len(users), clients)),
        Cases([_case(view, served, shown, lender, n) for n in range(len(users))]),
    ]


def _folder(runs: Path, cell: Cell) -> Path | None:
    """Return the finished run of a cell: of its name, or of its key under another row's label."""
    key = cell.name.rpartition("-")[2]
    paths = [runs / cell.name, *sorted(runs.glob(f"*-{key}"))]
    return next((path for path in paths if (path / "summary.json").is_file()), None)


def _main(view: View) -> list[Row]:
    """Return floor, reference, ceiling and the best others, at most `MOST_ROWS`, best first."""
    runs = [row for row in view.scored if not row.peer]
    file = view.file
    named = [row for row in runs if row.label in (file.floor, file.reference, file.ceiling)]
    others = [row for row in runs if row not in named]
    chosen = {row.label for row in [*named, *others][:MOST_ROWS]}
    return [row for row in runs if row.label in chosen]


def _divided(view: View, labels: Sequence[str]) -> str:
    """Return the row by whose clients users are drawn: the reference, or the first with clients."""
    several = [
        label
        for label in labels
        if (row := view.table.row(label)) is not None
        and (cell := view.cell(row)) is not None
        and len(cell.summary["clients"]) > 1
    ]
    for label in (view.file.reference, *several, *labels):
        if label in labels and (not several or label in several):
            return label
    raise AssertionError("there is a row")


def _lead(
    view: View, shown: Sequence[str], refused: dict[str, str], users: int, clients: int
) -> list[str]:
    hidden = len(view.scored) - len(shown)
    said = (
        f"{users} users of {clients} clients, drawn by the first seed, served by each row's own "
        "model of their client, from the history that the test scores start from."
    )
    if hidden:
        said += f" {listed(shown)} of {len(view.scored)} rows are shown."
    said += " These are histories of users: keep the page where their data may be."
    return [said, *(f"{label} can't be served: {why}." for label, why in refused.items())]


def _case(
    view: View, served: dict[str, list[Sample]], shown: Sequence[str], lender: str, number: int
) -> Case:
    first = served[lender][number]
    offers = []
    for label in shown:
        each = served[label][number]
        entries = [
            Entry(one.title, "taken next" if each.hit(one) else "") for one in each.recommended
        ]
        ranks = ", ".join(
            f"{held.rank:,}" if held.rank else "none, it is in the history already"
            for held in each.held_out
        )
        offers.append(Offer(label, entries, f"taken next: rank {ranks}"))
    after = [held.title for held in first.held_out]
    return Case(first.user, first.client, first.history, after, offers)
