"""Telling what a user took next from the gradient at the second cut.

The last target of a history is never sent as an input: it is the one item that the first cut can't
show. But the loss's gradient at the last position crosses, and it points away from the target. For
HLLM the loss there is cross-entropy over the catalogue, so with a tail and a table of its own the
server can work out the gradient that each item would give, up to the factor by which the client
divided its loss, and compare directions. A tail that attends backwards only lets the last position
bear on nothing but its own target.

Masks of dropout are drawn from the run's seed, which the trunk has: they hide nothing from it.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fellrec.audit.wiretap import Step
from fellrec.models.dropout import StepKey
from fellrec.models.stages import Stage


def judged(
    step: Step, tail: Stage, key: StepKey, table: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Score all items as the last target of each row: (rows, items) twice, larger is likelier.

    By the cosine of gradients, and by the tail's own prediction from what the server sent, which
    needs no gradient. tail: causal, in training mode where masks are to be those of the step. key:
    whose seed, client and round the tail's masks are drawn from. table: (items, d).
    """
    at = tail.key
    at.seed, at.client, at.round, at.step, at.micro = (
        key.seed, key.client, key.round, step.step, step.micro,
    )  # fmt: skip
    last, items = step.layout.last.to(table.device), F.normalize(table, dim=-1)
    sent = step.layout.unpack(step.outputs.to(table.device)).requires_grad_()
    hidden = tail(sent, step.layout).flatten(0, 1).index_select(0, last)
    slopes = []  # of each channel at each row's last position
    for channel in hidden.T:
        (slope,) = torch.autograd.grad(channel.sum(), sent, retain_graph=True)
        slopes.append(slope.flatten(0, 1).index_select(0, last))
    jacobian = torch.stack(slopes, dim=1)  # (rows, d of hidden, d of sent)
    with torch.no_grad():
        lengths = hidden.norm(dim=-1, keepdim=True)
        unit = hidden / lengths
        predicted = scale * unit @ items.T
        mean = predicted.softmax(dim=-1) @ items
        ends = torch.from_numpy(step.layout.lengths.astype(np.int64).cumsum() - 1)
        seen = step.gradient[ends].to(table.device)
        return _cosines(mean, items, unit, jacobian, seen), predicted


def _cosines(mean: Tensor, items: Tensor, unit: Tensor, jacobian: Tensor, seen: Tensor) -> Tensor:
    found = []
    for row in range(len(mean)):
        # ∂loss/∂unit for every item; what lies along the output does not change its direction.
        pull = mean[row] - items
        pull = pull - (pull @ unit[row])[:, None] * unit[row]
        found.append(F.cosine_similarity(pull @ jacobian[row], seen[row][None], dim=-1))
    return torch.stack(found)
