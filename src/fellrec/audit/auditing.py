"""`fellrec audit`: attack a finished run's own clients, and say how much came of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fellrec.audit.inversion import nearest, read_alone, search
from fellrec.audit.knowledge import KNOWS, Knows, suppose
from fellrec.audit.recovery import by_chance, placed, recovered
from fellrec.audit.wiretap import Items, Seen, histories_seen, tapped
from fellrec.errors import ConfigError
from fellrec.evaluation.bootstrap import Interval, mean_interval
from fellrec.evaluation.popularity import places
from fellrec.federation.turns import turn
from fellrec.federation.workspace import seeded
from fellrec.files import write_json
from fellrec.models.hllm import Hllm
from fellrec.serving.run import Run, RunClient

FILE = "audit.json"


@dataclass(frozen=True)
class Attack:
    """How one attacker fared.

    recovered: the share of a user's items that it found, mean over users, with a 95 % interval.
    placed: the share of positions at which it found the item, mean over users.
    """

    attack: str
    knows: Knows
    recovered: Interval
    placed: float


@dataclass(frozen=True)
class Audit:
    """What a server can read back at the first cut.

    users: attacked. chance: what guessing the most popular items recovers, by users as above.
    """

    k_in: int
    codec: str
    item_residual: str
    users: int
    chance: Interval
    attacks: tuple[Attack, ...]

    def as_json(self) -> Mapping[str, Any]:
        """Return it as it is written to audit.json."""
        return {
            **asdict(self),
            "chance": self.chance._asdict(),
            "attacks": [
                {**asdict(each), "recovered": each.recovered._asdict()} for each in self.attacks
            ],
        }


def audit(
    run: Run,
    *,
    users: int = 20,
    most: int = 256,
    seed: int = 0,
    progress: Callable[[str], None] = lambda client: None,
) -> Audit:
    """Attack test histories of a finished run, and write `audit.json` into its folder.

    users: how many, drawn by the seed, spread over the clients in turn; 0 takes all. most:
    candidates that the search tries at a position, 0 for the whole catalogue. progress: told each
    client's name before it is attacked.

    Raises ConfigError for a run in which nothing crosses, or of a recommender that isn't read yet.
    """
    recommender = run.workspace.recommender
    if run.workspace.server is None:
        raise ConfigError("nothing crosses in this run: all blocks are on the client; lower k_in")
    if not isinstance(recommender, Hllm):
        raise ConfigError(
            f"model.recommender: the audit reads runs of hllm, not yet of "
            f"{run.config.model.recommender}"
        )
    popular = places(run.shares.split.train, len(run.shares.dataset.catalogue))
    guesses: dict[tuple[str, Knows], list[tuple[Items, Items]]] = {}
    truths: list[Items] = []
    for client, chosen in _drawn(run, users, seed):
        progress(client.name)
        seen = _seen(client, chosen)
        truths += [each.items for each in seen]
        for knows in KNOWS:
            for name, found in _attack(client, recommender, seen, knows, most).items():
                pairs = [(each.items, guess) for each, guess in zip(seen, found, strict=True)]
                guesses.setdefault((name, knows), []).extend(pairs)
    model = run.config.model
    done = Audit(
        model.k_in,
        run.config.split.codec,
        model.item_residual,
        len(truths),
        _over([by_chance(items, popular) for items in truths]),
        tuple(
            Attack(
                name,
                knows,
                _over([recovered(*pair) for pair in pairs]),
                float(np.mean([placed(*pair) for pair in pairs])),
            )
            for (name, knows), pairs in guesses.items()
        ),
    )
    write_json(Path(run.path) / FILE, done.as_json())
    return done


def _drawn(run: Run, users: int, seed: int) -> list[tuple[RunClient, Items]]:
    """Draw test users: clients with rows of their data, those with none left out."""
    rng = seeded(seed, "audit")
    clients = run.clients()
    order = [rng.permutation(client.client.scored("test")) for client in clients]
    total = sum(map(len, order))
    wanted = min(users, total) or total
    take = [0] * len(clients)
    while sum(take) < wanted:
        for at, rows in enumerate(order):
            if take[at] < len(rows) and sum(take) < wanted:
                take[at] += 1
    return [
        (client, rows[:count].astype(np.int64))
        for client, rows, count in zip(clients, order, take, strict=True)
        if count
    ]


def _seen(client: RunClient, rows: Items) -> list[Seen]:
    """Let a client score users with its best model, and keep what crossed."""
    workspace = client.run.workspace
    assert workspace.server is not None
    client.run.ready = None
    with (
        turn(workspace, client.client, 0, client.model),
        tapped(client.client, workspace.server, client.run.config) as tap,
    ):
        return histories_seen(client.client, tap, client.client.data.history("test").take(rows))


def _attack(
    client: RunClient, recommender: Hllm, seen: list[Seen], knows: Knows, most: int
) -> Mapping[str, list[Items]]:
    """Return what each attacker guesses of each history."""
    suppose(client.client, client.run.workspace, client.model, knows)
    with torch.no_grad():
        table = recommender.item_vectors()
        alone = read_alone(recommender.head, table)
        centre = torch.cat([each.activations for each in seen]).mean(dim=0)
        return {
            "nearest": [nearest(each, alone, centre) for each in seen],
            "search": [search(each, recommender.head, table, alone, most) for each in seen],
        }


def _over(shares: list[float]) -> Interval:
    return mean_interval(np.asarray(shares), np.random.default_rng(0))
