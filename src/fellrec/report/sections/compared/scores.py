"""How good every row is, against the reference and the ceiling, and which cells have no result."""

from __future__ import annotations

from fellrec.comparison.rows import Row
from fellrec.comparison.writing import seeds_text
from fellrec.report import words
from fellrec.report.blocks import Block, Figure, Table, Text, ranged
from fellrec.report.charts import Row as Bar
from fellrec.report.charts import Words, interval_legend
from fellrec.report.sections.compared.picture import picture
from fellrec.report.sections.compared.view import View, known, mark, plain, share, signed


def blocks(view: View) -> list[Block]:
    """Show the table, both pictures, and what is missing."""
    found: list[Block] = []
    if view.scored:
        found.append(_table(view))
    else:
        found.append(Text(["No cell has a result yet."]))
    failures = [
        [row.label, str(seed), reason] for row in view.rows for seed, reason in row.failures
    ]
    if failures:
        columns = ["strategy", "seed", "reason"]
        found.append(Table("Cells that failed", columns, failures, words=(2,)))
    absent = [f"{row.label} ({seeds_text(row.missing)})" for row in view.rows if row.missing]
    if absent:
        found.append(Text([f"Not run yet: {', '.join(absent)}."]))
    if view.scored:
        found.append(_scores(view))
    differences = _differences(view)
    if differences is not None:
        found.append(differences)
    if len(view.seeds) > 1:
        found.append(_by_seed(view))
    return found


def _shown(view: View) -> list[str]:
    """Return the metrics of the table: recall first, each as a file names it."""
    recall = f"recall@{view.file.shown}"
    return list(dict.fromkeys([recall, view.name]))


def _table(view: View) -> Table:
    file, metrics = view.file, _shown(view)
    ceiling = view.table.row(file.ceiling) is not None
    columns = ["strategy", "seeds", *map(words.metric, metrics)]
    if file.reference:
        columns += [f"{words.metric(name)} over {file.reference}" for name in metrics]
    if ceiling:
        columns.append(f"of {file.ceiling}'s {view.metric}")
    rows = []
    for row in view.rows:
        cells = [row.label, _seeds(view, row)]
        cells += [plain(row.overall.get(name)) for name in metrics]
        if file.reference:
            own = row.label == file.reference and bool(row.cells)
            cells += [
                "reference" if own else signed(row.over_reference.get(name)) for name in metrics
            ]
        if ceiling:
            cells.append("ceiling" if row.label == file.ceiling else share(row.of_ceiling))
        rows.append(cells)
    caption = (
        "Test scores, best first, below each its 95 % interval; a difference in bold is clear: it "
        "leaves out 0, has the same sign in all seeds, and holds when its column is judged "
        "together; a share in bold leaves out 100%"
    )
    return Table(caption, columns, rows)


def _seeds(view: View, row: Row) -> str:
    """Write how many seeds are done, and why not all."""
    notes = [f"{len(row.failures)} failed"] if row.failures else []
    notes += [f"{len(row.missing)} not run"] if row.missing else []
    notes += ["earlier code"] if row.old else []
    notes += ["earlier code, vouched for"] if row.shown_by else []
    return ranged(f"{len(row.cells)} of {len(view.file.seeds)}", ", ".join(notes))


def _scores(view: View) -> Figure:
    file = view.file
    reference, ceiling = view.score(file.reference), view.score(file.ceiling)
    best, last = view.scored[0], view.scored[-1]
    ends = [f"{row.label} with {words.score(view.score(row.label))}" for row in (best, last)]
    point = f"From {ends[0]} down to {ends[1]}." if best is not last else f"{ends[0]}."
    rows = [
        Bar(
            row.label,
            words.score(view.score(row.label)),
            mark(row.overall[view.name]),
            strong=row.label == file.reference,
        )
        for row in view.scored
    ]
    numbers = [
        [row.label, bar.note, words.between(row.overall[view.name].interval)]
        for row, bar in zip(view.scored, rows, strict=True)
    ]
    title = f"Test {view.metric}"
    columns = ["strategy", view.metric, "95 % interval"]
    return picture(
        Words(f"{view.prefix}scores", title, point),
        rows,
        Table(f"{title}, in numbers", columns, numbers, folded=True),
        lead=f"{point} Bars are 95 % intervals over users, of each row alone; a difference between "
        "two rows is surer than their bars say, since both are of the same users.",
        legend=interval_legend(
            [view.metric],
            reference=file.reference if reference is not None else "",
            second=file.ceiling if ceiling is not None else "",
        ),
        reference=reference,
        second=ceiling,
    )


def _differences(view: View) -> Figure | None:
    found = [
        (row, value)
        for row in view.scored
        if (value := row.over_reference.get(view.name)) is not None and known(value)
    ]
    if not found:
        return None
    found.sort(key=lambda pair: -pair[1].interval.mean)
    clear = sum(value.clear for _, value in found)
    reference = view.file.reference
    point = (
        f"{clear} of {words.several(len(found), 'difference')} to {reference} "
        f"{'is' if clear == 1 else 'are'} clear."
    )
    rows, numbers = [], []
    for row, value in found:
        mean, low, high = (f"{number:+.4f}" for number in value.interval)
        rows.append(Bar(row.label, mean, mark(value, int(not value.clear)), strong=value.clear))
        numbers.append([row.label, mean, f"{low} to {high}", "yes" if value.clear else "no"])
    title = f"{view.metric} over {reference}"
    columns = ["strategy", "difference", "95 % interval", "clear"]
    return picture(
        Words(f"{view.prefix}differences", title, point),
        rows,
        Table(f"{title}, in numbers", columns, numbers, folded=True),
        lead=f"{point} A difference is clear where its 95 % interval leaves out 0, all seeds "
        "agree, and it holds when all are judged together: many rows make many chances.",
        legend=interval_legend(["clear", "not clear"], reference=reference),
        reference=0.0,
    )


def _by_seed(view: View) -> Table:
    """Give the values of single seeds, which an interval over users says nothing of."""
    rows = []
    for row in view.scored:
        seeds = [cell.origin["seed"] for cell in row.cells]
        values = dict(zip(sorted(seeds), row.overall[view.name].seeds, strict=True))
        rows.append([row.label, *(words.score(values.get(seed)) for seed in view.seeds)])
    columns = ["strategy", *(f"seed {seed}" for seed in view.seeds)]
    return Table(f"Test {view.metric} of each seed", columns, rows, folded=True)
