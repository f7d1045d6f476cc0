"""What a table comes to, in words made from its figures: only what is clear is called so."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

from fellrec.comparison.rows import Compared, Row
from fellrec.comparison.states import ALL, computed_on
from fellrec.comparison.statistics import Estimate
from fellrec.report import words
from fellrec.report.blocks import Tile, Tiles
from fellrec.report.sections.compared.view import View, known, listed, side_of_one


def kicker(compared: Compared) -> str:
    """Say what was compared on what, and how much of it there is."""
    rows = [row for table in compared.tables for row in table.rows]
    cells = [cell for row in rows for cell in row.cells]
    kinds = dict.fromkeys(cell.config.model.recommender for cell in cells if cell.config)
    first = next((table for table in compared.tables if table.data), None)
    seeds = compared.file.seeds
    parts = []
    if first is not None:
        on = f"on {first.data['dataset']}"
        parts += [f"{', '.join(kinds)} {on}" if kinds else on, first.split, first.users]
    parts.append(f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}")
    planned = len(rows) * len(seeds)
    parts.append(f"{len(cells)} of {words.several(planned, 'cell')}")
    return " · ".join(parts)


def lead(view: View) -> list[str]:
    """Say who is above and below the reference, how far from the ceiling, and for which clients."""
    if not view.scored:
        return ["No cell has a result yet, so there is nothing to compare.", *_gaps(view.rows)]
    paragraphs = [
        [_scores(view), _ceiling(view)],
        [_clients(view), _gap(view)],
        [_seeds(view), *_gaps(view.rows)],
    ]
    joined = [" ".join(part for part in parts if part) for parts in paragraphs]
    return [paragraph for paragraph in joined if paragraph]


def over_axes(views: Sequence[View]) -> list[str]:
    """Say in how many of several tables a row is clearly above or below the reference."""
    reference = views[0].file.reference
    total = len(views)
    said = [f"{words.several(total, 'table')}, one for each setting of the axes."]
    found = []
    for way, sign in (("above", 1), ("below", -1)):
        counts: dict[str, int] = {}
        for view in views:
            for row in _sure(view, partial(_difference, view), sign):
                counts[row.label] = counts.get(row.label, 0) + 1
        ranked = sorted(counts.items(), key=lambda pair: -pair[1])
        if ranked:
            names = listed([f"{label} ({number} of {total})" for label, number in ranked])
            found.append(f"Clearly {way} {reference} in some of them: {names}.")
    if reference and not found:
        found.append(f"In none of them can a row be told apart from {reference}.")
    return [" ".join([*said, *found]), *_gaps([row for view in views for row in view.rows])]


def tiles(view: View) -> Tiles:
    """Return the figures to remember."""
    file, found = view.file, list[Tile]()
    best = next((row for row in view.scored if row.label != file.ceiling), None)
    shown = [
        ("Best besides the ceiling" if view.table.row(file.ceiling) else "Best", best),
        ("Reference", view.table.row(file.reference)),
        ("Ceiling", view.table.row(file.ceiling)),
        ("Alone", view.table.row(file.floor)),
    ]
    for label, row in shown:
        value = None if row is None else row.overall.get(view.name)
        if row is not None and value is not None:
            note = f"{row.label}, {words.between(value.interval)}"
            found.append(
                Tile(f"{view.metric}: {label.lower()}", words.score(value.interval.mean), note)
            )
    return Tiles(found)


def _scores(view: View) -> str:
    reference, row = view.file.reference, view.table.row(view.file.reference)
    if not reference:
        return "No row is named as the reference, so rows stand side by side without differences."
    if row is None:
        return f"The reference, {reference}, has no result yet, so nothing can be read against it."
    interval = row.overall[view.name].interval
    said = (
        f"{reference}, the reference, reaches {view.metric} of {words.score(interval.mean)} "
        f"(95 % interval {words.between(interval)})."
    )
    others = [each for each in view.scored if view.name in each.over_reference]
    if not others:
        return f"{said} No other row has a result of the same seed."
    clear = 0
    for way, sign in (("above", 1), ("below", -1)):
        sure = _sure(view, partial(_difference, view), sign)
        clear += len(sure)
        if sure:
            sure.sort(key=lambda each: -sign * each.over_reference[view.name].interval.mean)
            named = [
                f"{each.label} ({each.over_reference[view.name].interval.mean:+.4f})"
                for each in sure
            ]
            said += f" Clearly {way} it: {listed(named)}."
    if not clear:
        many = f"none of the {len(others)} other rows" if len(others) > 1 else others[0].label
        verb = "can" if len(others) > 1 else "can't"
        return f"{said} {many[0].upper() + many[1:]} {verb} be told apart from it."
    rest = len(others) - clear
    if rest:
        verb = "one can't" if rest == 1 else f"{rest} can't"
        said += f" The other {verb} be told apart from it."
    return said


def _ceiling(view: View) -> str:
    """Say how far the reference and the best trained row are from all data in one place."""
    file = view.file
    if view.table.row(file.ceiling) is None:
        return ""
    trained = [row for row in view.scored if not row.peer and row.label != file.ceiling]
    chosen = trained[:1]
    reference = view.table.row(file.reference)
    if reference is not None and reference not in chosen and reference.label != file.ceiling:
        chosen.append(reference)
    parts = []
    for row in chosen:
        value = row.of_ceiling
        if value is None or not known(value):
            continue
        mean, low, high = value.interval
        side = side_of_one(value)
        verdict = {
            -1: "clearly below it",
            1: "clearly above it",
            0: "not to be told apart from it",
        }[side]
        parts.append(
            f"{row.label} reaches {mean:.0%} of {file.ceiling}'s score ({low:.0%} to {high:.0%}, "
            f"{verdict})."
        )
    return " ".join(parts)


def _clients(view: View) -> str:
    """Say whether every client, and the worst, gains over learning alone."""
    floor = view.file.floor
    judged = [row for row in view.scored if known(row.over_floor)]
    if not judged:
        return ""
    said = []
    every = _sure(view, lambda row: row.over_floor, 1)
    if every:
        said.append(f"Every client gains clearly over {floor} with {_labels(every)}.")
    worst = _sure(view, lambda row: row.worst_over_floor, 1)
    if worst:
        said.append(f"The worst client's score is clearly above {floor}'s with {_labels(worst)}.")
    lost = _sure(view, lambda row: row.over_floor, -1)
    if lost:
        said.append(f"At least one client is clearly worse off than alone with {_labels(lost)}.")
    if not said:
        said.append(f"With no row can a gain or a loss of the worst client over {floor} be told.")
    return " ".join(said)


def _gap(view: View) -> str:
    """Say whether the gap between clients is narrower than the reference's, and than chance."""
    reference = view.table.row(view.file.reference)
    if reference is None or not known(reference.gap) or reference.gap is None:
        return ""
    gap, chance = reference.gap.interval.mean, reference.gap_by_chance
    said = f"Between its best and its worst client {reference.label} leaves a gap of {gap:.0%}"
    if chance is not None:
        said += f"; clients served alike would show {chance:.0%} by sampling alone"
    said += "."
    judged = [row for row in view.scored if known(row.gap_of_reference)]
    for way, side in (("narrower", -1), ("wider", 1)):
        sure = [row for row in judged if side_of_one(row.gap_of_reference) == side]
        if sure:
            said += f" It is clearly {way} with {_labels(sure)}."
    if judged and not any(side_of_one(row.gap_of_reference) for row in judged):
        said += " With no other row is it clearly narrower or wider."
    return said


