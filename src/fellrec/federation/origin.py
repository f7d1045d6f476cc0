"""Where a run came from: by which code it was made, when, and how long it took.

A digest stands for the code, so that a finished result can be told from one that today's code
would give, with or without git. It is of the syntax trees without docstrings: words and layout may
change.
"""

from __future__ import annotations

import ast
import hashlib
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import torch

import fellrec
from fellrec.errors import RunError
from fellrec.files import read_json, write_json

ORIGIN = "origin.json"

_SOURCE = Path(fellrec.__file__).parent
# What the scores depend on besides recipe and data. Whoever reads other files of data gets other
# data, which show in a digest of their own.
_MATTERS = (
    "balance/*.py",
    "data/interactions.py",
    "data/partition.py",
    "data/sampling.py",
    "data/splits.py",
    "evaluation/balance.py",
    "evaluation/ranking.py",
    "federation/*.py",
    "models/*.py",
    "privacy/*.py",
    "split/*.py",
)
_NOT = (
    *(f"federation/{name}.py" for name in ("dryrun", "observer", "origin", "same_data")),
    "privacy/accounting.py",
)
# What belongs to one recommender: the others' scores do not depend on it.
_OWN = {
    "bigrec": ("beams", "bigrec", "prompts", "titles"),
    "hllm": ("hllm", "text"),
    "recformer": ("item_texts", "recformer"),
}


@dataclass(frozen=True)
class Session:
    """One process that worked on a run.

    began: UTC, ISO 8601. seconds: until the run was finished, None where the process ended before.
    code: see `code_digest`. fellrec, python, torch: versions. device: where stages computed, "cpu"
    or an accelerator's name; empty where this process computed none, or did not note it.
    """

    began: str
    seconds: float | None
    code: str
    fellrec: str
    python: str
    torch: str
    device: str = ""


def code_digest(recommender: str) -> str:
    """Return a digest of the code that a recommender's scores depend on: 16 hexadecimal digits."""
    others = {name for own, names in _OWN.items() if own != recommender for name in names}
    return digest_of(_MATTERS, (*_NOT, *(f"models/{name}.py" for name in sorted(others))))


@cache
def digest_of(patterns: tuple[str, ...], but: tuple[str, ...] = ()) -> str:
    """Return a digest of this package's files that fit a pattern: 16 hexadecimal digits.

    but: files left out. All are named from the package's folder.
    """
    digest = hashlib.sha256()
    for name, path in _files(patterns, but):
        tree = _without_docstrings(ast.parse(path.read_text("utf-8")))
        digest.update(f"{name}\n{_written(tree)}\n".encode())
    return digest.hexdigest()[:16]


def _files(patterns: tuple[str, ...], but: tuple[str, ...]) -> Iterator[tuple[str, Path]]:
    for pattern in patterns:
        for path in sorted(_SOURCE.glob(pattern)):
            name = path.relative_to(_SOURCE).as_posix()
            if name not in but:
                yield name, path


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            # In a class a text after a field is its documentation.
            kept = [each for each in node.body if not _is_text(each)]
            node.body = kept or [ast.Pass()]
    return tree


def _written(part: Any) -> str:
    """Write a syntax tree or a part of one, the same in every version of Python.

    Both `ast.dump` and `ast.unparse` write the same tree otherwise from version to version. What is
    empty is left out, since newer versions know more that can be.
    """
    if isinstance(part, list):
        return f"[{','.join(map(_written, part))}]"
    if isinstance(part, ast.Constant):
        return ascii(part.value)
    if isinstance(part, ast.AST):
        fields = ((name, getattr(part, name, None)) for name in part._fields)
        told = (f"{name}={_written(value)}" for name, value in fields if value not in (None, []))
        return f"{type(part).__name__}({','.join(told)})"
    return ascii(part)  # a name, or how often a relative import climbs


def _is_text(node: ast.stmt) -> bool:
    text = node.value if isinstance(node, ast.Expr) else None
    return isinstance(text, ast.Constant) and isinstance(text.value, str)


def begin_session(run: Path, recommender: str, device: str = "") -> None:
    """Note in a run's folder that this process begins to work on it; device: see `Session`."""
    session = Session(
        datetime.now(UTC).isoformat(timespec="seconds"),
        None,
        code_digest(recommender),
        fellrec.__version__,
        platform.python_version(),
        str(torch.__version__),
        device,
    )
    _write(run, [*sessions(run), session])


def end_session(run: Path, seconds: float) -> None:
    """Note that the process which began last has finished the run."""
    *earlier, last = sessions(run)
    _write(run, [*earlier, Session(**{**asdict(last), "seconds": round(seconds, 1)})])


def sessions(run: Path) -> list[Session]:
    """Return the processes that worked on a run, in their order; RunError for a damaged file.

    A run of a version that did not note them has none.
    """
    path = run / ORIGIN
    if not path.exists():
        return []
    try:
        return [Session(**session) for session in read_json(path)["sessions"]]
    except (KeyError, TypeError) as error:
        raise RunError(f"{path}: is damaged ({error!r})") from error


def _write(run: Path, noted: list[Session]) -> None:
    write_json(run / ORIGIN, {"sessions": [asdict(session) for session in noted]})
