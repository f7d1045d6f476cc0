"""Show that today's code gives what earlier code gave: make kept cells anew, and compare.

A cell is current while the code that its scores depend on is what it was. Code that was only
rearranged has another digest and gives the same. Whether it does is not argued but shown, on cells
that earlier code made: an ordinary run of the cell's recipe, kept as a cell is, then every figure
bit for bit, without times and memory. If all are equal, `same.json` says so (`vouched.py`).

It shows nothing of code that these cells do not run: name cells of several kinds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fellrec.config import RunConfig
from fellrec.errors import RunError
from fellrec.federation.observer import Observer
from fellrec.federation.origin import code_digest
from fellrec.federation.runs import train
from fellrec.results.cells import COMPARED, ROUNDS, SCORES, SUMMARY, Cell, read
from fellrec.results.keeping import keep_alone
from fellrec.results.vouched import entry_of, write_down

_RUNS = "vouching"
_NOT_COMPARED = ("seconds", "rss")  # parts of the names of figures that no seed decides


@dataclass(frozen=True, eq=False)
class Claim:
    """That a code, today's, gives what a cell's code gave.

    path: the cell's folder. config: its recipe. code, gave: digests of today's code and of the
    cell's.
    """

    path: Path
    cell: Cell
    config: RunConfig
    code: str
    gave: str

    def run(self, runs: Path) -> Path:
        """Return the folder of its run below that of runs: today's code has one of its own."""
        return runs / _RUNS / f"{self.cell.name}-{self.code}"


@dataclass(frozen=True)
class Difference:
    """The first figure that is not what it was. where: its place in a cell's file."""

    file: str
    where: str
    kept: object
    anew: object


def claims(names: Sequence[str], results: Path) -> list[Claim]:
    """Return what the cells of these names are to show; a name, or the path of its folder.

    Raises RunError for a cell that is not there, was changed, or can show nothing: a baseline or
    peer, whose scores are no run's, or one that today's code made, or several states of it.
    """
    return [_claim(_find(name, results)) for name in dict.fromkeys(names)]


def _find(name: str, results: Path) -> Path:
    places = (results / COMPARED / name, results / name, Path(name))
    found = next((place for place in places if place.is_dir()), None)
    if found is None or found.resolve().parent not in _homes(results):
        raise RunError(f"{name}: no such cell in {results} or {results / COMPARED}")
    return found


def _homes(results: Path) -> tuple[Path, Path]:
    return results.resolve(), (results / COMPARED).resolve()


def _claim(path: Path) -> Claim:
    cell = read(path)
    if cell.config is None:
        raise RunError(f"{path}: is no run of a recipe; only runs can be vouched for")
    made_by, code = cell.origin["code"], code_digest(cell.config.model.recommender)
    if len(made_by) != 1:
        raise RunError(
            f"{path}: names {len(made_by)} states of the code that made it; take a cell of one"
        )
    if made_by == [code]:
        raise RunError(f"{path}: was made by today's code; take a cell that earlier code made")
    return Claim(path, cell, cell.config, code, made_by[0])


def show(claim: Claim, runs: Path, observer: Observer | None = None) -> None:
    """Make a claim's cell anew, and compare; a run that was interrupted goes on.

    The run stays, so that the next call needs not make it again.

    Raises RunError that names the first difference, or as `train` and `keep_alone`.
    """
    run, threads = claim.run(runs), torch.get_num_threads()
    if not (run / SUMMARY).is_file():
        try:
            begun = (run / "config.toml").is_file()
            train(claim.config, run, resume=begun, observer=observer)
        finally:
            torch.set_num_threads(threads)  # the next recipe may leave it open
    with TemporaryDirectory() as folder:
        anew = keep_alone(run, Path(folder), claim.cell.name, {})
    if anew.origin["code"] != [claim.code]:
        raise RunError(f"{run}: was made by other code; remove it and vouch again")
    found = first_difference(claim.cell, anew)
    if found is not None:
        raise RunError(
            f"{claim.path}: {found.file}, {found.where}: {found.kept!r:.60} was kept, today's code "
            f"gives {found.anew!r:.60}; nothing is vouched for, so make its cells anew"
        )


