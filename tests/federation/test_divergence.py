"""A client that fails is left out of the round; the others go on as if it had not been there."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fellrec.errors import TrainingError
from fellrec.federation.observer import Observer, RoundRecord
from fellrec.federation.runs import train
from fellrec.federation.shares import share_data
from fellrec.federation.turns import ClientModel, turn
from fellrec.federation.workspace import Workspace
from fellrec.files import read_tensors, write_tensors
from fellrec.models.recommender import Kind
from fellrec.split.wire import Frame, FrameKind, encode_frame
from tests.toys import Toys

NAN, HUGE = float("nan"), 1e38


class Records(Observer):
    """Keeps what it is told; stops the run after a number of rounds."""

    def __init__(self, stop_after: int = 0) -> None:
        self.records: list[RoundRecord] = []
        self.notes: list[str] = []
        self._stop_after = stop_after

    def note(self, text: str) -> None:
        self.notes.append(text)

    def round_ends(self, record: RoundRecord) -> None:
        self.records.append(record)
        if len(self.records) == self._stop_after:
            raise KeyboardInterrupt


def interrupted(toys: Toys, path: Path, overrides: Mapping[str, object]) -> Path:
    """Return a run that was stopped after its first round."""
    with pytest.raises(KeyboardInterrupt):
        train(toys.recipe(overrides), path, observer=Records(stop_after=1))
    return path


def spoil(path: Path, name: str, value: float) -> None:
    """Put a value into one tensor of a stored adapter, under a new file."""
    tensors = read_tensors(path)
    chosen = next(key for key in tensors if name in key)
    tensors[chosen] = torch.full_like(tensors[chosen], value)
    path.unlink()
    write_tensors(path, tensors)


def last(run: Path, client: str) -> dict[str, Tensor]:
    here = read_tensors(run / "clients" / client / "last_adapter.safetensors")
    return here | read_tensors(run / "server" / client / "last_adapter.safetensors")


SPOILT = {
    "head": ("clients", "adapter", "layer.0.attention.self.query.lora_B", NAN),
    "tail": ("clients", "adapter", "layer.2.attention.self.query.lora_B", NAN),
    "trunk": ("server", "adapter", "lora_B", NAN),
    "private": ("clients", "private", "item_residual", NAN),
    "scale": ("clients", "adapter", "scale", NAN),
    "huge": ("clients", "adapter", "scale", HUGE),
    "optimiser": ("clients", "optimiser", "exp_avg/", NAN),
    "trunk optimiser": ("server", "optimiser", "exp_avg/", NAN),
}


@pytest.mark.parametrize("strategy", ["local", "fellrec"])
@pytest.mark.parametrize("spoilt", SPOILT)
def test_a_spoilt_client_is_left_out(toys: Toys, runs: Path, spoilt: str, strategy: str) -> None:
    overrides = {"balance.strategy": strategy, "model.item_residual": "local"}
    path = interrupted(toys, runs / "run", overrides)
    side, file, name, value = SPOILT[spoilt]
    spoil(path / "rounds/1" / side / "north" / f"{file}.safetensors", name, value)
    watch = Records()
    done = train(toys.recipe(overrides), path, resume=True, observer=watch)
    (record,) = watch.records
    assert list(record.failed) == ["north"]
    assert any("north" in note for note in watch.notes)
    assert math.isfinite(record.valid["south"]) and math.isfinite(record.valid["east"])
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert [line["client"] for line in lines if "failed" in line] == ["north"]
    for client in ("south", "east"):
        assert all(torch.isfinite(value).all() for value in last(path, client).values())
    # The best model, from before it was spoilt, is still there and served.
    (entry,) = [c for c in done.summary["clients"] if c["id"] == "north"]
    assert entry["best_round"] == 1 and entry["ndcg@10"] is not None


def test_who_fails_leaves_no_trace_in_others(toys: Toys, runs: Path) -> None:
    """Under local training others end bit for bit as without the failure.

    The first client of the round breaks off when its gradients are there and the step is not: its
    loss is finite, the square of its gradients' norm is not.
    """
    overrides = {"balance.strategy": "local", "train.micro_batches": 2}
    calm = train(toys.recipe(overrides), runs / "calm").path
    path = interrupted(toys, runs / "run", overrides)
    spoil(path / "rounds/1/clients/east/adapter.safetensors", "scale", 1e36)
    watch = Records()
    train(toys.recipe(overrides), path, resume=True, observer=watch)
    (record,) = watch.records
    assert "its scalar is inf" in record.failed["east"]
    assert list(record.reports) == ["north", "south"]
    for client in ("north", "south"):
        calm_model, model = last(calm, client), last(path, client)
        assert all(torch.equal(calm_model[name], model[name]) for name in calm_model)


def test_who_fails_keeps_the_model_it_had(toys: Toys, runs: Path) -> None:
    overrides = {"evaluation.keep_rounds": 3}
    path = interrupted(toys, runs / "run", overrides)
    spoil(path / "rounds/1/server/south/adapter.safetensors", "lora_A", NAN)
    train(toys.recipe(overrides), path, resume=True)
    for file in (path / "rounds/1").glob("*/south/*"):
        assert file.samefile(path / "rounds/2" / file.relative_to(path / "rounds/1"))


@pytest.mark.parametrize("strategy", ["local", "fedavg", "fellrec"])
@pytest.mark.parametrize("k_in", [1, 2], ids=["cut", "whole"])
@pytest.mark.parametrize("before", [True, False])
def test_all_failing_is_an_error(
    toys: Toys, runs: Path, strategy: str, k_in: int, before: bool
) -> None:
    wild = {
        "balance.strategy": strategy,
        "model.k_in": k_in,
        "train.learning_rate": 1e30,
        "train.clip": 0.0,
        "train.weight_decay": 0.0,
        "evaluation.before_mixing": before,
    }
    with pytest.raises(TrainingError, match=r"no client completed round 0.*learning_rate"):
        train(toys.recipe(wild), runs / "run")
    # The recipe stays, and nothing that would pass for a finished round.
    assert not (runs / "run/rounds/current").exists()


@pytest.mark.parametrize("k_in", [1, 2], ids=["cut", "whole"])
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("strategy", ["local", "fellrec"])
@pytest.mark.parametrize(
    ("rate", "decay"), [(3e38, 10.0), (1e30, 0.0)], ids=["not finite", "finite, but huge"]
)
def test_diverging_in_the_very_last_step_is_noticed(
    toys: Toys, runs: Path, strategy: str, before: bool, k_in: int, rate: float, decay: float
) -> None:
    """One step a round: no later loss could show it."""
    wild = {
        "balance.strategy": strategy,
        "model.k_in": k_in,
        "train.batch_size": 64,
        "train.learning_rate": rate,
        "train.weight_decay": decay,
        "evaluation.before_mixing": before,
    }
    with pytest.raises(TrainingError, match="no client completed round 0"):
        train(toys.recipe(wild), runs / "run")


def test_a_turn_that_breaks_off_leaves_nothing(toys: Toys) -> None:
    config = toys.recipe()
    shares = share_data(config)
    workspace = Workspace(config, shares.dataset)
    client = workspace.client("east", shares.of(0))
    start = ClientModel(workspace.initial(Kind.LORA, Kind.DENSE), {}, workspace.initial_trunk())
    with turn(workspace, client, 0, start) as it:
        client.train(0)
        with pytest.raises(RuntimeError, match="not over"):
            it.finished()
    trained = it.finished()
    assert trained.moments and trained.trunk_moments
    assert client.release() == {}
    with pytest.raises(KeyboardInterrupt), turn(workspace, client, 1, trained):
        client.train(1)
        raise KeyboardInterrupt
    assert client.release() == {}
    assert workspace.server is not None
    assert b"no open session" in workspace.server.handle(
        encode_frame(Frame(FrameKind.NORM, "east", 1, 0, scalar=0.0))
    )
