"""All peers by name: the same protocol, one seed one result, and nothing known of the test."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from fellrec.data.interactions import Ragged, Split
from fellrec.errors import ConfigError, DataError
from fellrec.evaluation import popularity_metrics
from fellrec.peers import PEERS, PeerResult, run_peer
from tests.peers.tastes import GROUP, groups

ITEMS = 2 * GROUP
SPLIT = groups(24)
CLIENTS = np.arange(24) % 2
KS = (1, 5, ITEMS)


def run(name: str, split: Split = SPLIT, seed: int = 0) -> PeerResult:
    return run_peer(name, split, ITEMS, CLIENTS, ks=KS, metric="ndcg@5", seed=seed)


@cache
def plain(name: str) -> PeerResult:
    return run(name)


def test_the_names() -> None:
    assert PEERS == ("popularity", "item-knn", "als", "sasrec", "sasrec-federated")


@pytest.mark.parametrize("name", PEERS)
def test_a_result_is_complete(name: str) -> None:
    found = plain(name)
    assert found.name == name
    assert set(found.scores) == {f"{kind}@{k}" for kind in ("recall", "ndcg") for k in KS}
    # Every item that is not in the history is in a list as long as the catalogue.
    assert found.scores[f"recall@{ITEMS}"].tolist() == [1.0] * 24
    assert found.valid == max(valid for _, valid in found.tried)
    assert (found.chosen, found.valid) in found.tried
    assert found.parameters > 0
    assert found.seconds > 0


@pytest.mark.parametrize("name", PEERS)
def test_the_same_seed_the_same_result_whatever_is_tested(name: str) -> None:
    # Half of the users change test targets among themselves: all else must stay, bit for bit, the
    # choice among hyper-parameters and the other half's scores among it.
    order = np.concatenate([np.roll(np.arange(12), 5), np.arange(12, 24)])
    found = run(name, replace(SPLIT, test=SPLIT.test.take(order)))
    assert found.tried == plain(name).tried
    assert found.chosen == plain(name).chosen
    for metric, scores in plain(name).scores.items():
        np.testing.assert_array_equal(found.scores[metric][12:], scores[12:])


@pytest.mark.parametrize("name", PEERS)
def test_a_history_is_never_recommended(name: str) -> None:
    known = SPLIT.history("test")
    found = run(name, replace(SPLIT, test=known))
    assert not found.scores[f"recall@{ITEMS}"].any()


@pytest.mark.parametrize("name", PEERS)
def test_users_without_targets_have_no_score(name: str) -> None:
    some = Ragged.from_rows([SPLIT.test[user] if user % 3 else [] for user in range(24)])
    scores = run(name, replace(SPLIT, test=some)).scores["ndcg@5"]
    assert np.isnan(scores).tolist() == [user % 3 == 0 for user in range(24)]


def test_popularity_is_that_of_evaluation() -> None:
    expected = popularity_metrics(SPLIT, ITEMS, KS)
    for metric, scores in plain("popularity").scores.items():
        np.testing.assert_array_equal(scores, expected[metric])


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="unknown peer 'bpr': choose one of popularity, item-knn"):
        run("bpr")
    for name in PEERS:
        with pytest.raises(DataError, match="outside the catalogue of 19 items"):
            run_peer(name, SPLIT, ITEMS - 1, CLIENTS)
    monkeypatch.setitem(sys.modules, "implicit", None)
    for name in ("item-knn", "als"):
        with pytest.raises(ConfigError, match=r"install fellrec\[peers\] to compare"):
            run(name)
    assert run("popularity").valid == plain("popularity").valid
