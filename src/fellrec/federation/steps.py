"""The steps of a client's local round: on batches, or on users drawn one by one.

Training goes through all three stages: head and tail here, the trunk wherever it is. Who moves
training on (`Client.point`) tells every stage where it stands.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fellrec.errors import TrainingError
from fellrec.models.optimiser import Optimiser
from fellrec.models.recommender import Batch
from fellrec.privacy.user_level import PrivateSum, UserLevel, drawn

if TYPE_CHECKING:
    from fellrec.federation.client import Client

Parts = Sequence[tuple[int, Batch]]


@dataclass(frozen=True)
class Step:
    """One step of a round of `total`, in its epoch, from 0.

    loss: mean over `targets`. positions: went through all stages.
    """

    loss: float
    targets: int
    positions: int
    epoch: int
    total: int


def steps(client: Client, round: int, optimiser: Optimiser) -> Iterator[Step]:
    """Make a round's steps, one after another.

    Raises TrainingError when a loss is no number, WireError when the trunk refuses.
    """
    private = client.settings.user_level
    return (
        _by_batch(client, round, optimiser)
        if private is None
        else _by_user(client, round, optimiser, private)
    )


def _by_batch(client: Client, round: int, optimiser: Optimiser) -> Iterator[Step]:
    epochs = [client.epoch(round, number) for number in range(client.settings.local_epochs)]
    total, at = sum(map(len, epochs)), 0
    for epoch, batches in enumerate(epochs):
        client.begin_epoch()
        for batch in batches:
            loss = _batch_step(client, round, at, batch, optimiser)
            yield Step(loss, len(batch.targets), batch.layout.total, epoch, total)
            at += 1


def _batch_step(client: Client, round: int, step: int, batch: Batch, optimiser: Optimiser) -> float:
    """Make one optimiser step on both sides: the batch's mean loss.

    The loss is divided by the targets of the whole batch before micro-batches are cut, so that
    their gradients add up to the whole batch's (METHOD section 2).
    """
    parts = list(enumerate(batch.micro(client.settings.micro_batches)))
    size = client.settings.in_flight if client.trunk.overlaps else 1
    batch_loss = 0.0
    for first in range(0, len(parts), size):
        group = parts[first : first + size]
        run = _one_after_another if len(group) == 1 else _side_by_side
        for loss in run(client, round, step, group, len(batch.targets)):
            batch_loss += loss
            _check(client, round, step, batch_loss)
    optimiser.pull()
    norm = optimiser.squared_norm()
    optimiser.step(norm + client.trunk.end_step(norm))
    return batch_loss


def _one_after_another(
    client: Client, round: int, step: int, parts: Parts, targets: int
) -> Iterator[float]:
    """Yield the loss of each micro-batch, then run it backward."""
    for micro, part in parts:
        client.point(round, step, micro)
        loss = client.recommender.loss(client.trunk, part) / targets
        yield float(loss.detach())
        loss.backward()


def _side_by_side(
    client: Client, round: int, step: int, parts: Parts, targets: int
) -> Iterator[float]:
    """Do the same while client and trunk work at the same time.

    All heads run before the first tail, and all tails before the first way back through a head;
    gradients add up in the order of the micro-batches, as without.
    """
    recommender, trunk = client.recommender, client.trunk
    under_way = []
    for micro, part in parts:
        client.point(round, step, micro)
        entered = recommender.enter(part)
        under_way.append((micro, part, entered, trunk.begin(entered.hidden, part.layout)))
    for micro, part, entered, crossing in under_way:
        client.point(round, step, micro)
        loss = recommender.leave(crossing.outputs(), entered, part) / targets
        yield float(loss.detach())
        # What head and tail share is walked through twice.
        loss.backward(retain_graph=entered.shared is not None)
        crossing.send_gradient()
    for _, _, entered, crossing in under_way:
        gradient = crossing.input_gradient()
        if entered.hidden.requires_grad:
            entered.hidden.backward(gradient)


def _by_user(
    client: Client, round: int, optimiser: Optimiser, private: UserLevel
) -> Iterator[Step]:
    """Make private steps (`privacy.user_level`): a loss is the mean over the users drawn.

    To the trunk, which rests, each user is a step of its own; it is told of no gradient's norm.
    """
    settings, users = client.settings, client.learners
    share = settings.batch_size / len(users) if len(users) > settings.batch_size else 1.0
    count, at = math.ceil(len(users) / settings.batch_size), 0
    for epoch in range(settings.local_epochs):
        client.begin_epoch()
        rng = client.batch_rng(round, epoch)
        for _ in range(count):
            total, losses, positions = PrivateSum(optimiser.parameters, private), 0.0, 0
            chosen = client.alone(users[drawn(len(users), share, client.secretly)], rng)
            for part in chosen:
                for loss in _one_after_another(client, round, at, [(0, part)], len(part.targets)):
                    losses += loss
                    _check(client, round, at, loss)
                total.add()
                client.trunk.end_step(0.0)
                at, positions = at + 1, positions + part.layout.total
            total.release(share * len(users), client.secretly)
            optimiser.pull()
            optimiser.step(optimiser.squared_norm())
            mean = losses / max(len(chosen), 1)
            yield Step(mean, len(chosen), positions, epoch, count * settings.local_epochs)


def _check(client: Client, round: int, step: int, loss: float) -> None:
    if not math.isfinite(loss):
        raise TrainingError(
            f"client {client.name}: the loss is {loss} at step {step} of round {round}; lower "
            "train.learning_rate"
        )
