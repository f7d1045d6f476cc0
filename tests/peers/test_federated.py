"""SASRec by federated averaging meets central training where the two are the same thing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fellrec.data.interactions import Ragged
from fellrec.errors import ConfigError, DataError
from fellrec.peers.federated import FederatedSettings, Federation, sasrec_federated
from fellrec.peers.peer import judge
from fellrec.peers.sasrec import SasRec, SasRecSettings
from fellrec.peers.training import Learner, Patience, TrainingSettings, sasrec
from tests.peers.tastes import CHAIN, chain, task_of

SIZE = SasRecSettings(width=16, blocks=1, heads=2, dropout=0.2, history=8)
TRAINING = TrainingSettings(learning_rate=0.01, batch_size=16)
SEED = 5
SPLIT = chain(24)
THREE = np.arange(24) % 3


def make_model() -> SasRec:
    return SasRec(CHAIN, SIZE, torch.Generator().manual_seed(SEED))


def federate(
    train: Ragged,
    assignment: np.ndarray[tuple[int], np.dtype[np.int64]],
    settings: FederatedSettings,
) -> Federation:
    return Federation(make_model(), train, assignment, settings, TRAINING, SEED)


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(left[name], right[name]) for name in left
    )


@pytest.mark.parametrize("local_epochs", [1, 2])
@pytest.mark.parametrize("weighing", ["equal", "examples"])
def test_one_client_is_central_training(local_epochs: int, weighing: str) -> None:
    task = task_of(SPLIT, CHAIN, seed=SEED)
    settings = FederatedSettings(local_epochs, weighing)  # type: ignore[arg-type]
    nobody = np.zeros(24, dtype=np.int32)
    limits = Patience(4 // local_epochs, 4)
    rounds = sasrec_federated(task, nobody, SIZE, TRAINING, settings, limits)
    epochs = sasrec(task, SIZE, TRAINING, Patience(4, 4))
    assert [valid for _, valid in rounds.tried] == [
        valid for _, valid in epochs.tried[local_epochs - 1 :: local_epochs]
    ]

    federation = federate(SPLIT.train, np.zeros(24, np.int64), settings)
    model = make_model()
    central = Learner(model, SPLIT.train, TRAINING, SEED)
    for _ in range(2):
        federation.round()
        for _ in range(local_epochs):
            central.epoch()
    assert same(federation.model.values(), model.values())


@pytest.mark.parametrize("weighing", ["equal", "examples"])
def test_a_round_is_the_average_of_lone_clients(weighing: str) -> None:
    settings = FederatedSettings(2, weighing)  # type: ignore[arg-type]
    federation = federate(SPLIT.train, THREE, settings)
    models = [make_model() for _ in range(3)]
    lone = [
        Learner(model, SPLIT.train.take(np.flatnonzero(client == THREE)), TRAINING, SEED, client)
        for client, model in enumerate(models)
    ]
    examples = np.bincount(THREE, SPLIT.train.lengths() - 1)
    shares = np.full(3, 1 / 3) if weighing == "equal" else examples / examples.sum()
    for _ in range(2):  # the second round shows that each Adam goes on from where it was
        federation.round()
        for learner in lone:
            learner.epoch()
            learner.epoch()
        average = {
            name: torch.zeros(value.shape, dtype=torch.float64)
            for name, value in federation.model.values().items()
        }
        for share, model in zip(shares, models, strict=True):
            for name, value in model.values().items():
                average[name] += float(share) * value.double()
        for model in models:
            model.load(average)
        assert same(federation.model.values(), models[0].values())


def test_clients_that_are_alike_are_one() -> None:
    twice = SPLIT.train.take([*range(24), *range(24)])
    federation = federate(twice, np.repeat([0, 1], 24), FederatedSettings())
    alone = federate(SPLIT.train, np.zeros(24, np.int64), FederatedSettings())
    # The same draws as well as the same data: then both send the same.
    federation.clients[1] = Learner(federation.model, SPLIT.train, TRAINING, SEED, client=0)
    for _ in range(2):
        federation.round()
        alone.round()
    assert same(federation.model.values(), alone.model.values())


def test_by_examples_who_has_none_counts_for_nothing() -> None:
    train = SPLIT.train.concat(Ragged.from_rows([[]] * 24))
    idle = Ragged.from_lengths(
        np.concatenate([train.lengths(), [1, 1]]), np.concatenate([train.values, [3, 4]])
    )
    assignment = np.array([0] * 24 + [1] * 2)
    with_idle = federate(idle, assignment, FederatedSettings(1, "examples"))
    alone = federate(train, np.zeros(24, np.int64), FederatedSettings())
    with_idle.round()
    alone.round()
    assert same(with_idle.model.values(), alone.model.values())
    assert with_idle.weights.tolist() == [[1.0, 0.0]] * 2


def test_a_federation_learns_what_follows() -> None:
    split = chain()
    choice = sasrec_federated(
        task_of(split, CHAIN, "recall@1"),
        np.arange(60) % 3,
        SIZE,
        TRAINING,
        FederatedSettings(),
        Patience(6, 6),
    )
    found = judge(choice.fitted, split.history("test"), split.test, [1])
    assert found["recall@1"].mean() > 0.9
    assert choice.chosen["rounds"] == 1 + [v for _, v in choice.tried].index(choice.valid)


def test_refusals() -> None:
    for assignment in (np.zeros(23, np.int64), np.full(24, -1)):
        with pytest.raises(DataError, match="24 histories need a client each"):
            federate(SPLIT.train, assignment, FederatedSettings())
    for settings in (FederatedSettings(0), FederatedSettings(1, "size")):  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="1 local epoch or more"):
            federate(SPLIT.train, THREE, settings)
    with pytest.raises(DataError, match="nothing to learn from"):
        federate(Ragged.from_rows([[1], [2]]), np.array([0, 1]), FederatedSettings(1, "examples"))
