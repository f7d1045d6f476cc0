"""Micro-batches under way side by side: the round of one after another, in less time."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fellrec.federation.runs import train
from fellrec.federation.shares import share_data
from fellrec.federation.turns import ClientModel, turn
from fellrec.federation.workspace import Workspace
from fellrec.models.recommender import Kind
from fellrec.split.wire import FrameKind, decode_frame
from tests.toys import Toys

CASES: Mapping[str, Mapping[str, object]] = {
    "hllm": {"model.recommender": "hllm"},
    "hllm, local items": {"model.recommender": "hllm", "model.item_residual": "local"},
    "recformer": {"model.recommender": "recformer"},
    "bigrec": {"model.recommender": "bigrec"},
    "int8": {"model.recommender": "bigrec", "split.codec": "int8"},
    "no head": {"model.recommender": "bigrec", "model.k_in": 0},
    "no trunk": {"model.k_in": 1, "model.k_out": 2},
}


def after_a_round(
    toys: Toys, overrides: Mapping[str, object], kinds: list[FrameKind]
) -> tuple[float, dict[str, Tensor]]:
    """Return the loss of one client's round and all that it trained; notes the frames' kinds."""
    base = toys.lm if overrides.get("model.recommender") == "bigrec" else toys.bert
    config = toys.recipe({"model.base": str(base), "train.micro_batches": 3, **overrides})
    shares = share_data(config)
    workspace = Workspace(config, shares.dataset)
    if workspace.server is not None:
        handle = workspace.server.handle

        def noting(frame: bytes) -> bytes:
            kinds.append(decode_frame(frame, max_bytes=1 << 30).kind)
            return handle(frame)

        workspace.server.handle = noting  # type: ignore[method-assign]
    client = workspace.client("north", shares.of(0), shares.quotas[0])
    start = ClientModel(
        workspace.initial(Kind.LORA, Kind.DENSE),
        workspace.initial(Kind.PRIVATE),
        workspace.initial_trunk(),
    )
    with turn(workspace, client, 0, start) as it:
        report = client.train(0)
    done = it.finished()
    return report.loss, {**done.exchanged, **done.private, **done.trunk}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("in_flight", [2, 3, 8])
def test_side_by_side_is_one_after_another(toys: Toys, case: str, in_flight: int) -> None:
    alone: list[FrameKind] = []
    together: list[FrameKind] = []
    loss, expected = after_a_round(toys, CASES[case], alone)
    again, found = after_a_round(toys, {**CASES[case], "train.in_flight": in_flight}, together)
    if case.startswith("hllm"):  # its table's gradient is summed in another order
        assert again == pytest.approx(loss, rel=1e-5)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)
    else:
        assert again == loss
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert sorted(together) == sorted(alone)
    # Two gradients go out one after another: the second did not wait for the first to come back.
    pair = (FrameKind.GRADIENT, FrameKind.GRADIENT)
    assert pair not in pairwise(alone)
    assert not alone or pair in pairwise(together)


def test_the_same_seed_gives_the_same_run(toys: Toys, runs: Path) -> None:
    overrides = {"train.micro_batches": 3, "train.in_flight": 3}
    first = train(toys.recipe(overrides), runs / "first")
    second = train(toys.recipe(overrides), runs / "second")
    assert first.summary["overall"] == second.summary["overall"]
    for path in (first.path / "clients").rglob("*.safetensors"):
        assert path.read_bytes() == (second.path / path.relative_to(first.path)).read_bytes()
