"""From missing to made, kept and made anew; failures are noted once; whatever ends, all ends."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fellrec.comparison import running
from fellrec.comparison.outcomes import Outcome, code_of, note_failure, outcome
from fellrec.comparison.plan import Comparison, Planned
from fellrec.comparison.running import Place, lacking, outcomes, run
from fellrec.comparison.worker import making, work
from fellrec.errors import ConfigError, RunError
from fellrec.federation.observer import Observer, RoundRecord
from fellrec.federation.runs import train
from fellrec.files import alone_in, read_json, write_json
from fellrec.results.cells import read
from fellrec.results.keeping import keep_alone
from tests.commands import HEARING
from tests.comparison.made import description
from tests.toys import Toys

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "results", tmp_path / "runs")


@pytest.fixture
def toy(toys: Toys, tmp_path: Path) -> Comparison:
    """Return a comparison of one run, the plain toy recipe, and a peer."""
    return written(toys, tmp_path, 'peers = ["popularity"]\n[strategies.plain]\n')


def written(toys: Toys, folder: Path, rest: str, name: str = "mine") -> Comparison:
    recipe = folder / "toys.toml"
    recipe.write_text(toys.recipe().to_toml())
    return description(folder, f'name = "{name}"\nrecipe = "{recipe}"\n{rest}')


def of(comparison: Comparison, label: str) -> Planned:
    return next(each for each in comparison.cells if each.label == label)


def labels(todo: list[Outcome]) -> list[str]:
    return [each.planned.label for each in todo]


def without_seconds(summary: object) -> object:
    """Return a summary without what no seed decides."""
    if isinstance(summary, dict):
        kept = {k: v for k, v in summary.items() if "seconds" not in k and "rss" not in k}
        return {key: without_seconds(value) for key, value in kept.items()}
    return [without_seconds(each) for each in summary] if isinstance(summary, list) else summary


def by_other_code(path: Path) -> None:
    """Let a cell say that other code has made it."""
    origin = read_json(path / "origin.json")
    write_json(path / "origin.json", {**origin, "code": [16 * "0"]})


class Interrupted(Exception):
    """Ends a run after its first round."""


class AfterOneRound(Observer):
    """Ends a run after its first round, as a signal would, but in this process."""

    def round_ends(self, record: RoundRecord) -> None:
        raise Interrupted


def test_a_cell_is_made_then_kept_then_left_alone(
    toy: Comparison, place: Place, undisturbed: Path
) -> None:
    plain, peer = of(toy, "plain"), of(toy, "popularity")
    found = outcomes(toy, place.results)
    assert [(o.cell, o.failure, o.current) for o in found] == [(None, None, False)] * 2
    assert labels(lacking(found)) == ["popularity", "plain"]
    shutil.copytree(undisturbed, place.runs / plain.name)  # finished, but not kept yet
    for planned in (plain, peer):
        work(planned, place.runs, place.results)
        made = outcome(planned, place.results)
        assert made.cell is not None and made.current and made.path.name == planned.name
    assert lacking(outcomes(toy, place.results)) == []
    kept = read(place.results / "cells" / plain.name)
    assert kept.summary == json.loads((undisturbed / "summary.json").read_text())
    popularity = read(place.results / "cells" / peer.name)
    assert popularity.clients is None and popularity.origin["data"] == kept.origin["data"]
    # Nothing is touched where nothing lacks, nor asked of the folder of runs.
    files = [path for path in place.results.rglob("*") if path.is_file()]
    before = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}
    shutil.rmtree(place.runs)
    run(toy, place, lacking(outcomes(toy, place.results)))
    assert not place.runs.exists()
    assert before == {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


def test_another_comparison_finds_it_under_its_own_label(
    toys: Toys, toy: Comparison, place: Place, undisturbed: Path, tmp_path: Path
) -> None:
    plain = of(toy, "plain")
    shutil.copytree(undisturbed, place.runs / plain.name)
    work(plain, place.runs, place.results)
    (tmp_path / "other").mkdir()
    other = written(toys, tmp_path / "other", "[strategies.zzz]\n", "other")
    (twin,) = outcomes(other, place.results)
    assert twin.planned.name != plain.name and twin.planned.key == plain.key
    assert twin.current and twin.path.name == plain.name
    # Made anew it takes the place of the old one, whatever it is called: there is one of a key.
    by_other_code(twin.path)
    assert labels(lacking(outcomes(other, place.results))) == ["zzz"]
    shutil.copytree(undisturbed, place.runs / twin.planned.name)
    work(twin.planned, place.runs, place.results)
    assert lacking(outcomes(other, place.results)) == [] != lacking(outcomes(toy, place.results))
    assert [path.name for path in (place.results / "cells").iterdir()] == [plain.name]


def test_what_other_code_made_is_made_anew_or_left(
    toy: Comparison, place: Place, undisturbed: Path
) -> None:
    plain = of(toy, "plain")
    begun = Path(shutil.copytree(undisturbed, place.runs / plain.name))
    work(plain, place.runs, place.results)
    by_other_code(place.results / "cells" / plain.name)
    old = outcome(plain, place.results)
    assert old.cell is not None and not old.current
    assert "plain" in labels(lacking([old])) and lacking([old], keep_old=True) == []
    noted = read_json(begun / "origin.json")
    noted["sessions"][0]["code"] = 16 * "0"
    write_json(begun / "origin.json", noted)
    aside = place.runs / f"{plain.name}.by-{16 * '0'}"
    aside.mkdir()  # once before
    work(plain, place.runs, place.results)
    new = outcome(plain, place.results)
    assert new.current and new.cell is not None
    assert without_seconds(new.cell.summary) == without_seconds(old.cell.summary)
    second = aside.with_name(f"{aside.name}-1")
    assert read_json(second / "origin.json") == noted and not any(aside.iterdir())


def test_a_default_that_changed_makes_another_cell(
    toys: Toys, toy: Comparison, place: Place
) -> None:
    """The recipe in the cell says what was run; its name alone would not."""
    plain = of(toy, "plain")
    shorter = toys.recipe({"train.rounds": 1})
    train(shorter, place.runs / "run")
    keep_alone(place.runs / "run", place.results / "cells", plain.name, {})
    found = outcome(plain, place.results)
    assert found.cell is not None and not found.current


def test_a_run_goes_on_as_if_undisturbed(toy: Comparison, place: Place, undisturbed: Path) -> None:
    """Also with other settings that no score depends on."""
    plain = of(toy, "plain")
    threads = plain.config.train.model_copy(update={"threads": 2})
    config = plain.config.model_copy(update={"train": threads})
    with pytest.raises(Interrupted):
        train(config, place.runs / plain.name, observer=AfterOneRound())
    assert not (place.runs / plain.name / "summary.json").exists()
    work(plain, place.runs, place.results)
    cell = read(place.results / "cells" / plain.name)
    whole = json.loads((undisturbed / "summary.json").read_text())
    assert without_seconds(cell.summary) == without_seconds(whole)
    assert len(read_json(place.runs / plain.name / "origin.json")["sessions"]) == 2
    rounds = [json.loads(line) for line in (undisturbed / "metrics.jsonl").open()]
    assert without_seconds(list(cell.rounds)) == without_seconds(rounds)


def test_a_failure_is_noted_and_left_alone(toys: Toys, toy: Comparison, place: Place) -> None:
    plain = of(toy, "plain")
    path = place.results / "cells" / plain.name
    note_failure(plain, path, "it diverged")
    found = outcome(plain, place.results)
    assert found.failure is not None and found.current and found.cell is None
    assert (found.failure.reason, found.failure.code) == ("it diverged", code_of(plain))
    everything = outcomes(toy, place.results)
    assert labels(lacking(everything)) == ["popularity"]
    assert labels(lacking(everything, retry=True)) == ["popularity", "plain"]
    assert labels(lacking(everything, retry=True, only=["plain"])) == ["plain"]
    # Under another label it is the same failure.
    (place.runs / "other").mkdir(parents=True)
    other = written(toys, place.runs / "other", "[strategies.twin]\n", "other")
    assert lacking(outcomes(other, place.results)) == []
    # Other code may do better.
    noted = path.with_name(f"{path.name}.failed")
    write_json(noted, {**read_json(noted), "code": 16 * "0"})
    assert labels(lacking(outcomes(toy, place.results))) == ["popularity", "plain"]
    noted.write_text("{}")
    with pytest.raises(RunError, match="is damaged"):
        outcome(plain, place.results)


def kept(toy: Comparison, place: Place, undisturbed: Path) -> tuple[Planned, Path]:
    """Keep the cell of a finished run; return it and its folder."""
    plain = of(toy, "plain")
    shutil.copytree(undisturbed, place.runs / plain.name)
    work(plain, place.runs, place.results)
    return plain, place.results / "cells" / plain.name


def test_an_old_result_does_not_hide_that_todays_code_failed(
    toy: Comparison, place: Place, undisturbed: Path
) -> None:
    plain, path = kept(toy, place, undisturbed)
    note_failure(plain, path, "an old note")  # a result of today's code stands nevertheless
    assert outcome(plain, place.results).cell is not None
    by_other_code(path)
    found = outcome(plain, place.results)
    assert found.cell is None and found.failure is not None and lacking([found]) == []


def test_a_cell_of_settings_that_are_no_more_is_made_again(
    toy: Comparison, place: Place, undisturbed: Path
) -> None:
    plain, path = kept(toy, place, undisturbed)
    recipe, origin = path / "config.toml", json.loads((path / "origin.json").read_text())
    recipe.write_text(recipe.read_text().replace("[lora]\n", "[lora]\nspin = 0.5\n"))
    origin["files"]["config.toml"] = hashlib.sha256(recipe.read_bytes()).hexdigest()
    (path / "origin.json").write_text(json.dumps(origin))
    found = outcome(plain, place.results)
    assert found.cell is None and found.failure is None and lacking([found]) == [found]
    work(plain, place.runs, place.results)
    assert outcome(plain, place.results).current


def test_cells_changed_since_they_were_kept_are_refused(
    toy: Comparison, place: Place, undisturbed: Path
) -> None:
    _, path = kept(toy, place, undisturbed)
    scores = path / "scores.csv"
    scores.write_text(scores.read_text().replace(",0", ",1", 1))
    with pytest.raises(RunError, match="was changed since it was kept"):
        outcomes(toy, place.results)


def test_rows_that_ask_for_the_same_are_one_cell(toys: Toys, tmp_path: Path) -> None:
    same = written(toys, tmp_path, '[strategies.a]\n[strategies.b]\n"train.threads" = 4\n')
    todo = lacking(outcomes(same, tmp_path / "results"))
    assert len(same.cells) == 2 and len(todo) == 1
    with pytest.raises(ConfigError, match=r"--only x: there is no such row; there are a, b"):
        lacking(outcomes(same, tmp_path / "results"), only=["x"])


# The schedule, with other programs in the place of workers.

Schedule = Callable[[dict[str, str], int], tuple[list[tuple[str, str, str]], int]]


@pytest.fixture
def schedule(toys: Toys, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Schedule:
    """Return a function that runs a program for each label, and returns what was told and how many
    ran at once."""
    monkeypatch.setattr(running, "_POLL_SECONDS", 0.02)

    def go(programs: dict[str, str], jobs: int) -> tuple[list[tuple[str, str, str]], int]:
        rows = "".join(
            f'[strategies.{label}]\n"train.rounds" = {n + 1}\n' for n, label in enumerate(programs)
        )
        comparison = written(toys, tmp_path, rows)
        todo = lacking(outcomes(comparison, place.results), retry=True)
        place.runs.mkdir(exist_ok=True)
        told: list[tuple[str, str, str]] = []
        at_once, most = 0, 0

        def start(planned: Planned) -> subprocess.Popen[bytes]:
            with (place.runs / f"{planned.name}.log").open("wb") as log:
                return subprocess.Popen(
                    [sys.executable, "-c", programs[planned.label]], stdout=log, stderr=log
                )

        def tell(planned: Planned, step: running.Step, text: str) -> None:
            nonlocal at_once, most
            at_once += {"begins": 1, "goes on": 0}.get(step, -1)
            most = max(most, at_once)
            told.append((planned.label, step, text))

        running._all(todo, place, start, jobs, tell)
        for each in todo:
            failure = outcome(each.planned, place.results).failure
            said = [
                text
                for label, step, text in told
                if (label, step) == (each.planned.label, "failed")
            ]
            assert ([] if failure is None else [failure.reason]) == said
        return told, most

    return go


def test_what_one_worker_does_harms_no_other(schedule: Schedule) -> None:
    told, most = schedule(
        {
            "fine": "pass",
            "refused": "import sys; print('error: no\\nwarning: late'); sys.exit(2)",
            "raised": "raise RuntimeError('a bug')",
            "silent": "import sys; sys.exit(3)",
            "killed": "import os; os.kill(os.getpid(), 9)",
            "last": "pass",
        },
        2,
    )
    assert most == 2 and [label for label, step, _ in told if step == "begins"] == [
        *("fine", "refused", "raised", "silent", "killed", "last")
    ]
    assert {(label, step, text) for label, step, text in told if step != "begins"} == {
        ("fine", "is done", ""),
        ("refused", "failed", "no"),
        ("raised", "failed", "RuntimeError: a bug"),
        ("silent", "failed", "its process ended with 3"),
        ("killed", "failed", "its process was ended by signal 9"),
        ("last", "is done", ""),
    }


def test_one_job_is_one_at_a_time_and_a_retry_forgets_the_note(schedule: Schedule) -> None:
    told, most = schedule({"a": "raise SystemExit(1)", "b": "pass"}, 1)
    assert most == 1 and [step for _, step, _ in told] == ["begins", "failed", "begins", "is done"]
    told, _ = schedule({"a": "pass", "b": "pass"}, 1)
    assert [step for _, step, _ in told] == ["begins", "is done"] * 2


def test_no_jobs_and_a_second_compare_are_refused(toy: Comparison, place: Place) -> None:
    todo = lacking(outcomes(toy, place.results))
    with pytest.raises(ConfigError, match="jobs: must be at least 1, got 0"):
        run(toy, place, todo, jobs=0)
    (place.runs / "mine").mkdir(parents=True)
    busy = pytest.raises(RunError, match="another process makes these cells")
    with alone_in(place.runs / "mine", "busy"), busy:
        run(toy, place, todo)
    place.runs.rename(place.runs.with_name("old"))
    place.runs.write_text("")
    with pytest.raises(RunError, match="can't be written"):
        run(toy, place, todo)


def test_a_cell_that_another_comparison_makes_is_waited_for(
    toy: Comparison, place: Place, tmp_path: Path
) -> None:
    plain = of(toy, "plain")
    work(plain, tmp_path / "making", tmp_path / "made")
    folder = making(plain, place.runs)
    folder.mkdir(parents=True)
    with ThreadPoolExecutor(1) as other:
        with alone_in(folder, "busy"):
            call = other.submit(work, plain, place.runs, place.results)
            shutil.copytree(tmp_path / "made", place.results)
            with pytest.raises(TimeoutError):
                call.result(timeout=0.5)
        call.result()
    assert not (place.runs / plain.name).exists()  # it was not trained once more
    assert outcome(plain, place.results).current


# Real workers.


def wait_for(path: Path, seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < until, f"no {path}"
        time.sleep(0.02)


@pytest.mark.faults
def test_workers_end_with_an_interrupted_compare(toys: Toys, place: Place, tmp_path: Path) -> None:
    comparison = written(toys, tmp_path, '[strategies.plain]\n"train.rounds" = 20\n')
    (planned,) = comparison.cells
    folders = ["--runs", str(place.runs), "--results", str(place.results)]
    process = subprocess.Popen(
        [*HEARING, "compare", str(tmp_path / "comparison.toml"), *folders],
        env={**toys.environment(), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    cell = place.runs / planned.name
    wait_for(cell / "rounds" / "current")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.startswith("interrupted; go on with: fellrec compare ")
    assert said.count("\n") == 1 and str(place.runs) in shlex.split(said)
    with alone_in(cell, "the worker goes on"):  # its lock ended with it
        done = int((cell / "rounds" / "current").read_text())
    assert 1 <= done < 20 and not (cell / "summary.json").exists()
    assert not list(place.results.rglob("*.failed"))
    assert labels(lacking(outcomes(comparison, place.results))) == ["plain"]


def test_a_worker_whose_parent_was_killed_ends(tmp_path: Path) -> None:
    child = (
        "import fcntl, time; from fellrec.comparison.parent import end_with_parent; "
        "end_with_parent(); file = open('lock', 'w'); fcntl.flock(file, fcntl.LOCK_EX); "
        "open('ready', 'w'); time.sleep(60)"
    )
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path)
    wait_for(tmp_path / "ready")
    lock = tmp_path / "lock"
    with pytest.raises(RunError, match="it works"), alone_in(lock, "it works"):
        pass
    parent.kill()
    parent.wait()
    with alone_in(lock, "it still works", 20):
        pass
