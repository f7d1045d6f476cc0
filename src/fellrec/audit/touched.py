"""Telling which items a client's users touched from the item table that it uploads.

A shared residual holds one vector per item. Against a full softmax every item moves in training:
one that no user of the client took is only ever pushed away from what outputs look like, step by
step the same way, while one that was taken is pulled as well. So the attacker takes the median
change of all items for the way of those that were not touched, and ranks items by how far their own
direction turns from it. (How far an item moved tells less, and the other way round from what one
would expect: with Adam's steps of equal size, a steady push goes furthest.)
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor

from fellrec.data.interactions import Ragged


def turned(before: Tensor, after: Tensor) -> npt.NDArray[np.float64]:
    """Score items by how a round changed their vectors: (items,), larger is likelier touched.

    before, after: (items, d), what the client was sent and what it sent back. 1 minus the cosine
    with the median change.
    """
    change = (after - before).double()
    usual = change.median(dim=0).values
    scores: npt.NDArray[np.float64] = 1 - F.cosine_similarity(change, usual[None]).numpy()
    return scores


def told_apart(scores: npt.NDArray[np.number], train: Ragged) -> float:
    """Return the AUC of scores, (items,), for the items in a client's training histories.

    0.5 is guessing. NaN where all items were touched, or none.
    """
    touched = np.isin(np.arange(len(scores)), train.values)
    if touched.all() or not touched.any():
        return float("nan")
    return float(roc_auc_score(touched, scores))
