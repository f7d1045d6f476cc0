"""Two trunks that are lost, come back, drain or lag behind: clients get the coordinator's copy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fellrec.errors import WireError
from fellrec.federation.deployment.dispatch import trunk_outline
from fellrec.federation.deployment.trunk import check_trunk
from fellrec.federation.deployment.trunks import Trunks
from fellrec.federation.members import Mixed
from fellrec.federation.store import Standing
from fellrec.files import read_tensors
from fellrec.models.adapters import start
from fellrec.split.service import control
from fellrec.split.service.channel import Link
from fellrec.split.service.messages import Kept
from fellrec.split.service.settings import TlsFiles
from fellrec.split.service.transport import GrpcTransport, greet
from tests.federation.deployment.town import Town, town
from tests.split.running import equal
from tests.toys import Toys

RUN = "run-1"


@pytest.fixture(autouse=True)
def ask_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the coordinator ask a lost trunk once: asking for longer changes nothing here."""
    monkeypatch.setattr(control, "_FIRST_PAUSE", 1e9)


class Coordinator:
    """The trunks of a town as one coordinator process sees them, and a client that comes."""

    def __init__(self, it: Town) -> None:
        self.it, self.notes = it, []
        self.manifest, self.agreed = check_trunk(it.config)
        self.start = start(trunk_outline(it.config), it.config.seed)
        own, authority = it.grounds.keys.coordinator, it.grounds.keys.authority
        tls = TlsFiles(own.certificate, own.key, authority)
        self.trunks = Trunks(
            [Link(f"127.0.0.1:{trunk.port}", tls) for trunk in it.trunks],
            self.start,
            run=RUN,
            manifest=self.manifest,
            settings=self.agreed,
            token_seconds=60,
            note=self.notes.append,
        )
        it.closing.callback(self.trunks.close)

    notes: list[str]

    def adapter(self, value: float) -> dict[str, Tensor]:
        return {name: torch.full_like(tensor, value) for name, tensor in self.start.items()}

    def round(self, name: str, t: int, label: int, copy: float, value: float) -> str:
        """Let a client come for a round, and give it a mixture; return its trunk's address."""
        address, token = self.trunks.let_in(name, t, label, "train", lambda: self.adapter(copy))
        greeting = greet(manifest=self.manifest, settings=self.agreed, token=token)
        client = GrpcTransport(Link(address, self.it.grounds.place(name).tls), greeting)
        try:
            client.open()
            _, self.trained = self.trunks.collect(name, t)
        finally:
            client.close()
        reset = list(self.start)
        self.trunks.install(name, t + 1, Mixed({}, self.adapter(value), reset, Standing()))
        return address

    trained: dict[str, Tensor]

    def kept(self, place: int, name: str, label: int) -> dict[str, Tensor]:
        """Read a committed adapter from a trunk's folder."""
        folder = self.it.grounds.folder / f"trunk-{place}" / RUN / "clients" / name
        return read_tensors(folder / str(label) / "adapter.safetensors")


@pytest.fixture
def two(toys: Toys, tmp_path: Path) -> Iterator[Town]:
    with town(toys.recipe(), tmp_path, trunks=2, connected=False) as it:
        yield it


def addresses(it: Town) -> list[str]:
    return [f"127.0.0.1:{trunk.port}" for trunk in it.trunks]


def test_clients_are_spread_and_stay(two: Town) -> None:
    first, second = addresses(two)
    it = Coordinator(two)
    names = ("east", "north", "south")
    assert [it.round(name, 0, 0, 9, 1) for name in names] == [first, second, first]
    assert equal(it.trained, it.start)  # label 0 is the start, whatever the copy says
    it.trunks.commit({name: Kept(label=1) for name in names})
    it.trunks.attend()
    assert [it.round(name, 1, 1, 1, 2) for name in names] == [first, second, first]
    assert equal(it.trained, it.adapter(1))
    it.trunks.drop([*names, "nobody"])
    with pytest.raises(WireError, match="trained nothing in round 1"):
        it.trunks.collect("east", 1)
    assert it.notes == []


