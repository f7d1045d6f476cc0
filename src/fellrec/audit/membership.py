"""Telling whose histories a client learned from, from what the client uploads.

The question only makes sense among users of one kind: those of another client differ by taste. So
it is played as a game. Half of a client's users are drawn; the client learns from them alone, from
the common start and for as long as the run did; then an attacker who has what such a client would
upload is shown users of both halves, and sorts them by

- `loss`: how well the upload predicts the history (Yeom et al. 2018, arXiv 1709.01604);
- `gain`: how much better than the common start did, which takes out how hard a history is to
  predict anyway (Watson et al. 2022, arXiv 2111.08440).

That is the worst round for the client: an upload that was mixed with others' before says less.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fellrec.audit.findings import Membership
from fellrec.audit.knowledge import supposed
from fellrec.data.interactions import Split
from fellrec.evaluation.bootstrap import Interval
from fellrec.federation.client import Client
from fellrec.federation.shares import Quota, seeded
from fellrec.federation.turns import ClientModel, turn
from fellrec.federation.workspace import Workspace
from fellrec.models.recommender import Kind

_DRAWS = 1000
_FALSE = 0.05  # of the others may be taken for members

Losses = NDArray[np.float64]


@dataclass(frozen=True)
class Halves:
    """members, others: (n,) float64, the mean loss of each history under one model."""

    members: Losses
    others: Losses


def game(workspace: Workspace, name: str, data: Split, quota: Quota, seed: int) -> list[Halves]:
    """Let half of a client's users teach it alone, and return all users' losses before and after.

    name: the client's, whose generators it then has. data: its users. quota: of all of them; half
    of its samples are drawn from either half. seed: draws the halves. An attacker's model has
    private tensors at their start.
    """
    order = seeded(seed, "membership").permutation(len(data))
    half = Quota(samples=-(-quota.samples // 2))
    members, others = (
        workspace.client(name, data.take(np.sort(rows)), half) for rows in np.array_split(order, 2)
    )
    start = workspace.initial(Kind.LORA, Kind.DENSE)
    model = ClientModel(start, workspace.initial(Kind.PRIVATE), workspace.initial_trunk())
    known = supposed(workspace, model, "base")
    found = [Halves(_losses(workspace, members, known), _losses(workspace, others, known))]
    for round in range(workspace.config.train.rounds):
        with turn(workspace, members, round, model) as it:
            members.train(round)
        model = it.finished()
    known = supposed(workspace, model, "adapters")
    return [*found, Halves(_losses(workspace, members, known), _losses(workspace, others, known))]


@torch.no_grad()
def _losses(workspace: Workspace, client: Client, model: ClientModel) -> Losses:
    """The mean loss of each history that a client learns from, in serving mode."""
    with turn(workspace, client, 0, model):
        client.begin_serving()
        recommender = client.recommender
        batches = recommender.training_batches(
            client.learned_from, 1, 1, np.random.default_rng(client.settings.seed)
        )
        found: Losses = np.full(len(client.learned_from), np.nan)
        for batch in batches:
            loss = float(recommender.loss(client.trunk, batch)) / len(batch.targets)
            found[batch.rows] = loss
    kept: Losses = found[~np.isnan(found)]
    return kept


def judged(before: Halves, after: Halves) -> tuple[Membership, ...]:
    """Say how well members are told by each attack. Both: of the same users in the same order."""
    loss = -after.members, -after.others
    gain = before.members - after.members, before.others - after.others
    return Membership("loss", *_told(*loss)), Membership("gain", *_told(*gain))


def _told(members: Losses, others: Losses) -> tuple[Interval, float]:
    """The AUC with its interval over users drawn again, and the share of members caught.

    The AUC is the share of pairs of a member and another in which the member's score is higher,
    ties half (Mann and Whitney 1947).
    """
    pairs = (np.sign(members[:, None] - others[None]) + 1) / 2
    rng = np.random.default_rng(0)
    some, rest = (
        rng.multinomial(count, np.full(count, 1 / count), _DRAWS) / count for count in pairs.shape
    )
    drawn = ((some @ pairs) * rest).sum(axis=1).clip(0, 1)  # sums of shares round past 1
    low, high = np.percentile(drawn, [2.5, 97.5])
    bar = np.quantile(others, 1 - _FALSE)
    return Interval(float(pairs.mean()), float(low), float(high)), float((members > bar).mean())
