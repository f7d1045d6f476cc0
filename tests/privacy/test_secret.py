"""A secret start: how far it goes, who can draw it, and what it leaves alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor

from fellrec.errors import ConfigError
from fellrec.models.adapters import adapter
from fellrec.models.hllm import Hllm
from fellrec.models.recommender import Kind, Recommender
from fellrec.privacy import Secret, start_secretly
from tests.builders import tiny_hllm, tiny_recformer


def hllm() -> Hllm:
    return tiny_hllm()[0]


def recformer() -> Recommender:
    return tiny_recformer()[0]


def tensors(recommender: Recommender) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, (_, p) in recommender.trained().items()}


def test_each_adapted_weight_moves_by_the_share_that_was_asked_for() -> None:
    """‖alpha / rank · B A‖ = 0.5 ‖W‖ in each module of the head; A is as it was."""
    recommender = hllm()
    before = tensors(recommender)
    start_secretly(recommender, 0.5, Secret(b"x" * 16))
    seen = 0
    for module in recommender.head.body.modules():
        if isinstance(module, LoraLayer):
            base = cast(Tensor, module.get_base_layer().weight).detach()
            b, a = (
                cast(Tensor, factor["default"].weight).detach()
                for factor in (module.lora_B, module.lora_A)
            )
            moved = module.scaling["default"] * b @ a
            assert float(moved.norm() / base.norm()) == pytest.approx(0.5, rel=1e-5)
            seen += 1
    assert seen == 2  # query and value of one block
    after = tensors(recommender)
    for name in adapter(recommender.head):
        assert torch.equal(before[name], after[name]) == (".lora_A." in name)


def test_the_projection_keeps_its_length_on_average_and_turns() -> None:
    """Of p and a random step of equal length and weight, 1 / √2 of p is left in direction."""
    recommender = hllm()
    before = recommender.projection.detach().clone()
    start_secretly(recommender, 1.0, Secret(b"x" * 16))
    after = recommender.projection.detach()
    assert float(after.norm() / before.norm()) == pytest.approx(1, abs=0.1)
    alike = torch.cosine_similarity(before.flatten(), after.flatten(), dim=0)
    assert float(alike) == pytest.approx(2**-0.5, abs=0.05)


@pytest.mark.parametrize("made", [hllm, recformer])
def test_nothing_behind_the_cut_moves(made: Callable[[], Recommender]) -> None:
    recommender = made()
    before = tensors(recommender)
    start_secretly(recommender, 0.3, Secret(b"x" * 16))
    after = tensors(recommender)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and moved <= recommender.before_the_cut()


def test_a_private_head_exchanges_nothing_before_the_cut() -> None:
    for recommender in (hllm(), recformer()):
        exchanged = set(recommender.parameters_of(Kind.LORA, Kind.DENSE))
        private = set(recommender.parameters_of(Kind.PRIVATE))
        assert recommender.before_the_cut() & exchanged
        recommender.head_stays = True
        kept = set(recommender.parameters_of(Kind.LORA, Kind.DENSE))
        assert kept == exchanged - recommender.before_the_cut()
        moved = set(recommender.parameters_of(Kind.PRIVATE)) - private
        assert moved == recommender.before_the_cut() & exchanged
        assert set(adapter(recommender.tail)) <= kept


def test_who_has_the_secret_draws_the_same_and_who_has_not_does_not() -> None:
    keys = (b"a" * 16, b"a" * 16, b"b" * 16)
    one, same, other = (Secret(key).key_for("start", "x") for key in keys)
    assert one == same != other
    fresh = [Secret.drawn() for _ in range(2)]
    assert fresh[0] != fresh[1] and Secret.of_seed(1) == Secret.of_seed(1) != Secret.of_seed(2)
    assert "key" not in repr(fresh[0])


def test_a_secret_is_read_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(range(32)))
    assert Secret.read(tmp_path / "secret") == Secret(bytes(range(32)))


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 5000, None])
def test_what_is_no_secret_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "secret"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match="secret"):
        Secret.read(path)
