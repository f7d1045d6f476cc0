"""What a run's folder says, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fellrec.errors import RunError
from fellrec.evaluation.bootstrap import mean_interval
from fellrec.report import write_report
from fellrec.report.reading import Line, RoundLog, read_run
from tests.report.conftest import DIVERGED
from tests.report.made import edit_summary


def test_a_round_knows_who_trained_and_who_failed(made: dict[str, Path]) -> None:
    run = read_run(made["several"])
    assert [each.number for each in run.rounds] == [1, 2, 3, 4, 5]
    third = run.rounds[2]
    assert list(third.lines) == ["c0", "c1", "c2", "c3"] and third.failed == {"c4": DIVERGED}
    assert third.value("c4", "valid") is None
    assert run.names == ["c0", "c1", "c2", "c3", "c4"]
    # 20.5 + 21.5 + 22.5 + 23.5 s by the four that were there.
    assert third.total("seconds") == 88.0


def test_matrices_are_in_the_order_of_the_lines(made: dict[str, Path]) -> None:
    third = read_run(made["several"]).rounds[2]
    weights = np.array(third.matrix("weights"), dtype=np.float64)
    assert weights.shape == (4, 4)
    assert weights.sum(axis=1) == pytest.approx(np.ones(4), abs=1e-5)
    attention = np.array(third.matrix("attention"), dtype=np.float64)
    assert (np.diag(attention) == 1).all() and (attention == attention.T).all()


def test_a_sum_of_what_nobody_says_is_unknown() -> None:
    lines: dict[str, Line] = {"a": {"seconds": 1.5, "steps": 2}, "b": {"seconds": None, "steps": 3}}
    log = RoundLog(1, lines, {})
    assert log.total("seconds") is None and log.total("steps") == 5
    assert log.total("missing") is None and RoundLog(1, {}, {"a": "why"}).total("steps") is None
    assert log.matrix("attention") == [] and log.spread is None and not log.active


def test_intervals_are_those_of_the_users_scores(made: dict[str, Path]) -> None:
    run = read_run(made["several"])
    frames = [
        pd.read_parquet(made["several"] / "clients" / name / "scores.parquet") for name in run.names
    ]
    every = np.concatenate([frame["ndcg@10"].to_numpy() for frame in frames])
    assert run.overall("ndcg@10") == mean_interval(every, np.random.default_rng(0))
    own = mean_interval(frames[1]["ndcg@10"].to_numpy(), np.random.default_rng(0))
    assert run.interval("c1", "ndcg@10") == own
    assert own.mean == pytest.approx(run.clients[1]["ndcg@10"])


def test_scores_that_stayed_elsewhere_leave_intervals_unknown(
    made: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(made["several"], tmp_path / "run"))
    (folder / "clients" / "c2" / "scores.parquet").unlink()
    run = read_run(folder)
    assert run.interval("c2", "ndcg@10") is None and run.overall("ndcg@10") is None
    assert run.interval("c1", "ndcg@10") is not None


def _no_folder(run: Path) -> None:
    shutil.rmtree(run)


def _unfinished(run: Path) -> None:
    (run / "summary.json").unlink()


def _foreign_summary(run: Path) -> None:
    (run / "summary.json").write_text('["something else"]')


def _kept_result(run: Path) -> None:
    (run / "metrics.jsonl").unlink()


def _no_ledger(run: Path) -> None:
    (run / "ledger.csv").unlink()


def _torn_log(run: Path) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"round": 5, "cli')


def _odd_log(run: Path) -> None:
    (run / "metrics.jsonl").write_text("[1, 2]\n")


def _torn_scores(run: Path) -> None:
    (run / "clients" / "c0" / "scores.parquet").write_bytes(b"PAR1 and no more")


def _odd_overall(run: Path) -> None:
    edit_summary(run, clients={"c0": 1})


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_no_folder, "not a run directory"),
        (_unfinished, "not finished"),
        (_foreign_summary, "summary.json"),
        (_odd_overall, "summary.json"),
        (_kept_result, "metrics.jsonl"),
        (_no_ledger, "ledger.csv"),
        (_torn_log, "metrics.jsonl:26"),
        (_odd_log, "metrics.jsonl:1"),
        (_torn_scores, "scores.parquet"),
    ],
)
def test_what_is_no_finished_run_is_refused_in_a_line(
    damage: Callable[[Path], None], said: str, made: dict[str, Path], tmp_path: Path
) -> None:
    run = Path(shutil.copytree(made["several"], tmp_path / "run"))
    damage(run)
    with pytest.raises(RunError, match=said) as refused:
        write_report(run, examples=0)
    assert "\n" not in str(refused.value)
    assert not (run / "report.html").exists()
