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
from fellrec.serving.samples import samples
from tests.toys import SHOPS, Toys, titles

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
    said = "histories changed since this run began: 27 users and 36 items then, 27 and 36 now"
    run = fellrec.load_run(path)
    with pytest.raises(RunError, match=said):
        run.client(SHOPS[0]).evaluate()
    with pytest.raises(RunError, match=said):
        samples(run, 1)
    with pytest.raises(RunError, match=said):
        fellrec.load_run(path, {"evaluation.test_users": 3}).client(SHOPS[0]).evaluate()
    edit(moving, "inter", lambda text: text.replace("u0\ti3\t", "u0\ti0\t", 1))
    after = fellrec.load_run(path).client(SHOPS[0]).evaluate()
    assert {name: each.tolist() for name, each in after.items()} == {
        name: each.tolist() for name, each in before.items()
    }


def test_what_users_took_since_is_no_hindrance_to_recommending(moving: Toys, runs: Path) -> None:
    path = train(moving.recipe({"train.rounds": 1}), runs / "run").path
    history = titles()[:3]
    before = fellrec.load_run(path).client(SHOPS[0]).recommend(history)
    edit(moving, "inter", lambda text: text + "u0\ti35\t99\n")
    client = fellrec.load_run(path).client(SHOPS[0])
    assert client.recommend(history) == before
    assert client.items_of("u0")[-1] == 35
    # Where k-means would divide them anew, a user may have become another client's.
    path = train(
        moving.recipe({"clients.partition": "kmeans", "clients.count": 2}), runs / "k"
    ).path
    edit(moving, "inter", lambda text: text + "u0\ti34\t100\n")
    client = fellrec.load_run(path).clients()[0]
    assert len(client.recommend(history)) > 0
    with pytest.raises(RunError, match="histories changed"):
        client.recommend(user=client.users[0])


def test_other_items_are_refused(moving: Toys, runs: Path) -> None:
    path = train(moving.recipe({"train.rounds": 1}), runs / "run").path
    edit(moving, "item", lambda text: text.replace("story 0", "story nought", 1))
    with pytest.raises(RunError, match="the items changed since this run began"):
        fellrec.load_run(path).client(SHOPS[0])


def test_a_client_without_users_is_named(moving: Toys, runs: Path) -> None:
    path = train(moving.recipe({"train.rounds": 1}), runs / "run").path
    edit(moving, "user", lambda text: text.replace(SHOPS[0], SHOPS[1]))
    with pytest.raises(RunError, match=f"no users of client {SHOPS[0]} any more"):
        fellrec.load_run(path).client(SHOPS[0])


def test_another_division_is_refused_when_a_run_goes_on(moving: Toys, runs: Path) -> None:
    recipe = moving.recipe()
    with pytest.raises(TrainingError):
        train(recipe, runs / "run", observer=Stop())
    edit(moving, "user", lambda text: text.replace("u0\tnorth", "u0\tsouth"))
    with pytest.raises(RunError, match="whose users they are changed"):
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
