"""Telling what a user took next from the gradient at the second cut.

The last target of a history is never sent as an input: it is the one item that the first cut can't
show. But the loss's gradient at the position that predicts it crosses, and it points away from the
target. Where the loss is cross-entropy over the catalogue (HLLM, RecFormer), a server with a tail
and a table of its own can work out the gradient that each item would give, up to the factor by
which the client divided its loss, and compare directions. HLLM predicts the last target at the last
position, and a tail that attends backwards only lets that one bear on no other target; RecFormer
has one target, predicted at the first position.

An item's gradient costs a pass backward through the tail. Which are worth one is told by a single
slope: the true one's gradient is what was seen, so moving the tail's input that way moves its
output against the target more than against others.

Masks of dropout are drawn from the run's seed, which the trunk has: they hide nothing from it.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fellrec.audit.wiretap import Step
from fellrec.models.dropout import StepKey
from fellrec.models.stages import Stage

Place = Literal["first", "last"]
_TRIED = 32
"""Items whose gradient is worked out, for each row."""
_MOVED = 1e-2
"""How far inputs are moved for the slope, as a share of their length."""


def judged(
    step: Step, tail: Stage, key: StepKey, table: Tensor, scale: float, predicts: Place
) -> tuple[Tensor, Tensor]:
    """Score all items as the last target of each row: (rows, items) twice, larger is likelier.

    First by how well an item's gradient fits the one that was seen: the cosine, 1 + cosine for
    those that were tried; then by the tail's own prediction, which needs no gradient. tail: in
    training mode where masks are to be those of the step. key: whose seed, client and round the
    masks are drawn from. table: (items, d). scale: of the cosines. predicts: the position of each
    row that predicts its last target.
    """
    at, layout = tail.key, step.layout
    at.seed, at.client, at.round = key.seed, key.client, key.round
    at.step, at.micro = step.step, step.micro
    items = F.normalize(table, dim=-1)
    firsts = torch.arange(len(layout.lengths)) * layout.width
    last = (layout.last if predicts == "last" else firsts).to(table.device)
    seen = layout.unpack(step.gradient).flatten(0, 1).to(table.device)[last]

    def read(sent: Tensor) -> Tensor:
        outputs: Tensor = tail(sent, layout)
        return outputs.flatten(0, 1).index_select(0, last)

    sent = layout.unpack(step.outputs.to(table.device)).requires_grad_()
    hidden = read(sent)
    with torch.no_grad():
        unit = F.normalize(hidden, dim=-1)
        predicted = scale * unit @ items.T
        mean = predicted.softmax(dim=-1) @ items
        moved = _spread(F.normalize(seen, dim=-1) * _MOVED * _lengths(sent, last), sent, last)
        slope = read(sent + moved) - read(sent - moved)
        found = F.cosine_similarity(_pulls(mean, items[None], unit), slope[:, None], dim=-1)
        tried = found.topk(min(_TRIED, len(items)), dim=-1).indices
    for column in tried.T:
        with torch.no_grad():
            pull = _pulls(mean, items[column][:, None], unit)[:, 0]
        (gradient,) = torch.autograd.grad(hidden, sent, pull, retain_graph=True)
        fits = F.cosine_similarity(gradient.flatten(0, 1)[last], seen, dim=-1)
        found[torch.arange(len(found)), column] = 1 + fits
    return found, predicted.detach()


def _pulls(mean: Tensor, items: Tensor, unit: Tensor) -> Tensor:
    """Return ∂loss/∂output of each row for each of its items, up to a factor: (rows, items, d).

    items: (rows or 1, items, d). What lies along the output does not change its direction, which
    is all that cosines see.
    """
    pull = mean[:, None] - items
    along: Tensor = pull @ unit[:, :, None]
    return pull - along * unit[:, None]


def _lengths(sent: Tensor, last: Tensor) -> Tensor:
    lengths: Tensor = sent.flatten(0, 1)[last].norm(dim=-1, keepdim=True)
    return lengths


def _spread(rows: Tensor, like: Tensor, last: Tensor) -> Tensor:
    """Put one vector a row at its last position, zeros elsewhere: the shape of `like`."""
    flat = torch.zeros_like(like).flatten(0, 1)
    flat[last] = rows
    return flat.view_as(like)
