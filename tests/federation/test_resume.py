"""A run that was killed and resumed ends as if nothing had happened, to the last bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fellrec.errors import ConfigError, RunError
from fellrec.federation.runs import train
from fellrec.federation.store import RunStore
from fellrec.files import alone_in
from tests.federation.crashes import differences, kill_and_resume, outcome
from tests.toys import Toys

SMALL = {
    "data.max_users": 12,
    "clients.partition": "random",
    "clients.count": 2,
    "evaluation.keep_rounds": 1,
}
CASES: dict[str, dict[str, object]] = {
    # every place that writes: clients left out, optimiser moments reset and written twice, a best
    # adapter carried on, a private file, old rounds dropped
    "sites": {
        **SMALL,
        "train.rounds": 3,
        "clients.count": 3,
        "clients.per_round": 2,
        "balance.merge": "product",
        "model.item_residual": "local",
        "split.codec": "int8",
    },
    "fellrec": {"evaluation.keep_rounds": 1},
    "fedavg": {**SMALL, "balance.strategy": "fedavg", "balance.weighting": "examples"},
    "local": {**SMALL, "balance.strategy": "local", "model.item_residual": "local"},
    "patience": {**SMALL, "train.rounds": 4, "train.patience": 1, "train.learning_rate": 0.2},
    "change": {**SMALL, "balance.space": "change", "train.micro_batches": 2, "train.windows": 2},
    "private": {
        **SMALL,
        "model.item_residual": "local",
        "privacy.noise": 1.0,
        "privacy.private_head": True,
        "privacy.secret_start": 0.5,
        "privacy.exchange_trunk": False,
    },
    "no trunk": {**SMALL, "model.k_in": 2, "split.codec": "bf16"},
    "two models": {
        **SMALL,
        "train.rounds": 3,
        "balance.strategy": "ditto",
        "model.item_residual": "local",
        "lora.alternate": True,
    },
}
KILLS: dict[str, dict[str, Any]] = {
    "sites": {"points": "sites", "moments": [0.2]},
    "fellrec": {"points": [100, 110], "moments": [0.3]},
}
OTHER_KILLS = {"points": [70, 90], "moments": []}


@pytest.fixture(scope="module")
def answers(toys: Toys, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    cases = []
    folder = tmp_path_factory.mktemp("crashes")
    for number, (name, overrides) in enumerate(CASES.items()):
        own = folder / str(number)
        own.mkdir()
        (own / "recipe.toml").write_text(toys.recipe(overrides).to_toml())
        kills = KILLS.get(name, OTHER_KILLS)
        cases.append({"recipe": own / "recipe.toml", "folder": own, **kills})
    given = kill_and_resume(cases, toys.environment(), folder / "spec.json")
    return dict(zip(CASES, given, strict=True))


@pytest.mark.parametrize("case", CASES)
def test_killed_and_resumed_is_undisturbed(answers: dict[str, dict[str, Any]], case: str) -> None:
    answer = answers[case]
    assert answer["failures"] == {}
    kills = KILLS.get(case, OTHER_KILLS)
    least = 25 if kills["points"] == "sites" else len(kills["points"])
    assert answer["died"] >= least  # else nothing was tested


def test_the_cases_do_what_they_are_there_for(toys: Toys, runs: Path) -> None:
    stopped = train(toys.recipe(CASES["patience"]), runs / "patience")
    assert stopped.summary["rounds"] < 4 or any(
        client["best_round"] < 3 for client in stopped.summary["clients"]
    )
    assert any(s.stopped for s in RunStore(stopped.path).state().standings.values())


def test_two_runs_of_a_recipe_are_the_same(toys: Toys, undisturbed: Path, runs: Path) -> None:
    first = outcome(undisturbed)
    second = train(toys.recipe(), runs / "second")
    assert differences(first, outcome(second.path)) == []
    other = train(toys.recipe({"seed": 1}), runs / "other")
    assert "clients/north/best_adapter.safetensors" in differences(first, outcome(other.path))


def test_resuming_a_finished_run_changes_nothing(toys: Toys, finished_run: Path) -> None:
    before = outcome(finished_run)
    train(toys.recipe(), finished_run, resume=True)
    assert differences(before, outcome(finished_run)) == []


def test_a_folder_that_exists_is_left_alone(toys: Toys, runs: Path) -> None:
    (runs / "mine").mkdir()
    (runs / "mine" / ".git").mkdir()
    for resume in (False, True):
        with pytest.raises(RunError, match="exists already"):
            train(toys.recipe(), runs / "mine", resume=resume)
    with pytest.raises(RunError, match="no run to resume"):
        train(toys.recipe(), runs / "none", resume=True)
    assert (runs / "mine" / ".git").is_dir()


def test_a_start_that_fails_leaves_nothing(toys: Toys, runs: Path) -> None:
    with pytest.raises(ConfigError):
        train(toys.recipe({"clients.per_round": 9}), runs / "run")
    assert not (runs / "run").exists()


def test_another_recipe_is_refused(toys: Toys, finished_run: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.rounds"):
        train(toys.recipe({"train.rounds": 3}), finished_run, resume=True)


DAMAGE = {
    "pointer that is no number": ("rounds/current", b"../../etc\n"),
    "pointer that is no text": ("rounds/current", b"\xff\xfe"),
    "pointer to nowhere": ("rounds/current", b"7\n"),
    "state that is cut off": ("rounds/2/state.json", b'{"round": 2, "stand'),
    "state without standings": ("rounds/2/state.json", b'{"round": 2, "logs": {}}'),
    "state of another form": ("rounds/2/state.json", b"[]"),
    "state of another round": (
        "rounds/2/state.json",
        b'{"round": 1, "logs": {}, "standings": {}}',
    ),
    "adapter cut off": ("rounds/2/clients/north/best_adapter.safetensors", b"123"),
    "adapter missing": ("rounds/2/clients/north/adapter.safetensors", None),
    "optimiser missing": ("rounds/2/server/east/optimiser.safetensors", None),
    "ledger missing": ("ledger.csv", None),
    "ledger shorter": ("ledger.csv", b"round,client"),
    "metrics missing": ("metrics.jsonl", None),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_state_is_refused(toys: Toys, finished_run: Path, damage: str) -> None:
    name, content = DAMAGE[damage]
    file = finished_run / name
    file.unlink()  # a new file, so that other names of the old one keep their content
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(RunError) as raised:
        train(toys.recipe(), finished_run, resume=True)
    assert "\n" not in str(raised.value) and str(finished_run) in str(raised.value)


def test_two_processes_do_not_work_on_one_run(toys: Toys, finished_run: Path) -> None:
    before = outcome(finished_run)
    with alone_in(finished_run, "taken"), pytest.raises(RunError, match="another process"):
        train(toys.recipe(), finished_run, resume=True)
    assert differences(before, outcome(finished_run)) == []
    train(toys.recipe(), finished_run, resume=True)  # and the lock is gone with its holder


def test_foreign_files_beside_the_rounds_do_not_matter(toys: Toys, finished_run: Path) -> None:
    (finished_run / "rounds" / ".notes").mkdir()
    (finished_run / "ledger.csv.bak").write_text("mine")
    train(toys.recipe(), finished_run, resume=True)
    assert (finished_run / "rounds" / ".notes").exists()
    assert (finished_run / "ledger.csv.bak").read_text() == "mine"


def test_logs_are_cut_to_the_state(toys: Toys, finished_run: Path) -> None:
    before = outcome(finished_run)
    with (finished_run / "metrics.jsonl").open("a") as log:
        log.write(json.dumps({"round": 2, "client": "north"}) + '\n{"half')
    with (finished_run / "ledger.csv").open("a") as log:
        log.write("2,north,up,lora,1,")
    train(toys.recipe(), finished_run, resume=True)
    assert differences(before, outcome(finished_run)) == []
