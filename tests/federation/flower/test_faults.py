"""Whoever fails, the run ends as a simulation in which the same failed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest
from flwr.app import Error, Message

from fellrec.errors import FellrecError, RunError, TrainingError, WireError
from fellrec.federation import runs
from fellrec.federation.deployment.trunks import Trunks
from fellrec.federation.flower.strategy import FellrecStrategy
from fellrec.federation.members import Mixed, Trained
from fellrec.federation.simulation import Simulation
from fellrec.federation.store import CLIENT, SERVER, RunStore
from fellrec.split.service import control
from tests.federation.deployment.comparing import check_equal, check_moments
from tests.federation.deployment.town import LINK, Town, town
from tests.toys import Toys

Mishap = tuple[int, str]
"""A round, and a client."""


@pytest.fixture(autouse=True)
def ask_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the coordinator ask a lost trunk once: asking for longer changes nothing here."""
    monkeypatch.setattr(control, "_FIRST_PAUSE", 1e9)


def simulate(
    toys: Toys,
    monkeypatch: pytest.MonkeyPatch,
    out: Path,
    recipe: dict[str, object],
    *,
    untrained: Sequence[Mishap] = (),
    unscored: Sequence[Mishap] = (),
    forgotten: Sequence[tuple[int, str, str, str]] = (),
) -> Path:
    """Simulate a run in which clients fail to train, or to take their mixture.

    forgotten: (round, side, client, file) that are gone when the round begins.
    """

    class Unlucky(Simulation):
        def train(
            self, t: int, drawn: Sequence[str]
        ) -> Iterator[tuple[str, Trained | FellrecError]]:
            for when, side, name, file in forgotten:
                if when == t:
                    path = out / "rounds" / str(t) / side / name / f"{file}.safetensors"
                    path.unlink()
            for name, trained in super().train(t, drawn):
                yield name, WireError("it failed") if (t, name) in untrained else trained

        def receive(
            self, t: int, mixtures: Iterable[tuple[str, Mixed]]
        ) -> Iterator[tuple[str, float | FellrecError]]:
            for name, score in super().receive(t, mixtures):
                yield name, WireError("it failed") if (t, name) in unscored else score

    with monkeypatch.context() as patch:
        patch.setattr(runs, "Simulation", Unlucky)
        return runs.train(toys.recipe(recipe), out).path


class Script:
    """Makes a client's answers go wrong: what happens at its n-th message of a kind."""

    def __init__(self, it: Town) -> None:
        self._it = it
        self._counts: dict[tuple[str, str], int] = {}
        self.acts: dict[tuple[str, str, int], Callable[[Message], Message]] = {}
        for name in it.names:
            it.grid.nodes[it.node(name)] = partial(self._answer, name)

    def lose(
        self, name: str, kind: str, number: int, then: Callable[[], object] = lambda: None
    ) -> None:
        """Let the client do all that it is told, but its answer never comes: its process died."""

        def act(message: Message) -> Message:
            self._it.client(name, message)
            then()
            return died(message)

        self.acts[name, kind, number] = act

    def _answer(self, name: str, message: Message) -> Message:
        kind = message.metadata.message_type
        number = self._counts.get((name, kind), 0)
        self._counts[name, kind] = number + 1
        act = self.acts.get((name, kind, number), partial(self._it.client, name))
        return act(message)


def died(message: Message) -> Message:
    """Return what Flower answers for a process that died."""
    reply = Message(Error(8, "the ClientApp process\nis gone"), reply_to=message)
    reply.metadata.__dict__["_src_node_id"] = LINK
    return reply


def labels(run: Path) -> dict[str, int]:
    """Return how many rounds each client's adapter went through."""
    return {name: each.label for name, each in RunStore(run).state().standings.items()}


