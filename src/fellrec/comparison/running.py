"""Make the cells that a comparison lacks, some at a time, each in a process of its own.

A cell that was interrupted goes on from its last round. One that failed is noted with its reason
and left alone until its code changes or somebody asks for it. What one cell does harms no other.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fellrec.comparison.outcomes import Outcome, forget_failure, note_failure, outcome
from fellrec.comparison.plan import Comparison, Planned
from fellrec.errors import ConfigError, RunError
from fellrec.files import alone_in, write_bytes

_POLL_SECONDS = 0.5
_GRACE_SECONDS = 10.0

Step = Literal["begins", "goes on", "is done", "failed"]
Told = Callable[[Planned, Step, str], None]
"""Told what happens to a cell: round n of m, or the reason why it failed."""


@dataclass(frozen=True)
class Place:
    """Where a comparison works. results: kept cells. runs: run directories of cells, and logs."""

    results: Path = Path("results")
    runs: Path = Path("runs")


def outcomes(comparison: Comparison, results: Path) -> list[Outcome]:
    """Return what there is of each cell, in the comparison's order."""
    return [outcome(planned, results) for planned in comparison.cells]


def lacking(
    found: Sequence[Outcome],
    *,
    retry: bool = False,
    keep_old: bool = False,
    only: Sequence[str] = (),
) -> list[Outcome]:
    """Return the cells to be made, each key once.

    retry: those that failed by today's code, too. keep_old: not those that other code has made.
    only: labels, all where it is empty. Raises ConfigError for a label that is not there.
    """
    labels = dict.fromkeys(each.planned.label for each in found)
    for label in only:
        if label not in labels:
            raise ConfigError(
                f"--only {label}: there is no such row; there are {', '.join(labels)}"
            )
    wanted = {
        each.planned.key: each
        for each in found
        if not (each.cell is not None and (each.current or keep_old))
        and not (each.failure is not None and each.current and not retry)
        and (not only or each.planned.label in only)
    }
    return list(wanted.values())


def run(
    comparison: Comparison,
    place: Place,
    todo: Sequence[Outcome],
    *,
    jobs: int = 1,
    told: Told = lambda planned, step, text: None,
) -> list[Outcome]:
    """Make cells, and return what there is then; todo: those that are `lacking`.

    jobs: cells at a time; the cores are divided among them. When this is interrupted, so are the
    cells; the next call goes on.

    Raises ConfigError for less than one job, RunError for a folder that can't be written or in
    which another process makes the cells of this comparison.
    """
    if jobs < 1:
        raise ConfigError(f"jobs: must be at least 1, got {jobs}")
    if todo:
        folder = place.runs / comparison.file.name
        source = folder / "comparison.toml"
        busy = "another process makes these cells; let it end"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with alone_in(folder, busy):
                write_bytes(source, comparison.text.encode())
                with _workers(source, place, jobs) as start:
                    _all(todo, place, start, jobs, told)
        except OSError as error:
            raise RunError(f"{folder}: can't be written ({error.strerror or error})") from error
    return outcomes(comparison, place.results)


def _all(
    todo: Sequence[Outcome],
    place: Place,
    start: Callable[[Planned], subprocess.Popen[bytes]],
    jobs: int,
    told: Told,
) -> None:
    waiting, working = list(todo), list[tuple[Outcome, subprocess.Popen[bytes]]]()
    rounds: dict[str, int] = {}
    while waiting or working:
        while waiting and len(working) < jobs:
            each = waiting.pop(0)
            forget_failure(each.path)
            working.append((each, start(each.planned)))
            told(each.planned, "begins", "")
        time.sleep(_POLL_SECONDS)
        for each, process in list(working):
            planned, ended = each.planned, process.poll()
            if ended is None:
                done = _rounds_done(place.runs / planned.name)
                if done != rounds.get(planned.key, 0):
                    rounds[planned.key] = done
                    text = f"round {done} of {planned.config.train.rounds}"
                    told(planned, "goes on", text)
                continue
            working.remove((each, process))
            if ended == 0:
                told(planned, "is done", "")
                continue
            reason = _reason(_log(place, planned), ended)
            note_failure(planned, each.path, reason)
            told(planned, "failed", reason)


@contextmanager
def _workers(
    source: Path, place: Place, jobs: int
) -> Iterator[Callable[[Planned], subprocess.Popen[bytes]]]:
    """Lend a function that starts the worker of a cell; all of them end with the block."""
    started: list[subprocess.Popen[bytes]] = []
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    # A thread that waits for another should not spin: the cores are others' as well.
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "GOMP_SPINCOUNT": "0"}

    def start(planned: Planned) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-m", "fellrec.comparison.worker", str(source), planned.name]
        words += [str(place.runs), str(place.results)]
        log = _log(place, planned)
        with log.open("wb") as out:
            # A group of its own: Ctrl-C is ours to pass on. No session of its own, in which the
            # kernel would forget that the command was begun with `nice`.
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=environment,
                process_group=0,
            )
        started.append(process)
        return process

    try:
        yield start
    finally:
        for process in started:
            if process.poll() is None:
                process.terminate()
        for process in started:
            try:
                process.wait(_GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def _log(place: Place, planned: Planned) -> Path:
    return place.runs / f"{planned.name}.log"


def _rounds_done(run: Path) -> int:
    pointer = run / "rounds" / "current"
    try:
        return int(pointer.read_text("ascii"))
    except (OSError, ValueError):
        return 0


def _reason(log: Path, code: int) -> str:
    """Return the line in which a worker says why, or how it ended."""
    if code < 0:
        return f"its process was ended by signal {-code}"
    lines = log.read_text("utf-8", errors="replace").strip().splitlines()
    said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (said or lines or [f"its process ended with {code}"])[-1]
