"""Which SuperNode is which client, and which of them are there."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from flwr.serverapp import Grid
from torch import Tensor

from fellrec.errors import FellrecError, RunError
from fellrec.federation.deployment.dispatch import Terms
from fellrec.federation.deployment.orders import Failure, Introduction
from fellrec.federation.flower.post import exchange, letter, opened

_PAUSE_SECONDS = 1.0
_ASK_AGAIN_SECONDS = 20.0  # a client that could not begin may have been mended
Introduced = tuple[Introduction, Mapping[str, Tensor]]


class Roster:
    """Knows nodes by the client's name that they gave.

    terms: of the run. seconds: how long an answer to a hello may take. note: told of clients that
    are not ready.
    """

    def __init__(self, terms: Terms, seconds: float, note: Callable[[str], None]) -> None:
        self._terms = terms
        self._seconds = seconds
        self._note = note
        self._node_of: dict[str, int] = {}
        self._there: set[int] = set()
        self._asked: dict[int, float] = {}

    def gather(
        self, grid: Grid, expected: Sequence[str], count: int, seconds: float
    ) -> list[Introduced]:
        """Wait until all expected clients, or so many where none are named, have introduced
        themselves; after `seconds` go on with those who have.

        Raises RunError when there are none.
        """
        found: dict[str, Introduced] = {}
        until = time.monotonic() + seconds
        while True:
            for introduced in self._ask(grid):
                found[introduced[0].client] = introduced
            missing = [name for name in expected if name not in found]
            if not (missing if expected else len(found) < count):
                return list(found.values())
            if time.monotonic() >= until:
                break
            time.sleep(_PAUSE_SECONDS)
        who = ", ".join(missing) if expected else f"{count - len(found)} of {count} clients"
        if not found:
            raise RunError(f"no client came within {seconds:.0f} s; start the SuperNodes ({who})")
        self._note(f"not there: {who}; the run begins without")
        return list(found.values())

    def refresh(self, grid: Grid) -> list[Introduced]:
        """See who is there now; return the clients that came anew, by a new node."""
        return self._ask(grid)

    def node(self, client: str) -> int | None:
        """Return a client's node; None while it is not connected."""
        node = self._node_of.get(client)
        return node if node in self._there else None

    def leave_out(self, client: str, why: str) -> None:
        """Forget a client's node: it can't take part as it is now."""
        self._node_of.pop(client, None)
        self._note(f"client {client} is left out: {why}")

    def client(self, node: int) -> str | None:
        """Return whose node this is."""
        return next((name for name, own in self._node_of.items() if own == node), None)

    def _ask(self, grid: Grid) -> list[Introduced]:
        """Say hello to nodes that have not said who they are."""
        named = {info.node_id: info.name for info in grid.get_nodes()}
        self._there = set(named)
        now, known = time.monotonic(), set(self._node_of.values())
        new = [
            node
            for node in sorted(named)
            if node not in known and now - self._asked.get(node, -1e9) >= _ASK_AGAIN_SECONDS
        ]
        self._asked |= dict.fromkeys(new, now)
        letters = [letter(node, "query", self._terms.hello(), {}, "roll") for node in new]
        answers = opened(exchange(grid, letters, self._seconds))
        found = []
        for node in new:
            match answers.get(node):
                case None:
                    self._note(f"node {node} did not say who it is")
                case FellrecError() as error:
                    self._note(f"node {node}: {error}")
                case (Failure() as failure, _):
                    self._note(f"node {named[node] or node} is not ready: {failure.reason}")
                case (Introduction() as introduction, tensors):
                    name = introduction.client
                    if named[node] and named[node] != name:
                        self._note(
                            f"node {node} is registered as {named[node]!r} and says that it is "
                            f"{name!r}; it is left out"
                        )
                        continue
                    if (other := self.node(name)) not in (None, node):
                        self._note(
                            f"node {node} says that it is client {name!r}, which is connected as "
                            f"node {other}; it is left out"
                        )
                        continue
                    self._node_of[name] = node
                    found.append((introduction, tensors))
                case _:
                    self._note(f"node {node} answered with something else than its name")
        return found
