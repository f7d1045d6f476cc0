"""A client on its own machine: orders in any order, kills, lost folders, and what it refuses."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fellrec
from fellrec.errors import (
    ConfigError,
    DataError,
    FellrecError,
    RunError,
    WireError,
)
from fellrec.federation.deployment import orders
from fellrec.federation.deployment import party as party_module
from fellrec.federation.deployment.client_store import ClientStore
from fellrec.federation.deployment.dispatch import Terms
from fellrec.federation.deployment.orders import (
    AbsentError,
    Failure,
    Hello,
    Introduction,
    Order,
    Receive,
    Report,
    Score,
    Train,
)
from fellrec.federation.deployment.party import Party
from fellrec.federation.deployment.place import Place
from fellrec.files import alone_in
from fellrec.models import manifest
from tests.federation.crashes import SECONDS
from tests.federation.deployment.test_client_store import Died, killed_at
from tests.federation.deployment.town import Town, tensors_below, town
from tests.toys import Toys

RUN = "run-1"
OVERRIDES = {"model.k_out": 2, "model.item_residual": "local"}  # no trunk: the client is all


@pytest.fixture
def alone(toys: Toys, tmp_path: Path) -> Iterator[Town]:
    """A client that holds all blocks."""
    with town(toys.recipe(OVERRIDES), tmp_path, trunks=0) as it:
        yield it


def placed(it: Town, round: int, label: int, **changes: Any) -> dict[str, Any]:
    return {
        **Terms.of(RUN, it.config).fields(),
        "round": round,
        "label": label,
        "samples": 0,
        "valid_users": 0,
        "test_users": 0,
        "trunk": "",
        "token": "",
        **changes,
    }


def receive(it: Town, round: int, label: int, **changes: Any) -> Receive:
    standing = {"scored": False, "best_score": 0.0, "best_round": 0, "stale": 0, "stopped": False}
    return Receive(**{**placed(it, round, label), "reset": [], **standing, **changes})


def go(it: Town, party: Party, round: int, label: int, **changes: Any) -> Mapping[str, Tensor]:
    """Train and take back what was trained; return it."""
    told, learned = party.answer(Train(**placed(it, round, label)), {})
    assert isinstance(told, Report)
    score, nothing = party.answer(receive(it, round, label, **changes), learned)
    assert isinstance(score, Score)
    assert nothing == {}
    return learned


def kept(folder: Path, label: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the tensors and the log of a label."""
    rounds = folder / "rounds" / str(label)
    lines = map(json.loads, (rounds / "metrics.jsonl").read_text().splitlines())
    log = [{key: value for key, value in line.items() if key not in SECONDS} for line in lines]
    return tensors_below(rounds), log


def alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        one[file].keys() == other[file].keys()
        and all(torch.equal(one[file][name], other[file][name]) for name in one[file])
        for file in one
    )


def test_a_kill_anywhere_costs_the_round_and_nothing_else(alone: Town) -> None:
    """Whatever a killed client had done, its next round is that of one that never began."""
    party, folder = alone.party("east"), alone.grounds.place("east").run(RUN)
    _, first = party.answer(Hello(**Terms.of(RUN, alone.config).fields()), {})
    go(alone, party, 0, 0)
    shutil.copytree(folder, alone.folder / "before")
    go(alone, party, 2, 1, scored=True, best_score=2.0, reset=sorted(first))
    expected = kept(folder, 3)

    def back() -> None:
        shutil.rmtree(folder)
        shutil.copytree(alone.folder / "before", folder)

    back()
    with killed_at(1000) as done:
        go(alone, party, 1, 1)
    calls = len(done)
    assert calls > 25
    for number in [*range(1, calls, 8), calls]:
        back()
        with pytest.raises(Died), killed_at(number):
            go(alone, party, 1, 1)
        again = alone.party("east")
        told, _ = again.answer(Hello(**Terms.of(RUN, alone.config).fields()), {})
        assert isinstance(told, Introduction)
        assert 1 in told.held
        go(alone, again, 2, 1, scored=True, best_score=2.0, reset=sorted(first))
        found = kept(folder, 3)
        assert alike(found[0], expected[0]), number
        assert found[1] == expected[1], number
        assert ClientStore(folder, "east").labels() == [1, 3]


def test_a_coordinator_that_comes_back_to_an_older_label(alone: Town) -> None:
    party, folder = alone.party("east"), alone.grounds.place("east").run(RUN)
    go(alone, party, 0, 0)
    expected = kept(folder, 1)
    go(alone, party, 1, 1)
    after = kept(folder, 2)
    go(alone, party, 1, 1)  # round 1 again
    assert alike(kept(folder, 2)[0], after[0])
    assert kept(folder, 2)[1] == after[1]
    go(alone, party, 0, 0)  # and from the start
    assert alike(kept(folder, 1)[0], expected[0])
    assert kept(folder, 1)[1] == expected[1]
    assert ClientStore(folder, "east").labels() == [1]