def test_a_trunk_that_is_lost_and_back(two: Town) -> None:
    first, second = addresses(two)
    it = Coordinator(two)
    assert it.round("east", 0, 0, 9, 1) == first
    assert it.round("north", 0, 0, 9, 2) == second
    two.trunks[1].stop(0.0)
    it.trunks.commit({name: Kept(label=1) for name in ("east", "north")})
    assert equal(it.kept(0, "east", 1), it.adapter(1))
    assert "it gets the adapters again" in it.notes[-1]
    it.trunks.drop(["north"])  # nobody to tell
    it.trunks.attend()
    assert "its clients go elsewhere" in it.notes[-1]
    assert it.round("north", 1, 1, 2, 3) == first
    assert equal(it.trained, it.adapter(2))  # the coordinator's copy
    it.trunks.commit({"north": Kept(label=2)})
    two.start_trunk(1)
    it.trunks.attend()
    assert it.notes[-1] == f"the trunk at {second} is back"
    assert it.round("north", 2, 2, 3, 4) == first  # it stays where it is
    two.trunks[0].stop(0.0)
    it.trunks.attend()
    assert it.round("north", 3, 2, 3, 5) == second
    assert equal(it.trained, it.adapter(3))
    two.trunks[1].stop(0.0)
    with pytest.raises(WireError, match=r"no trunk is left: .*Connection refused"):
        it.trunks.attend()


def test_a_trunk_that_restarts_between_rounds_begins_again(two: Town) -> None:
    first, _ = addresses(two)
    it = Coordinator(two)
    it.round("east", 0, 0, 9, 1)
    it.trunks.commit({"east": Kept(label=1)})
    two.trunks[0].stop(0.0)
    two.start_trunk(0)
    it.trunks.attend()
    assert it.notes == [f"the trunk at {first} is back"]
    assert it.round("east", 1, 1, 9, 2) == first
    assert equal(it.trained, it.adapter(1))  # its own, which outlived it


def test_nobody_is_sent_to_a_trunk_that_is_about_to_stop(two: Town) -> None:
    it = Coordinator(two)
    two.trunks[0].registry.draining = True
    for t in range(3):
        it.trunks.attend()
        assert it.round("east", t, 0, 9, 1) == addresses(two)[1]
        it.trunks.drop(["east"])
    assert len(it.notes) == 1
    assert "about to stop; its clients go elsewhere" in it.notes[0]


def test_a_run_begins_with_the_trunks_that_are_there(two: Town) -> None:
    first, second = addresses(two)
    two.trunks[0].stop(0.0)
    it = Coordinator(two)
    assert first in it.notes[0]
    assert it.round("east", 0, 0, 9, 1) == second
    two.start_trunk(0)
    it.trunks.attend()
    assert it.notes[1:] == [f"the trunk at {first} is back"]
    two.trunks[0].stop(0.0)
    two.trunks[1].stop(0.0)
    with pytest.raises(WireError, match="Connection refused"):
        Coordinator(two)


def test_a_label_that_the_coordinator_never_completed_is_not_gone_on_from(two: Town) -> None:
    """The first trunk committed round 0, which the coordinator lost and then did elsewhere."""
    first, second = addresses(two)
    it = Coordinator(two)
    assert it.round("east", 0, 0, 9, 1) == first
    it.trunks.commit({"east": Kept(label=1)})
    two.trunks[0].stop(0.0)
    it = Coordinator(two)  # it died before it saved the round, and begins without that trunk
    assert it.round("east", 0, 0, 9, 2) == second
    it.trunks.commit({"east": Kept(label=1)})
    two.start_trunk(0)
    two.trunks[1].stop(0.0)
    it.trunks.attend()
    assert it.round("east", 1, 1, 2, 3) == first
    assert equal(it.trained, it.adapter(2))
