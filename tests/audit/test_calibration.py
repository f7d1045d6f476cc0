"""Attacks on histories that nobody had: strong enough where nothing is hidden, weaker by noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fellrec.audit.calibration import calibrated
from fellrec.audit.readers import reader_of
from fellrec.audit.readers.recformer import RecformerReader
from fellrec.federation.shares import load_split
from fellrec.federation.workspace import Workspace
from fellrec.privacy import Secret, made_up
from tests.toys import ITEMS, Toys

pytestmark = pytest.mark.usefixtures("own_cache")


def untrained(toys: Toys, recommender: str, k_in: int) -> Workspace:
    base = toys.lm if recommender == "bigrec" else toys.bert
    config = toys.recipe(
        {"model.recommender": recommender, "model.base": str(base), "model.k_in": k_in}
    )
    return Workspace(config, load_split(config)[0])


def by_attack(workspace: Workspace, acquainted: int = 64) -> dict[str, float]:
    found = calibrated(workspace, [0.0], acquainted=acquainted)
    return {each.attack: each.recovered.mean for each in found}


def searched(workspace: Workspace, noises: list[float]) -> dict[float, float]:
    found = calibrated(workspace, noises)
    return {each.noise: each.recovered.mean for each in found if each.attack == "search"}


@pytest.mark.parametrize("k_in", [0, 1])
@pytest.mark.parametrize("recommender", ["hllm", "bigrec", "recformer"])
def test_what_is_unprotected_is_read_and_noise_hides(
    toys: Toys, recommender: str, k_in: int
) -> None:
    workspace = untrained(toys, recommender, k_in)
    by_noise = searched(workspace, [0.0, 0.3, 100.0])
    # RecFormer attends both ways: behind its first block nothing is promised, little is missed.
    assert by_noise[0.0] == 1 or (recommender == "recformer" and k_in and by_noise[0.0] > 0.95)
    assert by_noise[0.0] >= by_noise[0.3] > 3 * by_noise[100.0]
    assert searched(workspace, [0.3]) == {0.3: by_noise[0.3]}


def elsewhere(toys: Toys, size: float) -> Workspace:
    own: dict[str, object] = {"model.k_in": 1, "model.item_residual": "local"}
    if size:
        own |= {"privacy.private_head": True, "privacy.secret_start": size}
    config = toys.recipe(own)
    return Workspace(config, load_split(config)[0], secret=Secret.of_seed(0))


def test_a_head_that_starts_elsewhere_is_read_less_well_until_it_is_fitted(toys: Toys) -> None:
    """The farther away it starts, the less is found with the public head as it is."""
    near, far, away = (by_attack(elsewhere(toys, size)) for size in (0.0, 0.1, 0.5))
    assert "aligned" not in near and near["search"] == 1
    assert 1 > far["search"] > 2 * away["search"]
    assert away["acquainted"] >= away["aligned"] > 2 * away["search"]
    assert away["lookup"] > 2 * away["search"]
    again = elsewhere(toys, 0.5)
    assert by_attack(again) == by_attack(again) == away
    alone = by_attack(again, acquainted=0)
    assert alone["lookup"] == alone["acquainted"] == alone["aligned"] == away["aligned"]


def test_made_up_histories_are_the_seeds_and_within_bounds() -> None:
    first, again = (made_up(np.random.default_rng(4), 50, 8, ITEMS) for _ in range(2))
    assert np.array_equal(first.values, again.values)
    assert first.lengths().min() >= 1 and first.lengths().max() == 8
    assert first.values.min() >= 0 and first.values.max() == ITEMS - 1


def test_a_guess_of_more_items_than_are_read_is_no_guess(toys: Toys) -> None:
    """What is seen need not fit any history: nine items of which the recommender reads eight."""
    workspace = untrained(toys, "recformer", 1)
    workspace.recommender.eval()
    reader = reader_of(workspace.recommender, ITEMS)
    assert isinstance(reader, RecformerReader)
    nine = reader.pieces.spell(list(range(9)))
    shape = reader.begins + len(nine), workspace.recommender.head.width
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    found = reader.read_back([noise], 8)
    assert len(found["nearest"][0].items) > workspace.config.model.history
    assert np.array_equal(found["search"][0].items, found["nearest"][0].items)
