"""A recording's folder, explained: what the coordinator and every trunk saw of one deployment."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from fellrec.errors import RunError
from fellrec.federation.deployment.schema.explain import Explainer
from fellrec.federation.deployment.schema.pieces import Explained
from fellrec.split.service.recorder import SUFFIX, read_records


def explain_folder(folder: Path) -> Iterator[Explained]:
    """Explain every message in a folder, first the coordinator's, then each trunk's, in order.

    Clients go by the names that they introduced themselves by, not by their nodes' numbers.

    Raises UndeclaredError for the first thing that is not declared, WireError for a damaged file,
    RunError where there is no recording.
    """
    paths = sorted(folder.glob(f"*{SUFFIX}"), key=_place)
    if not paths:
        raise RunError(f"{folder}: no recording is there")
    names = {
        each.client: str(each.value("client"))
        for each in _explain(path for path in paths if not _place(path)[0])
        if each.kind == "Introduction"
    }
    for each in _explain(paths):
        yield replace(each, client=names.get(each.client, each.client))


def _explain(paths: Iterable[Path]) -> Iterator[Explained]:
    explainer = Explainer()
    for path in paths:
        for record in read_records(path):
            yield explainer.explain(record)


def _place(path: Path) -> tuple[bool, str, int]:
    """Sort the coordinator's files first, those of one process in the order of its starts."""
    process, _, number = path.name.removesuffix(SUFFIX).rpartition("-")
    return process != "coordinator", process, int(number) if number.isdecimal() else 0
