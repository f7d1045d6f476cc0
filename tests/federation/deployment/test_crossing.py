"""What the servers of a deployment see: declared fields, and nothing of a user or an item."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fellrec.data.client_file import ClientFile, read_client_file
from fellrec.federation import workspace
from fellrec.federation.deployment import party
from fellrec.federation.deployment.orders import Report
from fellrec.split.remote import RemoteTrunk
from fellrec.split.service.recorder import Recorder
from fellrec.split.wire import Frame
from tests.federation.deployment.planting import (
    FILLERS,
    SMALL,
    ledger_of,
    permuted,
    recorded,
    secrets,
    seen,
)
from tests.federation.deployment.recordings import (
    check_recording,
    counted,
    crossed,
    differences,
    found,
)
from tests.federation.deployment.town import Town
from tests.toys import ITEMS, Toys


@pytest.fixture(scope="module")
def place() -> npt.NDArray[np.int64]:
    """Where each item goes when the catalogue is shuffled."""
    return np.random.default_rng(5).permutation(FILLERS + ITEMS)


def test_all_that_servers_see_is_declared_counted_and_clean(plain: Town) -> None:
    folder = plain.folder / "recording"
    explained = check_recording(folder, ledger=ledger_of(plain), planted=secrets(plain))
    kinds = {each.kind for each in explained}
    assert kinds == {
        *("Hello", "Introduction", "Train", "Report", "Receive", "Score", "Test", "TestScores"),
        *("Begin", "Prepare", "Collect", "Trained", "Install", "Commit", "Status", "Standing"),
        *("Done", "Greeting", "Welcome", "FORWARD", "OUTPUT", "GRADIENT", "INPUT_GRADIENT"),
        *("NORM", "end"),
    }
    assert sorted({each.client for each in explained}) == sorted([*plain.names, "coordinator"])
    (begin,) = (each for each in explained if each.kind == "Begin")
    assert begin.value("key") == "0" * 64  # who had it could make tokens


@pytest.mark.parametrize(
    "changes",
    [
        {"model.recommender": "recformer", "split.codec": "fp16", "lora.targets": ["attention"]},
        {
            "model.recommender": "bigrec",
            "split.codec": "int8",
            "lora.freeze_a": True,
            "train.micro_batches": 2,
            "train.in_flight": 2,
        },
    ],
    ids=["recformer", "bigrec"],
)
def test_so_it_is_with_texts(toys: Toys, tmp_path: Path, changes: dict[str, object]) -> None:
    base = toys.lm if changes["model.recommender"] == "bigrec" else toys.bert
    config = toys.recipe({**SMALL, "model.base": str(base), **changes})
    it = recorded(config, tmp_path / "it")
    folder = it.folder / "recording"
    explained = check_recording(folder, ledger=ledger_of(it), planted=secrets(it))
    written = {part.name for each in explained for part in each.parts}
    assert ("beams" in written) is (config.model.recommender == "bigrec")


@pytest.mark.parametrize("residual", ["local", "shared"])
def test_neither_the_order_of_items_nor_users_names_can_be_told(
    toys: Toys, tmp_path: Path, plain: Town, place: npt.NDArray[np.int64], residual: str
) -> None:
    config = toys.recipe({**SMALL, "model.item_residual": residual})
    one = plain if residual == "local" else recorded(config, tmp_path / "one")
    other = recorded(config, tmp_path / "other", permuted(place))
    assert differences(seen(one), seen(other), items=place) == set()
    # A shared residual is a table by item, and the digest is the catalogue's in its order.
    told = {"Introduction.catalogue"}
    if residual == "shared":
        told |= {"Report.item_residual", "Receive.item_residual"}
    assert differences(seen(one), seen(other)) == told


def test_an_item_that_a_client_lets_slip_is_noticed(
    toys: Toys, tmp_path: Path, place: npt.NDArray[np.int64], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both slips are of fields that are declared: only another catalogue shows them."""
    slipped: list[int] = []

    def read(path: Path) -> ClientFile:
        file = read_client_file(path)
        slipped[:] = [int(file.split.train[0][0])]
        return file

    class Leaky(RemoteTrunk):
        def _forward(self, *args: Any, **kwargs: Any) -> Frame:
            frame = super()._forward(*args, **kwargs)
            return frame if frame.training else replace(frame, step=slipped[0])

    def report(**told: Any) -> Report:
        return Report(**{**told, "examples": slipped[0]})

    monkeypatch.setattr(party, "read_client_file", read)
    monkeypatch.setattr(workspace, "RemoteTrunk", Leaky)
    monkeypatch.setattr(party, "Report", report)
    config = toys.recipe(SMALL)
    one = recorded(config, tmp_path / "one")
    other = recorded(config, tmp_path / "other", permuted(place))
    found = differences(seen(one), seen(other), items=place)
    assert found == {"FORWARD.step", "OUTPUT.step", "Report.examples"}


def test_planted_texts_and_histories_are_found_wherever_they_are(
    plain: Town, tmp_path: Path
) -> None:
    name = plain.names[0]
    file = read_client_file(plain.grounds.place(name).data)
    items = file.split.train[0][:3].astype("<i4")
    title = file.catalogue.titles[FILLERS + 3]
    for number, leak in enumerate(
        (
            b"..." + items.tobytes(),
            items.astype("<i8").tobytes(),
            items.astype("<f4").tobytes() + b"...",
            json.dumps({"dataset": title}, ensure_ascii=False).encode(),
            json.dumps({"dataset": title}).encode(),
            title.encode("utf-16"),
            file.split.users[0].encode(),
            file.catalogue.ids[FILLERS].encode(),
        )
    ):
        folder = tmp_path / str(number)
        with Recorder(folder, "trunk") as record:
            record("received", name, "Step", b"before")
            record("received", name, "Step", leak)
        assert found(folder, secrets(plain)), leak


def test_a_ledger_that_misses_a_frame_is_noticed(plain: Town) -> None:
    explained = [each for each in seen(plain) if each.kind != "NORM"]
    assert crossed(explained) != counted(ledger_of(plain))
