"""A client's rounds with a real trunk, by a coordinator's orders: without engine or mixing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

import fellrec
from fellrec.config import RunConfig
from fellrec.data.sources import fetch_model
from fellrec.federation.deployment import orders
from fellrec.federation.deployment.agreement import agreed
from fellrec.federation.deployment.dispatch import trunk_outline
from fellrec.federation.deployment.grounds import Grounds
from fellrec.federation.deployment.party import Party
from fellrec.files import read_tensors, write_json, write_tensors
from fellrec.models import manifest
from fellrec.models.adapters import adapter
from fellrec.serving.part import Part, open_part
from fellrec.serving.ranking import Recommendation
from fellrec.serving.run import RunClient, load_run
from fellrec.split.service.channel import Link
from fellrec.split.service.control import TrunkControl
from fellrec.split.service.messages import Kept
from fellrec.split.service.settings import TlsFiles

CLIENT, OTHER, RUN = "north", "south", "first"
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Deployment:
    """A trunk process that has a run's adapters of CLIENT alone, and the files of all parties.

    trunk: "HOST:PORT". coordinator: CLIENT's. whole: a run directory with the tensors of CLIENT's
    best label, 1 of 2.
    """

    grounds: Grounds
    trunk: str
    coordinator: Coordinator
    whole: Path

    @property
    def part(self) -> Path:
        return self.grounds.place(CLIENT).run(RUN)

    @property
    def control(self) -> TrunkControl:
        assert self.coordinator.control is not None
        return self.coordinator.control

    def open(self, **changed: Any) -> Part:
        given = {"trunk": self.trunk, "retry_seconds": 0.0, **changed}
        return open_part(given.pop("path", self.part), given.pop("trunk"), **given)

    def expected(self) -> RunClient:
        return load_run(self.whole).client(CLIENT)


class Coordinator:
    """Gives one client's party and a trunk a coordinator's orders; trunk None where none is."""

    def __init__(
        self, grounds: Grounds, config: RunConfig, name: str, control: TrunkControl | None, at: str
    ) -> None:
        self.party = Party(grounds.place(name))
        self.control, self._name, self._at = control, name, at
        self._terms = {"run": RUN, "recipe": config.to_toml(), "version": fellrec.__version__}

    def hello(self) -> None:
        self.party.answer(orders.Hello(**self._terms), {})

    def round(self, t: int, *, improves: bool) -> tuple[Path, dict[str, Tensor]]:
        """Run a round in which the client's mixture is what it learned.

        Returns its folder of the new label, and what the trunk learned.
        """
        name, control = self._name, self.control
        trunk: dict[str, Tensor] = {}
        report, learned = self.party.answer(orders.Train(**self._placed(t, t, "train", t)), {})
        assert isinstance(report, orders.Report)
        if control is not None:
            _, trunk = control.collect(name, t)
            control.install(name, t + 1, trunk)
        order = orders.Receive(
            **self._placed(t, t, "serve", t + 1),
            reset=[],
            scored=not improves,
            best_score=0.0 if improves else 2.0,
            best_round=t,
            stale=0,
            stopped=False,
        )
        score, _ = self.party.answer(order, learned)
        assert isinstance(score, orders.Score)
        if control is not None:
            control.commit({name: Kept(label=t + 1, improved=improves)})
        return self.party.place.run(RUN) / "rounds" / str(t + 1), trunk

    def test(self, label: int) -> None:
        self.party.answer(orders.Test(**self._placed(label, label, "serve", label)), {})

    def _placed(self, t: int, label: int, mode: Any, trunk_label: int) -> dict[str, Any]:
        token = ""
        if self.control is not None:
            assert self.control.prepare(self._name, t, trunk_label, mode)
            token = self.control.token(self._name, t, mode, 60)
        own = {"round": t, "label": label, "trunk": self._at, "token": token}
        return {**self._terms, **own, "samples": 0, "valid_users": 0, "test_users": 0}


def write_whole(path: Path, config: RunConfig, label: Path, trunk: Tensors) -> None:
    """Write a run directory as a simulation leaves it, of one client's tensors."""
    path.mkdir()
    (path / "config.toml").write_text(config.to_toml())
    empty = dict.fromkeys(("dataset", "recommender", "strategy", "overall", "balance", "cost"))
    counts = {"seed": 0, "rounds": 1, "users": 0, "items": 0}
    write_json(path / "summary.json", {**empty, **counts, "clients": [{"id": CLIENT}]})
    for name in ("adapter", "private"):
        tensors = read_tensors(label / f"{name}.safetensors")
        write_tensors(path / "clients" / CLIENT / f"best_{name}.safetensors", tensors)
    write_tensors(path / "server" / CLIENT / "best_adapter.safetensors", trunk)


def train(grounds: Grounds, config: RunConfig, address: str) -> Deployment:
    """Run two rounds of CLIENT alone, of which the first is the better one."""
    start = trunk_outline(config)
    own, keys = grounds.keys.coordinator, grounds.keys
    tls = TlsFiles(own.certificate, own.key, keys.authority)
    control = TrunkControl(Link(address, tls), adapter(start))
    digest = manifest.digest(fetch_model(config.model.base))
    control.begin(RUN, manifest=digest, settings=agreed(config))
    it = Coordinator(grounds, config, CLIENT, control, address)
    it.hello()
    best, trunk = it.round(0, improves=True)
    whole = grounds.folder.with_name("whole")
    write_whole(whole, config, best, trunk)
    it.round(1, improves=False)
    return Deployment(grounds, address, it, whole)


def assert_same(found: list[Recommendation], expected: list[Recommendation]) -> None:
    assert [(e.item, e.title) for e in found] == [(e.item, e.title) for e in expected]
    assert [e.score for e in found] == pytest.approx([e.score for e in expected], abs=1e-6)