def test_a_client_without_its_folder_says_so_and_takes_the_copy(alone: Town) -> None:
    party, place = alone.party("east"), alone.grounds.place("east")
    go(alone, party, 0, 0)
    copy = ClientStore(place.run(RUN), "east").read(1, "adapter")
    assert copy is not None
    shutil.rmtree(place.run(RUN))
    for kind in (Train, orders.Test):
        with pytest.raises(AbsentError, match=r"client east no longer holds .* of 1 rounds"):
            party.answer(kind(**placed(alone, 1, 1)), {})
    assert Failure.of(AbsentError("x")).kind == "missing"
    told, learned = party.answer(Train(**placed(alone, 1, 1)), copy)
    assert isinstance(told, Report)
    assert isinstance(party.answer(receive(alone, 1, 1), learned)[0], Score)
    tested, _ = party.answer(orders.Test(**placed(alone, 2, 2)), {})
    assert isinstance(tested, orders.TestScores)
    assert tested.scored == 9
    assert set(tested.metrics) == {"recall@3", "ndcg@3", "recall@10", "ndcg@10"}


def test_nothing_is_received_that_was_not_trained(alone: Town) -> None:
    party = alone.party("east")
    learned = go(alone, party, 0, 0)
    for round, label in ((0, 0), (1, 1), (5, 1)):  # a second time, and without training
        with pytest.raises(RunError, match=f"nothing was trained in round {round} here"):
            party.answer(receive(alone, round, label), learned)
    assert ClientStore(alone.grounds.place("east").run(RUN), "east").labels() == [1]


@pytest.mark.parametrize("what", ["unknown", "shape", "infinite", "missing"])
def test_a_mixture_that_does_not_fit_is_refused(alone: Town, what: str) -> None:
    party, folder = alone.party("east"), alone.grounds.place("east").run(RUN)
    _, learned = party.answer(Train(**placed(alone, 0, 0)), {})
    sent = dict(learned)
    name = min(sent)
    if what == "unknown":
        sent["more"] = torch.ones(2)
    elif what == "shape":
        sent[name] = torch.ones(1)
    elif what == "infinite":
        sent[name] = torch.full_like(sent[name], torch.inf)
    else:
        del sent[name]
    with pytest.raises(FellrecError):
        party.answer(receive(alone, 0, 0), sent)
    assert ClientStore(folder, "east").labels() == []


@pytest.mark.parametrize("what", ["unknown", "infinite"])
def test_a_copy_that_does_not_fit_is_not_kept(alone: Town, what: str) -> None:
    party, folder = alone.party("east"), alone.grounds.place("east").run(RUN)
    _, start = party.answer(Hello(**Terms.of(RUN, alone.config).fields()), {})
    sent = dict(start)
    sent |= {"more": torch.ones(2)} if what == "unknown" else {min(sent): sent[min(sent)] / 0}
    with pytest.raises(FellrecError):
        party.answer(Train(**placed(alone, 3, 3)), sent)
    assert ClientStore(folder, "east").labels() == []


def test_two_processes_of_one_client_wait_for_each_other(
    alone: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    party, folder = alone.party("east"), alone.grounds.place("east").run(RUN)
    folder.mkdir()
    hello = Hello(**Terms.of(RUN, alone.config).fields())
    monkeypatch.setattr(party_module, "_PATIENCE", 0.2)
    with alone_in(folder, "busy"):
        with pytest.raises(RunError, match="another process of this client works on the run"):
            party.answer(hello, {})
        monkeypatch.setattr(party_module, "_PATIENCE", 60.0)
        answers: list[object] = []
        second = threading.Thread(target=lambda: answers.append(party.answer(hello, {})[0]))
        second.start()
        second.join(0.3)
        assert second.is_alive()
        assert not answers
    second.join()
    assert isinstance(answers[0], Introduction)


def test_a_client_tells_what_it_has_and_no_more(alone: Town) -> None:
    told, start = alone.party("north").answer(Hello(**Terms.of(RUN, alone.config).fields()), {})
    assert isinstance(told, Introduction)
    assert (told.client, told.users, told.items, told.held) == ("north", 9, 36, [])
    assert told.manifest == manifest.digest(Path(alone.config.model.base))
    assert all(tensor.dtype == torch.float32 for tensor in start.values())
    said = told.model_dump_json()
    assert "u1" not in said  # no user
    assert "story" not in said  # no title
    assert not [name for name in start if "residual" in name]  # private here


def test_what_a_client_refuses(alone: Town, tmp_path: Path) -> None:
    place, fields = alone.grounds.place("east"), Terms.of(RUN, alone.config).fields()
    party = Party(place)
    with pytest.raises(ConfigError, match=f"runs fellrec {fellrec.__version__}, the coordinator 0"):
        party.answer(Hello(**{**fields, "version": "0"}), {})
    with pytest.raises(ConfigError, match="the coordinator's recipe"):
        party.answer(Hello(**{**fields, "recipe": "train = 1"}), {})
    with pytest.raises(ConfigError, match="does not know the order Order"):
        party.answer(Order(**fields), {})
    other = alone.config.to_toml().replace("leave-one-out", "last-5")
    with pytest.raises(DataError, match="is split 'leave-one-out', the recipe asks for 'last-5'"):
        party.answer(Hello(**{**fields, "recipe": other}), {})
    nowhere = Place(tmp_path / "no.fellrec", place.folder, place.tls, "east")
    with pytest.raises(DataError, match=r"no\.fellrec"):
        Party(nowhere).answer(Hello(**fields), {})


def test_a_recipe_with_a_trunk_needs_one(toys: Toys, tmp_path: Path) -> None:
    refused = pytest.raises(WireError, match="the coordinator named no trunk")
    with town(toys.recipe(), tmp_path, trunks=0) as it, refused:
        it.party("east").answer(Train(**placed(it, 0, 0)), {})
