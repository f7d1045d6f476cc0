"""Keyed dropout: masks that depend on where training stands and on nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from fellrec.models.dropout import KeyedDropout, StepKey, key_dropouts

KEY = StepKey(seed=1, client="a", round=2, step=3, micro=0)


def mask(
    key: StepKey, name: str = "layer.0", p: float = 0.5, shape: tuple[int, ...] = (7, 9)
) -> Tensor:
    output: Tensor = KeyedDropout(p, name, key).train()(torch.ones(shape))
    return output != 0


def test_the_same_key_and_name_give_the_same_mask() -> None:
    assert torch.equal(mask(KEY), mask(replace(KEY)))


@pytest.mark.parametrize(
    "other",
    [
        replace(KEY, seed=2),
        replace(KEY, client="b"),
        replace(KEY, round=3),
        replace(KEY, step=4),
        replace(KEY, micro=1),
    ],
)
def test_any_other_key_gives_another_mask(other: StepKey) -> None:
    assert not torch.equal(mask(KEY), mask(other))


def test_any_other_module_has_another_mask() -> None:
    assert not torch.equal(mask(KEY), mask(KEY, "layer.1"))


def test_neighbouring_numbers_do_not_run_together() -> None:
    # "round 1, step 11" and "round 11, step 1" are not the same place.
    assert not torch.equal(
        mask(replace(KEY, round=1, step=11)), mask(replace(KEY, round=11, step=1))
    )


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5])
def test_share_kept_and_expectation(p: float) -> None:
    # The share kept is the nearest 256th; over n draws it strays by sqrt(k (1-k) / n), here with
    # n = 2**20 at most 0.0005: five of these. The scale is that share's exact inverse.
    kept = round((1 - p) * 256) / 256
    output = KeyedDropout(p, "m", KEY).train()(torch.full((1024, 1024), 3.0))
    assert abs(float((output != 0).double().mean()) - kept) < 0.0025
    assert abs(kept - (1 - p)) <= 1 / 512
    values = output[output != 0]
    torch.testing.assert_close(values, torch.full_like(values, 3.0 / kept))
    assert float(output.double().mean()) == pytest.approx(3.0, abs=0.02)


def test_masks_of_a_row_are_not_alike() -> None:
    # Eight elements share a random word; no byte of it may follow from another.
    kept = mask(KEY, shape=(4096, 8)).double()
    correlation = torch.corrcoef(kept.T) - torch.eye(8)
    assert correlation.abs().max() < 0.08  # 5 / sqrt(4096)


def test_the_gradient_has_the_same_mask() -> None:
    entry = torch.ones(50, requires_grad=True)
    output = KeyedDropout(0.5, "m", KEY).train()(entry)
    output.sum().backward()
    assert entry.grad is not None
    torch.testing.assert_close(entry.grad, output.detach())
    assert torch.equal(entry.detach(), torch.ones(50))  # the input is not written to


def test_serving_and_a_probability_of_zero_change_nothing() -> None:
    hidden = torch.randn(3, 4)
    assert KeyedDropout(0.5, "m", KEY).eval()(hidden) is hidden
    assert KeyedDropout(0.0, "m", KEY).train()(hidden) is hidden


def test_global_random_state_is_neither_read_nor_moved() -> None:
    torch.manual_seed(0)
    first, before = mask(KEY), torch.get_rng_state()
    mask(KEY)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(mask(KEY), first)


def test_key_dropouts_replaces_what_drops_under_its_whole_name() -> None:
    net = nn.Sequential(
        nn.Dropout(0.5), nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.3)), nn.Dropout(0.0)
    )
    key = StepKey()
    key_dropouts(net, key, lambda path: f"whole.{path}")
    keyed = {path: m for path, m in net.named_modules() if isinstance(m, KeyedDropout)}
    assert {path: (m.name, m.p) for path, m in keyed.items()} == {
        "0": ("whole.0", 0.5),
        "1.1": ("whole.1.1", 0.3),
    }
    assert all(m.key is key for m in keyed.values())
    before = net[0](torch.ones(64))
    key.step = 1
    assert not torch.equal(net[0](torch.ones(64)), before)
