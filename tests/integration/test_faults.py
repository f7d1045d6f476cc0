"""Every kind of process is killed amid a round, and a connection cut: `make test-faults`.

The reference is a simulation in which the same clients are lost in the same rounds, so that who
remains, what the lost ones come back with and what is counted are all compared.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from fellrec.config import RunConfig
from fellrec.federation.observer import Observer
from fellrec.split.service.settings import host_and_port
from tests.integration.deployed import (
    SECONDS,
    client_app,
    collected,
    events,
    failure,
    kill,
    metrics,
    same,
    server_app,
    simulated,
    started,
    until,
    wait_for_step,
)
from tests.split.running import Relay
from tests.toys import SHOPS, Toys

pytestmark = [
    pytest.mark.integration,
    pytest.mark.faults,
    pytest.mark.usefixtures("own_cache"),
]

LOST, ROUND, ROUNDS = SHOPS[0], 1, 3


@pytest.fixture
def config(toys: Toys) -> RunConfig:
    """Return a run whose rounds last long enough to be hit."""
    return toys.recipe(
        {
            "train.rounds": ROUNDS,
            "train.local_epochs": 200,
            "train.learning_rate": 0.001,
            "evaluation.before_mixing": False,
        }
    )


@pytest.fixture
def reference(config: RunConfig, tmp_path: Path) -> Iterator[Path]:
    """Return where a simulation may go."""
    yield tmp_path / "simulation"
    shutil.rmtree(tmp_path / "simulation", ignore_errors=True)


def assert_lost_once(run: Path) -> None:
    """One client is missing in one round, and in no other; nothing is there twice."""
    lines = metrics(run)
    assert lines.keys() == {(t, name) for t in range(ROUNDS) for name in SHOPS}
    assert all(len(found) == 1 for found in lines.values())
    assert [key for key, found in lines.items() if "failed" in found[0]] == [(ROUND, LOST)]


def test_a_client_s_process(config: RunConfig, tmp_path: Path, reference: Path) -> None:
    with started(config, tmp_path) as rehearsal:
        rehearsal.run(resume=False)
        wait_for_step(rehearsal, LOST, ROUND)
        kill(client_app(rehearsal, LOST))
        rehearsal.follow(Observer())
        out = collected(rehearsal, tmp_path / "run")
    assert_lost_once(out)
    same(out, simulated(config, reference, {(ROUND, LOST)}))


def test_a_supernode(config: RunConfig, tmp_path: Path, reference: Path) -> None:
    """Its client's process goes with it; started again, the node is the same client."""
    with started(config, tmp_path) as rehearsal:
        rehearsal.run(resume=False)
        wait_for_step(rehearsal, LOST, ROUND)
        (node,) = (rehearsal.processes.running.pop(f"client-{LOST}"),)
        for process in node.family():
            kill(process.pid)
        node.popen.wait()
        until(lambda: len(events(rehearsal, "round_ends")) > ROUND, "the end of the round")
        rehearsal.network.start_node(LOST)
        rehearsal.follow(Observer())
        out = collected(rehearsal, tmp_path / "run")
    lines = metrics(out)
    missed = {t for (t, name), found in lines.items() if name == LOST and "failed" in found[0]}
    assert ROUND in missed and len(missed) < ROUNDS
    same(out, simulated(config, reference, {(t, LOST) for t in missed}))


def test_the_trunk(config: RunConfig, tmp_path: Path, reference: Path) -> None:
    """All clients lose the round; the trunk comes back, and a new run goes on as if nothing was."""
    with started(config, tmp_path) as rehearsal:
        rehearsal.run(resume=False)
        wait_for_step(rehearsal, LOST, ROUND)
        kill(rehearsal.processes.running["trunk-0"].pid)
        assert f"no client completed round {ROUND}" in failure(rehearsal)
        assert {t for t, _ in metrics(rehearsal.grounds.coordinator)} == set(range(ROUND))
        rehearsal.start_trunk(0, rehearsal.addresses[0]).wait_for(" on ", SECONDS)
        rehearsal.run(resume=True)
        rehearsal.follow(Observer())
        out = collected(rehearsal, tmp_path / "run")
    same(out, simulated(config, reference))
    assert all(len(found) == 1 for found in metrics(out).values())


def test_one_trunk_of_two(config: RunConfig, tmp_path: Path) -> None:
    """Its clients lose the round, the others do not; at the next round they are with the other."""
    with started(config, tmp_path, trunks=2) as rehearsal:
        rehearsal.run(resume=False)
        number = wait_for_step(rehearsal, LOST, ROUND)
        kill(rehearsal.processes.running[f"trunk-{number}"].pid)
        rehearsal.follow(Observer())
        out = collected(rehearsal, tmp_path / "run")
    failed = {(t, name) for (t, name), found in metrics(out).items() if "failed" in found[0]}
    assert (ROUND, LOST) in failed and {t for t, _ in failed} == {ROUND}
    assert len(failed) < len(SHOPS)
    assert all(len(found) == 1 for found in metrics(out).values())
    notes = " ".join(note["text"] for note in events(rehearsal, "note"))
    assert "its clients go elsewhere" in notes


def test_a_cut_connection(config: RunConfig, tmp_path: Path, reference: Path) -> None:
    """It comes back within the budget of tries: nothing is lost but time."""
    with started(config, tmp_path) as rehearsal:
        relay = Relay(host_and_port(rehearsal.addresses[0], "trunk")[1])
        rehearsal.addresses = [relay.address]
        rehearsal.run(resume=False)
        for steps in (5, 50, 100):
            wait_for_step(rehearsal, LOST, ROUND, steps)
            relay.cut()
        rehearsal.follow(Observer())
        relay.close()
        assert relay.cuts > 3
        out = collected(rehearsal, tmp_path / "run")
    same(out, simulated(config, reference))
    assert all("failed" not in found[0] for found in metrics(out).values())


def test_a_coordinator_that_is_killed_goes_on_from_the_last_complete_round(
    toys: Toys, tmp_path: Path
) -> None:
    """A new run resumes the directory; no round is lost, none is counted twice."""
    config = toys.recipe(
        {
            "clients.partition": "random",
            "clients.count": 2,
            "train.local_epochs": 100,
            "evaluation.before_mixing": False,
        }
    )
    with started(config, tmp_path) as rehearsal:
        rehearsal.run(resume=False)
        wait_for_step(rehearsal, "c0", 1)
        kill(server_app(rehearsal))
        assert "process ended" in failure(rehearsal)
        done = metrics(rehearsal.grounds.coordinator)
        assert {t for t, _ in done} == {0}
        rehearsal.run(resume=True)
        rehearsal.follow(Observer())
        (begun,) = events(rehearsal, "round_begins")
        assert begun["round"] == 1
        out = collected(rehearsal, tmp_path / "run")
    same(out, simulated(config, tmp_path / "simulation"))
    assert all(len(lines) == 1 for lines in metrics(out).values())
