"""A finished run served otherwise: as a run that was trained with these settings would be."""

from __future__ import annotations

from pathlib import Path

import pytest

from fellrec.errors import ConfigError
from fellrec.federation.runs import RunResult, train
from fellrec.serving.rescore import rescore
from fellrec.serving.run import load_run
from tests.toys import Toys

SHARED: dict[str, object] = {
    "model.recommender": "bigrec",
    "train.rounds": 1,
    "evaluation.test_users": 20,
}
GRID = [0.0, 4.0, 64.0]


@pytest.fixture
def written(toys: Toys, runs: Path) -> RunResult:
    return train(toys.recipe({**SHARED, "model.base": str(toys.lm)}), runs / "written")


@pytest.mark.parametrize(
    "settings",
    [
        {"bigrec.decode": "retrieve"},
        {"bigrec.decode": "ground", "bigrec.beams": 2},
        {"bigrec.decode": "retrieve", "bigrec.popularity": GRID},
        {"evaluation.test_users": 0},
    ],
    ids=lambda settings: " ".join(settings),
)
def test_as_if_trained_with_it(
    toys: Toys, runs: Path, written: RunResult, settings: dict[str, object]
) -> None:
    twin = train(
        toys.recipe({**SHARED, "model.base": str(toys.lm), **settings}), runs / "twin"
    ).summary
    scores = rescore(load_run(written.path, settings))
    assert scores.overall == pytest.approx(twin["overall"], abs=1e-9)
    assert scores.overall != pytest.approx(written.summary["overall"], abs=1e-6)
    # And the way back: a strength that was chosen is forgotten where there is nothing to choose.
    back = {"bigrec.decode": "trie", "bigrec.beams": 4, "bigrec.popularity": [0.0]}
    again = rescore(load_run(runs / "twin", {**back, "evaluation.test_users": 20}))
    assert again.overall == pytest.approx(written.summary["overall"], abs=1e-9)


def test_recommendations_follow(written: RunResult) -> None:
    shown = [
        [
            item.item
            for item in load_run(written.path, settings)
            .client("north")
            .recommend(["space story 0"], k=8)
        ]
        for settings in ({}, {"bigrec.popularity": [64.0]})
    ]
    assert shown[0] != shown[1] and len(shown[1]) == 8


def test_what_was_trained_stays(written: RunResult) -> None:
    with pytest.raises(ConfigError, match=r"^train\.rounds: a finished run keeps it; what can be"):
        load_run(written.path, {"train.rounds": 3})
    with pytest.raises(ConfigError, match=r"bigrec\.decode.*'nothing'"):
        load_run(written.path, {"bigrec.decode": "nothing"})
