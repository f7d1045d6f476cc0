"""A client that answers what it likes: it is left out, and the others' run is as without it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message
from torch import Tensor

from fellrec.errors import RunError
from fellrec.federation.flower.records import pack, unpack
from fellrec.federation.store import RunStore
from tests.federation.deployment.town import Town, tensors_below, town
from tests.toys import Toys

Answer = Callable[[Any, Mapping[str, Tensor]], tuple[Any, Mapping[str, Tensor]]]


def lying(it: Town, name: str, kind: str, answers: list[Answer]) -> None:
    """Let a client's answers to one kind of message be replaced, one after another."""
    before = it.grid.nodes[it.node(name)]

    def node(message: Message) -> Message | None:
        reply = before(message)
        if message.metadata.message_type != kind or not answers or reply is None:
            return reply
        return Message(pack(*answers.pop(0)(*unpack(reply.content))), reply_to=message)

    it.grid.nodes[it.node(name)] = node


def infinite(told: Any, tensors: Mapping[str, Tensor]) -> tuple[Any, Mapping[str, Tensor]]:
    return told, {name: tensor / 0 for name, tensor in tensors.items()}


def enlarged(told: Any, tensors: Mapping[str, Tensor]) -> tuple[Any, Mapping[str, Tensor]]:
    return told, {name: 1e6 * tensor for name, tensor in tensors.items()}


def renamed(told: Any, tensors: Mapping[str, Tensor]) -> tuple[Any, Mapping[str, Tensor]]:
    return told.model_copy(update={"metrics": {"id": 1.0}}), {}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [(infinite, "NaN or infinite"), (enlarged, "as far as the median client, more than robust.")],
)
def test_whatever_a_client_answers_it_harms_no_other(
    toys: Toys, tmp_path: Path, answer: Answer, reason: str
) -> None:
    config = toys.recipe({"model.k_out": 2, "train.rounds": 1})
    with town(config, tmp_path, trunks=0) as it:
        lying(it, "south", "train", [answer])
        lying(it, "south", "evaluate.test", [renamed])
        run = it.conduct()
        one, two = [note for note in it.notes() if "south" in note]
        assert "south: " in one
        assert reason in one
        assert two.endswith("its answer to the test is no score; it has no test score")
        labels = {name: each.label for name, each in RunStore(run).state().standings.items()}
        assert labels == {"east": 1, "north": 1}
    with town(config, tmp_path / "without", trunks=0, connected=False) as other:
        for name in ("east", "north"):
            other.connect(name)
        undisturbed = other.conduct()
    for name in ("east", "north"):
        found, expected = (tensors_below(each / "clients" / name) for each in (run, undisturbed))
        assert found.keys() == expected.keys()
        for file in found:
            assert all(torch.equal(found[file][key], expected[file][key]) for key in found[file])


def test_nobody_is_tested(toys: Toys, tmp_path: Path) -> None:
    with town(toys.recipe({"model.k_out": 2, "train.rounds": 0}), tmp_path, trunks=0) as it:
        for name in it.names:
            lying(it, name, "evaluate.test", [renamed])
        with pytest.raises(RunError, match="no client answered to the test; resume the run"):
            it.conduct()
        assert (it.conduct(resume=True) / "summary.json").exists()


@pytest.mark.parametrize("name", ["my run", "_x", ".hidden", "ü" * 90])
def test_a_folder_of_any_name_can_hold_a_run(toys: Toys, tmp_path: Path, name: str) -> None:
    with town(toys.recipe({"model.k_out": 2, "train.rounds": 0}), tmp_path, trunks=0) as it:
        run = it.conduct(out=str(tmp_path / name))
        assert (run / "summary.json").exists()


def test_a_client_that_rejoins_before_the_test_without_its_folder(
    toys: Toys, tmp_path: Path
) -> None:
    """It comes by a new node and says that it holds nothing: it gets the coordinator's copy."""
    with town(toys.recipe({"model.k_out": 2, "train.rounds": 1}), tmp_path, trunks=0) as it:

        def after(rounds: int) -> None:
            shutil.rmtree(it.folder_of("south"))
            it.grid.remove(it.node("south"))
            it.grid.add(999, partial(it.client, "south"), "south")

        run = it.conduct(after=after)
        assert not [note for note in it.notes() if "no test score" in note]
        best = tensors_below(it.folder_of("south") / "clients" / "south")
        theirs = tensors_below(run / "clients" / "south")
        one, two = best["best_adapter.safetensors"], theirs["best_adapter.safetensors"]
        assert all(torch.equal(one[key], two[key]) for key in two)