def test_clients_that_fail_keep_their_adapter_and_rejoin(
    toys: Toys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe: dict[str, object] = {"train.rounds": 4, "balance.merge": "product", "model.k_out": 2}
    expected = simulate(
        toys,
        monkeypatch,
        tmp_path / "simulated",
        recipe,
        untrained=[(0, "east"), (2, "south")],
        unscored=[(1, "north")],
    )
    between: list[dict[str, int]] = []
    with town(toys.recipe(recipe), tmp_path, trunks=0) as it:
        script = Script(it)
        script.lose("east", "train", 0)
        script.lose("north", "evaluate", 1)

        def after(rounds: int) -> None:
            between.append(labels(tmp_path / "run"))
            if rounds == 2:  # its SuperNode is gone for a round
                it.grid.remove(it.node("south"))
            elif rounds == 3:
                it.connect("south")

        run = it.conduct(after=after)
        check_equal(it, run, expected)
        check_moments(it, expected, 4)
    assert between == [
        {"north": 1, "south": 1},
        {"east": 2, "north": 1, "south": 2},
        {"east": 3, "north": 3, "south": 2},
        {"east": 4, "north": 4, "south": 4},
    ]


class Died(BaseException):
    """Stands for a kill: nothing catches it."""


def dying(call: Callable[..., object], number: int) -> Callable[..., object]:
    """Return a function whose n-th call does not come back, nor begins."""
    left = [number]

    def wrapper(*args: object, **kwargs: object) -> object:
        left[0] -= 1
        if left[0] == 0:
            raise Died
        return call(*args, **kwargs)

    return wrapper


def test_a_coordinator_that_dies_goes_on_to_the_same_end(
    toys: Toys, tmp_path: Path, undisturbed: Path
) -> None:
    """It dies before the trunk's commit, between the trunk's and its own, and before the test."""
    deaths: list[tuple[type, str, int, dict[str, int]]] = [
        (RunStore, "commit", 1, {}),
        (Trunks, "commit", 2, {"east": 1, "north": 1, "south": 1}),
        (RunStore, "commit", 1, {"east": 1, "north": 1, "south": 1}),
        (FellrecStrategy, "test", 1, {"east": 2, "north": 2, "south": 2}),
    ]
    with town(toys.recipe(), tmp_path) as it:
        for number, (owner, name, call, left) in enumerate(deaths):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(owner, name, dying(getattr(owner, name), call))
                with pytest.raises(Died):
                    it.conduct(resume=number > 0)
            assert labels(tmp_path / "run") == left
        run = it.conduct(resume=True)
        check_equal(it, run, undisturbed)
        check_moments(it, undisturbed, 2)
        # Once more: the run is finished, and finishing it again changes nothing.
        check_equal(it, it.conduct(resume=True), undisturbed)


def test_a_lost_trunks_clients_go_elsewhere_and_their_moments_start_anew(
    toys: Toys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe: dict[str, object] = {"train.rounds": 4}
    lost = [(2, "north"), (3, "east"), (3, "south"), (3, "north")]
    expected = simulate(
        toys,
        monkeypatch,
        tmp_path / "simulated",
        recipe,
        unscored=[(1, "north")],
        forgotten=[(t, SERVER, name, "optimiser") for t, name in lost],
    )
    with town(toys.recipe(recipe), tmp_path, trunks=2) as it:
        first, second = it.trunks
        # Clients fill the trunks in turn: north is at the second, which ends amid a round.
        Script(it).lose("north", "evaluate", 1, partial(second.stop, 0.0))

        def after(rounds: int) -> None:
            if rounds == 3:
                it.start_trunk(1)
                first.stop(0.0)

        run = it.conduct(after=after)
        check_equal(it, run, expected)
        notes = "\n".join(it.notes())
    assert f"{second.port}" in notes and "its clients go elsewhere" in notes
    assert f"the trunk at 127.0.0.1:{second.port} is back" in notes


def test_a_client_that_lost_its_folder_gets_the_coordinators_copy(
    toys: Toys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe: dict[str, object] = {
        "train.rounds": 4,
        "train.learning_rate": 0.1,
        "model.k_out": 2,
    }
    gone = [(2, CLIENT, "north", "optimiser")]
    expected = simulate(
        toys,
        monkeypatch,
        tmp_path / "simulated",
        recipe,
        untrained=[(1, "north")],
        forgotten=gone,
    )
    with town(toys.recipe(recipe), tmp_path, trunks=0) as it:

        def after(rounds: int) -> None:
            if rounds == 1:
                shutil.rmtree(it.folder_of("north"))

        run = it.conduct(after=after)
        assert any("no longer holds its adapter of 1 rounds" in note for note in it.notes())
        assert labels(run) == labels(expected) == {"east": 4, "north": 4, "south": 4}
        # Its best adapter was lost, too: it is tested with the coordinator's.
        assert RunStore(run).state().standings["north"].best_round == 1
        check_equal(it, run, expected)
        check_moments(it, expected, 4)


def test_a_round_with_too_few_clients_ends_the_run_which_can_go_on(
    toys: Toys, tmp_path: Path
) -> None:
    recipe = toys.recipe({"clients.minimum": 3, "model.k_out": 2})
    expected = runs.train(recipe, tmp_path / "simulated").path
    with town(recipe, tmp_path, trunks=0) as it:
        script = Script(it)
        script.lose("south", "evaluate", 0)
        script.lose("east", "train", 1)
        with pytest.raises(TrainingError, match=r"^2 of 3 clients completed round 0: .*south"):
            it.conduct()
        with pytest.raises(TrainingError, match=r"^2 of 3 clients completed round 0: .*east"):
            it.conduct(resume=True)
        check_equal(it, it.conduct(resume=True), expected)


def test_nobody_there_ends_the_run_in_a_line(toys: Toys, tmp_path: Path) -> None:
    with town(toys.recipe({"model.k_out": 2}), tmp_path, trunks=0, connected=False) as it:
        with pytest.raises(RunError, match=r"no client came .* start the SuperNodes .east, north"):
            it.conduct()
        for name in it.names[:2]:
            it.connect(name)
        run = it.conduct(resume=True)
        assert any("not there: south; the run begins without" in note for note in it.notes())
        assert labels(run) == {"east": 2, "north": 2}
