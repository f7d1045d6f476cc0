"""Putting positions back in order that were sent in another one.

Where a base adds an embedding to each place, an activation says where it stands. The attacker
averages activations of histories that it made up, place by place, and gives each activation that it
got to the place whose average is nearest, each place to one of them (an assignment of least total
distance, Kuhn 1955).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from fellrec.audit.wiretap import Seen, Step


def usual_by_place(activations: Sequence[Tensor]) -> Tensor:
    """Average activations, (length, d) each, by place: (longest, d)."""
    padded = torch.nn.utils.rnn.pad_sequence(list(activations))
    counts = (torch.arange(len(padded))[:, None] < _lengths(activations)[None]).sum(dim=1)
    return padded.sum(dim=1) / counts[:, None]


def order_of(activations: Tensor, usual: Tensor) -> Tensor:
    """Say which of some activations, (length, d), stands at each place: (length,) int64.

    usual: (places, d), by place; what is longer goes on as the last place is.
    """
    places = usual[torch.arange(len(activations)).clamp(max=len(usual) - 1)]
    cost = torch.cdist(places.double(), activations.double()).square()
    _, order = linear_sum_assignment(cost.numpy())
    return torch.from_numpy(order)


def seen_in_order(seen: Sequence[Seen], usual: Tensor) -> list[Seen]:
    """Put what was seen of histories in order."""
    return [
        replace(each, activations=each.activations[order_of(each.activations, usual)])
        for each in seen
    ]


def steps_in_order(steps: Sequence[Step], usual: Tensor) -> list[Step]:
    """Put what was seen of training steps in order, each row by its activations."""
    return [_step_in_order(step, usual) for step in steps]


def _step_in_order(step: Step, usual: Tensor) -> Step:
    parts = step.activations.split(step.layout.lengths.tolist())
    starts = torch.tensor([0, *(len(part) for part in parts)]).cumsum(dim=0)[:-1]
    order = torch.cat(
        [start + order_of(part, usual) for start, part in zip(starts, parts, strict=True)]
    )
    return replace(
        step,
        activations=step.activations[order],
        outputs=step.outputs[order],
        gradient=step.gradient[order],
    )


def _lengths(activations: Sequence[Tensor]) -> Tensor:
    return torch.tensor([len(each) for each in activations])
