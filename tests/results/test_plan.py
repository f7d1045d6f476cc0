"""What a table needs: the untrained twin, the command of a cell, and when a cell stands."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest

from fellrec.config import RunConfig, parse_override
from fellrec.errors import RunError
from fellrec.federation import origin
from fellrec.federation.runs import difference, train
from fellrec.files import read_json, write_json
from fellrec.results.keeping import keep
from fellrec.results.plan import command, standing, untrained
from tests.toys import Toys


def resolved(line: str) -> RunConfig:
    """Read a command as the command line does."""
    words = shlex.split(line)
    assert words[:2] == ["fellrec", "train"] and words[-2] == "--out"
    assert set(words[3:-2:2]) <= {"--set"}
    return RunConfig.from_toml(words[2], dict(map(parse_override, words[4:-2:2])))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"train.rounds": 0},
        {"train.learning_rate": 1e-05, "lora.targets": ["attention", "mlp"], "seed": 7},
        {"data.source": "a 'quoted' folder/ä", "evaluation.before_mixing": False},
    ],
)
def test_the_command_gives_the_recipe_again(changes: dict[str, object]) -> None:
    config = RunConfig.from_toml("demo", changes)
    line = command(config, "mine")
    assert line.startswith("fellrec train demo ") and line.endswith(" --out runs/mine")
    assert not difference(resolved(line), config)


def test_a_recipe_of_its_own_is_named_by_its_cell(toys: Toys) -> None:
    line = command(toys.recipe(), "mine", "kept")
    assert line == "fellrec train kept/mine/config.toml --out runs/mine"


def test_untrained_differs_in_the_rounds_alone() -> None:
    config = RunConfig.from_toml("demo")
    base = untrained(config)
    assert base.name == "demo-untrained" and difference(config, base) == "train.rounds"
    assert command(base, base.name) == (
        "fellrec train demo --set train.rounds=0 --out runs/demo-untrained"
    )


def test_standing(toys: Toys, finished_runs: dict[str, Path], tmp_path: Path) -> None:
    config = toys.recipe()
    results, runs = tmp_path / "results", tmp_path / "runs"
    assert standing(config, results, runs) == "missing"
    run = Path(shutil.copytree(finished_runs["toys"], runs / "toys"))
    assert standing(config, results, runs) == "finished"
    (run / "summary.json").unlink()
    assert standing(config, results, runs) == "begun"
    train(config, run, resume=True)
    keep(run, results)
    assert standing(config, results, runs) == "kept"
    shutil.rmtree(runs)
    assert standing(config, results, runs) == "kept"
    changed = toys.recipe({"train.rounds": 3})
    assert standing(changed, results, runs) == "missing"
    renamed = toys.recipe({"name": "other"})
    assert standing(renamed, results, runs) == "missing"


def test_other_data_are_another_result(
    toys: Toys, finished_runs: dict[str, Path], tmp_path: Path
) -> None:
    source = Path(shutil.copytree(toys.data, tmp_path / "data" / "toys"))
    config = toys.recipe({"data.source": str(source)})
    run = train(config, tmp_path / "runs" / "toys").path
    keep(run, tmp_path / "results")
    assert standing(config, tmp_path / "results", tmp_path / "none") == "kept"
    items = source / "toys.item"
    items.write_text(items.read_text().replace("space story 0", "space story zero"))
    assert standing(config, tmp_path / "results", tmp_path / "none") == "missing"


def test_runs_of_other_code_or_recipe_are_refused(
    toys: Toys, finished_runs: dict[str, Path], tmp_path: Path
) -> None:
    config, runs = toys.recipe(), tmp_path / "runs"
    run = Path(shutil.copytree(finished_runs["toys"], runs / "toys"))
    with pytest.raises(RunError, match=r"train\.rounds differs"):
        standing(toys.recipe({"train.rounds": 3}), tmp_path / "results", runs)
    noted = read_json(run / "origin.json")
    noted["sessions"][0]["code"] = 16 * "0"
    write_json(run / "origin.json", noted)
    with pytest.raises(RunError, match="by other code"):
        standing(config, tmp_path / "results", runs)
    kept = keep(run, tmp_path / "results").cell  # as it is, when that is asked for
    assert kept.origin["code"] == [16 * "0"] != [origin.code_digest("hllm")]
    shutil.rmtree(run)
    assert standing(config, tmp_path / "results", runs) == "missing"
