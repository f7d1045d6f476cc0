"""A run remembers which data it is of, and refuses others instead of mixing them up."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import fellrec
from fellrec.errors import RunError, TrainingError
from fellrec.federation.observer import Observer, RoundRecord
from fellrec.federation.runs import train
from fellrec.federation.same_data import DATA
from fellrec.federation.shares import share_data
from tests.toys import SHOPS, Toys

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def moving(toys: Toys, tmp_path: Path) -> Iterator[Toys]:
    """Return toys whose data a test may change, and change back."""
    yield replace(toys, data=Path(shutil.copytree(toys.data, tmp_path / "toys")))


def edit(toys: Toys, ending: str, change: Callable[[str], str]) -> None:
    path = toys.data / f"toys.{ending}"
    text = path.read_text()
    assert change(text) != text
    path.write_text(change(text))


class Stop(Observer):
    def round_ends(self, record: RoundRecord) -> None:
        raise TrainingError("stopped by the test")


def test_other_histories_are_refused(moving: Toys, runs: Path) -> None:
    path = train(moving.recipe({"train.rounds": 1}), runs / "run").path
    before = fellrec.load_run(path).client(SHOPS[0]).evaluate()
    edit(moving, "inter", lambda text: text.replace("u0\ti0\t", "u0\ti3\t", 1))
    said = "the items or histories changed since this run began: 27 users and 36 items then"
    with pytest.raises(RunError, match=said):
        fellrec.load_run(path).client(SHOPS[0])
    edit(moving, "inter", lambda text: text.replace("u0\ti3\t", "u0\ti0\t", 1))
    after = fellrec.load_run(path).client(SHOPS[0]).evaluate()
    assert {name: each.tolist() for name, each in after.items()} == {
        name: each.tolist() for name, each in before.items()
    }


def test_another_division_is_refused_when_a_run_goes_on(moving: Toys, runs: Path) -> None:
    recipe = moving.recipe()
    with pytest.raises(TrainingError):
        train(recipe, runs / "run", observer=Stop())
    edit(moving, "user", lambda text: text.replace("u0\tnorth", "u0\tsouth"))
    with pytest.raises(RunError, match="the division of users over clients changed"):
        train(recipe, runs / "run", resume=True)
    edit(moving, "user", lambda text: text.replace("u0\tsouth", "u0\tnorth"))
    assert train(recipe, runs / "run", resume=True).summary["rounds"] == 2


def test_a_run_of_an_earlier_version_opens(finished_run: Path) -> None:
    (finished_run / DATA).unlink()
    assert fellrec.load_run(finished_run).client(SHOPS[0]).name == SHOPS[0]


@pytest.mark.parametrize("text", ["[]", "{}", '{"digest": "0"}'])
def test_a_damaged_note_is_refused(finished_run: Path, text: str) -> None:
    (finished_run / DATA).write_text(text)
    with pytest.raises(RunError, match=re.escape(f"{finished_run / DATA}: is damaged")):
        fellrec.load_run(finished_run).client(SHOPS[0])


def test_users_names_are_not_written(toys: Toys, undisturbed: Path) -> None:
    shares = share_data(toys.recipe())
    noted = json.loads((undisturbed / DATA).read_text())
    assert noted["users"] == len(shares.split) and noted["items"] == len(shares.dataset.catalogue)
    assert not any(user in json.dumps(noted) for user in shares.split.users)