def vouch(shown: Iterable[Claim], results: Path) -> None:
    """Write down claims that were shown, all of them; see `vouched.write_down`."""
    by_code = sorted(shown, key=_codes)
    entries = [
        entry_of(*codes, {claim.cell.name for claim in group})
        for codes, group in groupby(by_code, key=_codes)
    ]
    write_down(results, entries)


def _codes(claim: Claim) -> tuple[str, str, str]:
    return claim.config.model.recommender, claim.code, claim.gave


def first_difference(kept: Cell, anew: Cell) -> Difference | None:
    """Return the first figure of a cell that is another when it is made anew; None if none is.

    Data, scores, rounds and summary, in this order. What only the new one has does not count: no
    table of the kept one shows it.
    """
    return next(_differences(kept, anew), None)


def _differences(kept: Cell, anew: Cell) -> Iterator[Difference]:
    for where, one, other in _unlike(kept.origin["data"], anew.origin["data"]):
        yield Difference("origin.json", f"data, {where}", one, other)
    yield from _unlike_scores(kept, anew)
    for where, one, other in _unlike(_by_name(kept), _by_name(anew)):
        yield Difference(ROUNDS, where, one, other)
    if len(kept.rounds) != len(anew.rounds):
        yield Difference(ROUNDS, "lines", len(kept.rounds), len(anew.rounds))
    for where, one, other in _unlike(kept.summary, anew.summary):
        yield Difference(SUMMARY, where, one, other)


def _unlike_scores(kept: Cell, anew: Cell) -> Iterator[Difference]:
    """Yield where users and their scores differ, the first of each kind; users are rows."""
    if not np.array_equal(kept.rows, anew.rows):
        yield Difference(SCORES, "users", len(kept.rows), len(anew.rows))
        return
    columns: dict[str, NDArray[Any]] = {**kept.scores}
    others: dict[str, NDArray[Any]] = {**anew.scores}
    if kept.clients is not None and anew.clients is not None:
        columns, others = {"client": kept.clients, **columns}, {"client": anew.clients, **others}
    for name, values in columns.items():
        if name not in others:
            yield Difference(SCORES, name, "a column", None)
        elif (unlike := np.flatnonzero(values != others[name])).size:
            first = unlike[0]
            where = f"user {kept.rows[first]}, {name}"
            yield Difference(SCORES, where, values[first].item(), others[name][first].item())


def _by_name(cell: Cell) -> dict[str, Mapping[str, Any]]:
    """Return the lines of the log by round and client; a failed one has two."""
    named: dict[str, Mapping[str, Any]] = {}
    for line in cell.rounds:
        failed = ", failed" if "failed" in line else ""
        named[f"round {line['round']}, client {line['client']}{failed}"] = line
    return named


def _unlike(kept: object, anew: object, where: str = "") -> Iterator[tuple[str, object, object]]:
    """Yield where two values that JSON can say differ, with both; None where one is not there."""
    if isinstance(kept, Mapping) and isinstance(anew, Mapping):
        for key, value in kept.items():
            inside = f"{where}, {key}" if where else key
            if any(part in key for part in _NOT_COMPARED):
                continue
            if key in anew:
                yield from _unlike(value, anew[key], inside)
            else:
                yield inside, value, None
    elif isinstance(kept, list) and isinstance(anew, list) and len(kept) == len(anew):
        for number, (one, other) in enumerate(zip(kept, anew, strict=True)):
            name = one.get("id", number) if isinstance(one, Mapping) else number
            yield from _unlike(one, other, f"{where}, {name}" if where else str(name))
    elif kept != anew:
        yield where, kept, anew
