"""A deployment's files: each party's own, and what each is told is what is there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fellrec.data.client_file import read_client_file
from fellrec.data.interactions import Split
from fellrec.data.partition import Partition
from fellrec.errors import ConfigError, DataError, FellrecError, RunError
from fellrec.federation.deployment.grounds import Grounds
from fellrec.federation.deployment.place import KEYS, Place, is_part, noted
from fellrec.federation.flower.settings import ServerSettings
from fellrec.federation.shares import Shares, share_data
from tests.toys import Toys


@pytest.fixture
def shares(toys: Toys) -> Shares:
    return share_data(toys.recipe())


def named(shares: Shares, *names: str) -> Shares:
    partition = Partition(names, shares.partition.assignment)
    return Shares(shares.dataset, shares.split, partition, shares.quotas)


def test_every_party_finds_its_own(toys: Toys, tmp_path: Path, shares: Shares) -> None:
    grounds = Grounds.prepare(tmp_path / "it", toys.recipe(), shares)
    assert grounds.names == ("east", "north", "south")
    for number, name in enumerate(grounds.names):
        told = grounds.node_config(name)
        assert tuple(told) == KEYS
        place = Place.of(told)
        assert place.name == name
        place.tls.read()
        own = read_client_file(place.data)
        assert list(own.split.users) == list(shares.of(number).users)
        assert np.array_equal(own.split.train.values, shares.of(number).train.values)
        assert place.data.stat().st_mode & 0o077 == 0
    coordinator = ServerSettings.of(grounds.run_config())
    assert coordinator.config == toys.recipe()
    assert coordinator.clients == grounds.names
    with pytest.raises(RunError, match="is not empty; choose another folder"):
        Grounds.prepare(tmp_path / "it", toys.recipe(), shares)


def test_a_file_in_the_place_of_the_folder(toys: Toys, tmp_path: Path, shares: Shares) -> None:
    file = tmp_path / "it.parties"
    file.write_text("mine")
    with pytest.raises(RunError, match="is no folder"):
        Grounds.prepare(file, toys.recipe(), shares)
    assert file.read_text() == "mine"


@pytest.mark.parametrize("name", ["a/b", "..", "a,b", " a", "coordinator", "ü" * 33])
def test_names_that_some_party_could_not_use(
    toys: Toys, tmp_path: Path, shares: Shares, name: str
) -> None:
    with pytest.raises(FellrecError, match=r"name|called"):
        Grounds.prepare(tmp_path / "it", toys.recipe(), named(shares, "x", name, "y"))


class Interrupted(Shares):
    """Ctrl-C when two clients have their files."""

    def of(self, client: int) -> Split:
        if client == 2:
            raise KeyboardInterrupt
        return super().of(client)


@pytest.mark.parametrize("there", [True, False])
def test_what_can_not_be_prepared_leaves_nothing(
    toys: Toys, tmp_path: Path, shares: Shares, there: bool
) -> None:
    folder = tmp_path / "runs" / "it.parties"
    if there:
        folder.mkdir(parents=True)
        folder.chmod(0o750)

    def found() -> list[tuple[Path, int, int]]:
        return [(path, path.stat().st_mode, path.stat().st_ino) for path in tmp_path.rglob("*")]

    before = found()
    catalogue = shares.dataset.catalogue
    titles = ("\ud800", *catalogue.titles[1:])  # is in no UTF-8
    odd = replace(shares.dataset, catalogue=replace(catalogue, titles=titles))
    for given, error in (
        (named(shares, "x", "coordinator", "y"), ConfigError),
        (replace(shares, dataset=odd), DataError),
        (Interrupted(**vars(shares)), KeyboardInterrupt),
    ):
        with pytest.raises(error):
            Grounds.prepare(folder, toys.recipe(), given)
        assert found() == before
    assert Grounds.prepare(folder, toys.recipe(), shares).names == shares.partition.names


def test_odd_names_that_all_can_use(toys: Toys, tmp_path: Path, shares: Shares) -> None:
    odd = named(shares, "two words", "émile", "it's=so")
    grounds = Grounds.prepare(tmp_path / "a folder", toys.recipe(), odd)
    assert ServerSettings.of(grounds.run_config()).clients == odd.partition.names
    assert [Place.of(grounds.node_config(name)).name for name in grounds.names] == list(
        odd.partition.names
    )


def test_a_place_remembers_what_serving_takes(toys: Toys, tmp_path: Path, shares: Shares) -> None:
    grounds = Grounds.prepare(tmp_path / "it", toys.recipe(), shares)
    place = Place.of(grounds.node_config("east"))
    folder = place.run("run-1")
    folder.mkdir()
    assert not is_part(folder)
    with pytest.raises(RunError, match="not a client's part of a run"):
        noted(folder)
    place.note("run-1")
    assert is_part(folder)
    again, run = noted(folder)
    assert run == "run-1"
    assert (again.name, again.data, again.tls) == (place.name, place.data, place.tls)
    assert again.folder == folder.parent
    for text in ("{}", "[]", '{"client": 1}', "{"):
        (folder / "client.json").write_text(text)
        with pytest.raises(RunError, match=r"client\.json: (is damaged|can't be read)"):
            noted(folder)


@pytest.mark.parametrize("key", KEYS)
def test_a_node_that_is_told_too_little(key: str) -> None:
    whole: dict[str, object] = dict.fromkeys(KEYS, "x")
    for value in (None, "", 7):
        with pytest.raises(ConfigError, match=f"--node-config lacks {key}; it needs data, folder"):
            Place.of({**whole, key: value})
    del whole[key]
    with pytest.raises(ConfigError, match=f"lacks {key}"):
        Place.of(whole)


def test_a_node_whose_overrides_can_not_be_read() -> None:
    told: dict[str, object] = dict.fromkeys(KEYS, "x")
    line = r"^overrides of --node-config: can't be read \(No closing quotation\); write KEY=VALUE"
    with pytest.raises(ConfigError, match=line):
        Place.of({**told, "overrides": "model.base='/a folder"})
