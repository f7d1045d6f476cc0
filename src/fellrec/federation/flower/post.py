"""Messages out, answers in: a Flower grid as a coordinator wants it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Literal

from flwr.app import Message as FlowerMessage
from flwr.serverapp import Grid
from torch import Tensor

from fellrec.errors import FellrecError, WireError
from fellrec.federation.flower.records import pack, unpack
from fellrec.split.service.messages import Message

_POLL_SECONDS = 0.5

Subject = Literal["query", "train", "evaluate", "evaluate.test"]
"""What a message is about, in Flower's words: a roll call, a round, a mixture, the last scores."""
Answer = tuple[Message, Mapping[str, Tensor]]


def letter(
    node: int, subject: Subject, order: Message, tensors: Mapping[str, Tensor], group: str
) -> FlowerMessage:
    """Address an order to a node. group: the round, for Flower's own logs."""
    return FlowerMessage(pack(order, tensors), node, subject, group_id=group)


def exchange(grid: Grid, letters: Iterable[FlowerMessage], seconds: float) -> list[FlowerMessage]:
    """Send letters, each as soon as it is written, and wait for their answers.

    seconds: how long; answers that did not come are left out. Letters are sent one by one, so that
    many adapters need not be in memory together.
    """
    until = time.monotonic() + seconds
    open_: set[str] = set()
    for each in letters:
        open_.update(grid.push_messages([each]))
    replies: list[FlowerMessage] = []
    while open_:  # at least once: answers may have come while letters were written
        came = list(grid.pull_messages(open_))
        replies += came
        open_ -= {each.metadata.reply_to_message_id for each in came}
        if time.monotonic() >= until:
            break
        if open_ and not came:
            time.sleep(_POLL_SECONDS)
    return replies


def opened(replies: Iterable[FlowerMessage]) -> dict[int, Answer | FellrecError]:
    """Read answers, by node. What Flower itself says for a node that is gone is under the number
    of Flower's own, so that the node's is missing; an answer that can't be read is its error.
    """
    answers: dict[int, Answer | FellrecError] = {}
    for reply in replies:
        node = reply.metadata.src_node_id
        try:
            if reply.has_error():
                lines = (reply.error.reason or "").strip().splitlines() or ["it gave no reason"]
                raise WireError(f"Flower's code {reply.error.code}: {lines[-1].strip()}")
            answers[node] = unpack(reply.content)
        except FellrecError as error:
            answers[node] = error
    return answers
