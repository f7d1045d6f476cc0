"""Cells of a comparison on disk: which stand, which failed, and by what code they were made.

results/cells/<name>/          a finished cell, see `results.cells`
results/cells/<name>.failed    one that failed: JSON of reason, code and date
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from fellrec.comparison.plan import Planned
from fellrec.errors import ConfigError, RunError
from fellrec.federation.origin import code_digest, digest_of
from fellrec.files import read_json, write_json
from fellrec.results.cells import COMPARED, Cell, read
from fellrec.results.vouched import Vouched

_FAILED = ".failed"

# What the scores of all peers depend on, and those of each.
_PEERS_CODE = (
    "data/interactions.py",
    "data/partition.py",
    "data/sampling.py",
    "data/splits.py",
    "evaluation/ranking.py",
    "peers/peer.py",
    "peers/running.py",
)
_SASREC = ("models/batching.py", "models/dropout.py", "peers/sasrec.py", "peers/training.py")
_PEER_CODE = {
    "popularity": ("evaluation/popularity.py", "peers/popular.py"),
    "item-knn": ("peers/library.py", "peers/neighbours.py"),
    "als": ("peers/factors.py", "peers/library.py"),
    "sasrec": _SASREC,
    "sasrec-federated": (
        *_SASREC,
        "balance/attention.py",
        "balance/mixing.py",
        "peers/federated.py",
    ),
}


@dataclass(frozen=True)
class Failure:
    """Why a cell has no result. code: digest of the code that failed. date: ISO 8601."""

    reason: str
    code: str
    date: str


@dataclass(frozen=True)
class Outcome:
    """What there is of a planned cell: its result, the reason why it has none, or neither.

    current: whether today's code made it, or code that it is vouched to match, or whether it
    failed by today's. path: where its result is, or belongs. shown_by: where earlier code made a
    current result, the cells that showed that today's gives the same.
    """

    planned: Planned
    path: Path
    cell: Cell | None = None
    failure: Failure | None = None
    current: bool = False
    shown_by: tuple[str, ...] = ()


def code_of(planned: Planned) -> str:
    """Return the digest of the code that a cell's scores depend on."""
    if planned.peer is not None:
        return digest_of((*_PEERS_CODE, *_PEER_CODE[planned.peer]))
    return code_digest(planned.config.model.recommender)


def shown_by(planned: Planned, made_by: Iterable[str], results: Path) -> tuple[str, ...] | None:
    """Return which cells showed that today's code gives what these codes made, by digest.

    None where nothing did, no cells where today's code made it. Peers are not vouched for.
    """
    vouched = Vouched() if planned.peer is not None else Vouched.read(results)
    return vouched.shown_by(planned.config.model.recommender, code_of(planned), made_by)


def place_of(planned: Planned, results: Path) -> Path:
    """Return the folder of a cell: where its key is found, under any label, or under its own."""
    folder = results / COMPARED
    found = sorted(folder.glob(f"*-{planned.key}"))
    noted = sorted(folder.glob(f"*-{planned.key}{_FAILED}"))
    named = [*found, *(path.with_name(path.name.removesuffix(_FAILED)) for path in noted)]
    return named[0] if named else folder / planned.name


def outcome(planned: Planned, results: Path) -> Outcome:
    """Look for a cell below the folder of results, by what it asks for and not by its name.

    A result that other code has made does not hide that today's code failed.

    Raises RunError for a cell that was changed since it was kept, or a damaged file of what is
    vouched for.
    """
    path, code = place_of(planned, results), code_of(planned)
    cell = _kept(path)
    shown = None if cell is None else shown_by(planned, cell.origin["code"], results)
    current = cell is not None and shown is not None and _asked(planned, cell)
    failure = None if current else _failure(path)
    if failure is not None and (cell is None or failure.code == code):
        return Outcome(planned, path, None, failure, failure.code == code)
    return Outcome(planned, path, cell, None, current, (shown or ()) if current else ())


def _kept(path: Path) -> Cell | None:
    """Read a cell; one whose recipe has settings that are no more is none."""
    try:
        return read(path) if path.is_dir() else None
    except ConfigError:
        return None


def _asked(planned: Planned, cell: Cell) -> bool:
    """Return whether a cell is of this recipe still: a default may have changed since."""
    return cell.config is None or replace(planned, config=cell.config).key == planned.key


def _failure(path: Path) -> Failure | None:
    noted = path.with_name(f"{path.name}{_FAILED}")
    if not noted.is_file():
        return None
    try:
        return Failure(**read_json(noted))
    except TypeError as error:
        raise RunError(f"{noted}: is damaged ({error}); remove it") from error


def note_failure(planned: Planned, path: Path, reason: str) -> None:
    """Keep why a cell failed, so that it is shown and not tried again by the same code."""
    failure = Failure(reason, code_of(planned), datetime.now(UTC).date().isoformat())
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path.with_name(f"{path.name}{_FAILED}"), asdict(failure))


def forget_failure(path: Path) -> None:
    """Remove the note, if there is one: the cell has a result, or is to be tried again."""
    path.with_name(f"{path.name}{_FAILED}").unlink(missing_ok=True)
