"""Cells of a comparison on disk: which stand, which failed, and by what code they were made.

results/cells/<name>/          a finished cell, see `results.cells`
results/cells/<name>.failed    one that failed: JSON of reason, code and date
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from fellrec.comparison.plan import Planned
from fellrec.errors import RunError
from fellrec.federation.origin import code_digest, digest_of
from fellrec.files import read_json, write_json
from fellrec.results.cells import COMPARED, Cell, read

_PEER_CODE = (
    "balance/mixing.py",
    "data/interactions.py",
    "data/partition.py",
    "data/sampling.py",
    "data/splits.py",
    "evaluation/popularity.py",
    "evaluation/ranking.py",
    "models/batching.py",
    "models/dropout.py",
    "peers/*.py",
)


@dataclass(frozen=True)
class Failure:
    """Why a cell has no result. code: digest of the code that failed. date: ISO 8601."""

    reason: str
    code: str
    date: str


@dataclass(frozen=True)
class Outcome:
    """What there is of a planned cell: its result, the reason why it has none, or neither.

    current: whether it was made by today's code. path: where its result is, or belongs.
    """

    planned: Planned
    path: Path
    cell: Cell | None = None
    failure: Failure | None = None
    current: bool = False


def code_of(planned: Planned) -> str:
    """Return the digest of the code that a cell's scores depend on."""
    if planned.peer is not None:
        return digest_of(_PEER_CODE)
    return code_digest(planned.config.model.recommender)


def outcome(planned: Planned, results: Path) -> Outcome:
    """Look for a cell below the folder of results, by what it asks for and not by its name.

    Raises RunError for a cell that was changed since it was kept.
    """
    folder = results / COMPARED
    path = next(iter(sorted(folder.glob(f"*-{planned.key}"))), folder / planned.name)
    code = code_of(planned)
    if path.is_dir():
        cell = read(path)
        return Outcome(planned, path, cell, None, set(cell.origin["code"]) == {code})
    failed = path.with_name(f"{path.name}.failed")
    if failed.is_file():
        try:
            failure = Failure(**read_json(failed))
        except TypeError as error:
            raise RunError(f"{failed}: is damaged ({error}); remove it") from error
        return Outcome(planned, path, None, failure, failure.code == code)
    return Outcome(planned, path)


def note_failure(planned: Planned, path: Path, reason: str) -> None:
    """Keep why a cell failed, so that it is shown and not tried again by the same code."""
    failure = Failure(reason, code_of(planned), datetime.now(UTC).date().isoformat())
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path.with_name(f"{path.name}.failed"), asdict(failure))


def forget_failure(path: Path) -> None:
    """Remove the note, if there is one: the cell has a result, or is to be tried again."""
    path.with_name(f"{path.name}.failed").unlink(missing_ok=True)
