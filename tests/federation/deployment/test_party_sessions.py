"""What a client leaves at the trunk once it has answered an order: nothing that is open."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from flwr.app import Message

from fellrec.split.service.server import TrunkService
from fellrec.split.service.settings import Limits
from tests.federation.deployment.town import town
from tests.toys import Toys


def allow(trunk: TrunkService, sessions: int) -> None:
    """Let a trunk take so many sessions at a time."""
    registry = trunk.registry
    registry._settings = replace(registry._settings, limits=Limits(sessions=sessions))


def test_every_order_ends_its_session_at_the_trunk(toys: Toys, tmp_path: Path) -> None:
    """One session at a time is enough for clients that come one after another."""
    recipe = {"train.rounds": 1, "model.recommender": "bigrec", "model.base": str(toys.lm)}
    with town(toys.recipe(recipe), tmp_path) as it:
        registry = it.trunks[0].registry
        allow(it.trunks[0], 1)
        left: list[tuple[str, int, int]] = []

        for name in it.names:

            def answer(message: Message, name: str = name) -> Message:
                reply = it.client(name, message)
                kind = message.metadata.message_type
                left.append((kind, registry.open_sessions(), registry.budget.held))
                return reply

            it.grid.nodes[it.node(name)] = answer
        it.conduct()
    kinds = {kind for kind, _, _ in left}
    assert {"train", "evaluate", "evaluate.test"} <= kinds
    assert all((sessions, held) == (0, 0) for _, sessions, held in left), left
