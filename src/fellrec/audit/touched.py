"""Telling which items a client's users touched from what it uploads after a round.

`table`: a shared residual holds one vector per item. Against a full softmax every item moves in
training: one that no user of the client took is only ever pushed away from what outputs look like,
step by step the same way, while one that was taken is pulled as well. So the attacker takes the
median change of all items for the way of those that were not touched, and ranks items by how far
their own direction turns from it. (How far an item moved tells less, and the other way round from
what one would expect: with Adam's steps of equal size, a steady push goes furthest.)

`leaning` needs no table: the server runs the model before and after the round over histories of one
item each, and asks what is recommended more now than then, whatever was read.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor

from fellrec.data.interactions import Ragged
from fellrec.federation.client import Client
from fellrec.federation.turns import ClientModel, turn
from fellrec.federation.workspace import Workspace


def turned(before: Tensor, after: Tensor) -> npt.NDArray[np.float64]:
    """Score items by how a round changed their vectors: (items,), larger is likelier touched.

    before, after: (items, d), what the client was sent and what it sent back. 1 minus the cosine
    with the median change.
    """
    change = (after - before).double()
    usual = change.median(dim=0).values
    scores: npt.NDArray[np.float64] = 1 - F.cosine_similarity(change, usual[None]).numpy()
    return scores


def leaning(
    workspace: Workspace, client: Client, before: ClientModel, after: ClientModel, probes: Ragged
) -> npt.NDArray[np.float64]:
    """Score items by how much more a model recommends them after a round: (items,).

    before, after: as the server supposes them (`knowledge.supposed`). probes: histories that are
    read; the score is the mean rise of an item's logarithmic share over them.
    """
    earlier, later = (_shares(workspace, client, model, probes) for model in (before, after))
    rise: npt.NDArray[np.float64] = (later - earlier).double().numpy()
    return rise


@torch.no_grad()
def _shares(workspace: Workspace, client: Client, model: ClientModel, probes: Ragged) -> Tensor:
    with turn(workspace, client, 0, model):
        client.begin_serving()
        recommender = client.recommender
        batches = recommender.serving_batches(probes, client.settings.evaluation_batch)
        parts = [recommender.score(client.trunk, batch, 1).log_softmax(dim=1) for batch in batches]
    return torch.cat(parts).mean(dim=0)


def told_apart(scores: npt.NDArray[np.number], train: Ragged) -> float:
    """Return the AUC of scores, (items,), for the items in a client's training histories.

    0.5 is guessing. NaN where all items were touched, or none.
    """
    touched = np.isin(np.arange(len(scores)), train.values)
    if touched.all() or not touched.any():
        return float("nan")
    return float(roc_auc_score(touched, scores))
