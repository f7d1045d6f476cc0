"""Where a model is cut changes nothing that is learned (METHOD section 2: split equals whole)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from fellrec.config import RunConfig
from fellrec.federation.runs import RunResult, train
from fellrec.files import read_tensors
from tests.federation.crashes import metrics
from tests.toys import SHOPS, Toys

BASES = ("bert", "llama")


def union(run: Path, client: str) -> dict[str, Tensor]:
    here = read_tensors(run / "clients" / client / "last_adapter.safetensors")
    there = read_tensors(run / "server" / client / "last_adapter.safetensors")
    assert not here.keys() & there.keys()
    return here | there


def recipe(toys: Toys, base: str, k_in: int, k_out: int) -> RunConfig:
    overrides = {
        "model.base": str(getattr(toys, base)),
        "model.k_in": k_in,
        "model.k_out": k_out,
        "train.micro_batches": 2,
        "balance.merge": "product",
    }
    return toys.recipe(overrides)


@pytest.fixture(scope="module")
def wholes(toys: Toys, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunResult]:
    """Return a run of each base with all of its blocks on the client."""
    folder = tmp_path_factory.mktemp("wholes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FELLREC_CACHE", str(toys.cache))
        return {base: train(recipe(toys, base, 3, 0), folder / base) for base in BASES}


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("cut", [(0, 0), (0, 1), (1, 0), (1, 1)], ids=str)
def test_cut_equals_whole(
    toys: Toys, wholes: dict[str, RunResult], runs: Path, base: str, cut: tuple[int, int]
) -> None:
    whole = wholes[base]
    split = train(recipe(toys, base, *cut), runs / "split")
    assert whole.summary["cost"]["server_parameters"] == 0
    assert split.summary["cost"]["server_blocks"] == 3 - sum(cut)
    for client in SHOPS:
        first, second = union(whole.path, client), union(split.path, client)
        assert first.keys() == second.keys()
        for name in first:
            # The clipping norm is summed in another order, which may cost a last bit.
            torch.testing.assert_close(first[name], second[name], rtol=1e-5, atol=1e-6)
    for one, other in zip(metrics(whole.path), metrics(split.path), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-6)
        assert one["valid"] == other["valid"] and one["weights"] == other["weights"]
    assert whole.summary["overall"] == split.summary["overall"]


def test_a_whole_model_sends_no_activations(toys: Toys, runs: Path) -> None:
    overrides = {"model.k_in": 3, "model.k_out": 0, "balance.strategy": "local"}
    done = train(toys.recipe(overrides), runs / "run")
    # per round a loss, a count and a score, then four test scores and of how many users they are,
    # for each of three clients
    assert done.summary["cost"]["bytes_up"] == 3 * 8 * (2 * 3 + 5)
    assert done.summary["cost"]["bytes_down"] == 0