def _seeds(view: View) -> str:
    count = len(view.seeds)
    if count == 1:
        return "One seed: what another seed would change is not known."
    return f"{count} seeds: what is called clear has the same sign in each of them."


def _gaps(rows: Sequence[Row]) -> list[str]:
    """Say how many cells have no result, and how many rows other code has made."""
    failed = [row.label for row in rows for _ in row.failures]
    missing = sum(len(row.missing) for row in rows)
    old = list(dict.fromkeys(row.label for row in rows if row.old))
    said = []
    if failed:
        names = listed(list(dict.fromkeys(failed)))
        verb = "has" if len(failed) == 1 else "have"
        said.append(f"{words.several(len(failed), 'cell')} failed ({names}) and {verb} no figure.")
    if missing:
        verb = "has" if missing == 1 else "have"
        said.append(f"{words.several(missing, 'cell')} {verb} not been run yet.")
    if old:
        said.append(f"Made by an earlier state of the code: {listed(old)}.")
    matched = dict.fromkeys(row.label for row in rows if row.shown_by)
    if matched:
        cells = sorted({cell for row in rows for cell in row.shown_by})
        said.append(
            f"{words.several(len(matched), 'row')} by earlier code: today's gives the same, as "
            f"{listed(cells)} showed, made anew."
        )
    for device, labels in computed_on(rows):
        said.append(f"Computed on {device}: {listed(labels) if labels else ALL}.")
    return [" ".join(said)] if said else []


def _difference(view: View, row: Row) -> Estimate | None:
    return row.over_reference.get(view.name)


def _sure(view: View, of: Callable[[Row], Estimate | None], sign: int) -> list[Row]:
    """Return the rows whose figure is clear and of this sign."""
    found = []
    for row in view.scored:
        value = of(row)
        if value is not None and known(value) and value.clear and value.interval.mean * sign > 0:
            found.append(row)
    return found


def _labels(rows: Iterable[Row]) -> str:
    return listed([row.label for row in rows])
