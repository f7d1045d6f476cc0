"""Kill a run at its n-th change to the disk, or at a moment, and look at how it ends when resumed.

    python -m tests.federation.crashes SPEC.json

runs in a process of its own that imports everything once and trains in forks of itself. The
functions that change the disk are counted, not replaced: each does its work, except that before
the n-th call a fork of the process, with all that it has open and not written yet, gets a real
SIGKILL. What the disk holds then is copied, hard links as links, and resumed later; meanwhile the
process goes on to the next point, so that what comes before a point is trained once for all of
them. SPEC.json holds a list of

    recipe   path of a config.toml
    folder   where runs may be made; the first one, undisturbed, stays there as "reference"
    points   numbers of the calls to die at; or "all"; or "sites", the last call of each chain of
             the program's functions that makes something lasting
    moments  seconds after which a further victim dies, again and again until it finishes

and the answer, on standard output, is one JSON line with a list of: how many victims died, and what
differed from the undisturbed run, by kill.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
CALLS = ("fsync", "replace", "rename", "link", "unlink", "mkdir", "rmdir", "ftruncate")
LASTING = ("fsync", "replace", "rename", "link", "rmdir")
SECONDS = {"seconds", "waiting_seconds", "server_seconds"}
MEASURED = {"train_seconds", "server_seconds", "peak_rss_bytes"}
MEASURED |= {"client_seconds_per_step", "server_seconds_per_step"}


def outcome(run: Path) -> dict[str, str]:
    """Return what has to be the same in any two runs of a recipe: a digest for each file.

    All files count, so that litter is a difference too; what a clock or the machine says does not.
    """
    found = {}
    for path in sorted(p for p in run.rglob("*") if p.is_file()):
        data = path.read_bytes()
        if path.name == "summary.json":
            summary = json.loads(data)
            summary["cost"] = {k: v for k, v in summary["cost"].items() if k not in MEASURED}
            data = json.dumps(summary).encode()
        elif path.name == "metrics.jsonl":
            data = json.dumps(metrics(run)).encode()
        elif path.name == "state.json":  # how long the seconds in metrics.jsonl are written varies
            state = json.loads(data)
            del state["logs"]["metrics.jsonl"]
            data = json.dumps(state).encode()
        elif path.name == "origin.json":  # which processes worked on it, and when
            data = b""
        found[str(path.relative_to(run))] = hashlib.sha256(data).hexdigest()
    return found


def metrics(run: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl without their seconds."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in SECONDS} for line in lines]


def differences(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """Return the names of the files that only one has, or that differ."""
    return sorted(n for n in one.keys() | other.keys() if one.get(n) != other.get(n))


def kill_and_resume(
    cases: Sequence[Mapping[str, Any]], env: Mapping[str, str], spec: Path
) -> list[dict[str, Any]]:
    """Start this module as a program; return its answer."""
    spec.write_text(json.dumps(cases, default=str))
    done = subprocess.run(
        [sys.executable, "-m", "tests.federation.crashes", str(spec)],
        cwd=ROOT,
        env={**env, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _forked(work: Callable[[], object]) -> int:
    """Start `work` in a fork; return its process id."""
    child = os.fork()
    if child:
        return child
    try:
        os.setpgid(0, 0)
        work()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _ended(child: int) -> int:
    """Wait: exit status, or the negative number of the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _count_calls(at: Callable[[int], None] = lambda number: None) -> list[str]:
    """Count the calls of this process from now on: a growing list of the places they come from.

    at: told the number of each call before its work is done.
    """
    places: list[str] = []

    def counted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            frames = traceback.extract_stack()
            chain = [f.name for f in frames if "fellrec" in f.filename]
            places.append(" ".join([*chain, name]))
            at(len(places))
            return call(*args, **kwargs)

        return wrapper

    for name in CALLS:
        setattr(os, name, counted(name, getattr(os, name)))
    return places


def _main(spec: Mapping[str, Any]) -> dict[str, Any]:
    from fellrec.config import RunConfig
    from fellrec.federation.runs import train

    config = RunConfig.from_toml(spec["recipe"])
    folder = Path(spec["folder"])

    def start(out: Path) -> None:
        train(config, out, resume=(out / "config.toml").exists())

    def counted() -> None:
        places = _count_calls()
        start(folder / "counted")
        (folder / "places").write_text(json.dumps(list(places)))

    # Fills the cache, whose writes are not a run's, and imports what is imported on first use.
    start(folder / "reference")
    reference = outcome(folder / "reference")
    points = spec["points"]
    if isinstance(points, str):
        if _ended(_forked(counted)):
            raise RuntimeError("the run whose calls are counted failed")
        places: list[str] = json.loads((folder / "places").read_text())
        last = {p: n for n, p in enumerate(places, 1) if p.endswith(LASTING)}
        points = sorted(last.values()) if points == "sites" else range(1, len(places) + 1)
    failures: dict[str, list[str]] = {}
    died = 0

    def check(kill: str, out: Path) -> None:
        status = _ended(_forked(partial(start, out)))
        if status:
            failures[kill] = [f"the resumed run ended with status {status}"]
        elif wrong := differences(reference, outcome(out)):
            failures[kill] = wrong
        shutil.rmtree(out, ignore_errors=True)

    def victims() -> None:
        out, wanted, reached = folder / "dying", set(points), list[int]()

        def die(number: int) -> None:
            if number not in wanted:
                return
            if _ended(_forked(lambda: os.kill(os.getpid(), signal.SIGKILL))) != -signal.SIGKILL:
                raise RuntimeError(f"nobody died at call {number}")
            reached.append(number)
            if out.exists():  # else it died before anything was there
                subprocess.run(["cp", "-a", str(out), str(folder / f"victim {number}")], check=True)

        _count_calls(die)
        start(out)
        (folder / "reached").write_text(json.dumps(reached))

    if points:
        if _ended(_forked(victims)):
            raise RuntimeError("the run in which victims die failed")
        reached: list[int] = json.loads((folder / "reached").read_text())
        died += len(reached)
        for point in reached:
            check(f"call {point}", folder / f"victim {point}")
    for moment in spec["moments"]:
        out = folder / "victim"
        for _ in range(40):
            child = _forked(partial(start, out))
            time.sleep(moment)
            os.kill(child, signal.SIGKILL)
            status = _ended(child)
            died += status == -signal.SIGKILL
            if status == 0 or (out / "summary.json").exists():
                break
            moment *= 1.2  # so that it comes to an end
        check(f"moment {moment}", out)
    return {"died": died, "failures": failures}


if __name__ == "__main__":
    print(json.dumps([_main(case) for case in json.loads(Path(sys.argv[1]).read_text())]))
