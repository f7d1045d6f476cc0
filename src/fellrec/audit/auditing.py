"""`fellrec audit`: attack a finished run's own clients, and say how much came of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fellrec.audit.findings import Audit, Inversion, Labels, Touched
from fellrec.audit.inversion import nearest, read_alone, search
from fellrec.audit.knowledge import KNOWS, Knows, suppose
from fellrec.audit.labels import judged
from fellrec.audit.recovery import by_chance, placed, recovered
from fellrec.audit.touched import told_apart, turned
from fellrec.audit.wiretap import Items, Seen, Step, histories_seen, steps_seen, tapped
from fellrec.errors import ConfigError
from fellrec.evaluation.bootstrap import Interval, mean_interval
from fellrec.evaluation.popularity import places
from fellrec.federation.turns import Turn, turn
from fellrec.federation.workspace import seeded
from fellrec.files import write_json
from fellrec.models.dropout import StepKey
from fellrec.models.hllm import Hllm
from fellrec.serving.run import Run, RunClient

FILE = "audit.json"
_TEN = 10


@dataclass
class _Tally:
    """What was guessed so far, by attacker and what it knows.

    ranks: of last targets, from 0. touched: each client's AUC by its upload and by popularity.
    """

    guesses: dict[tuple[str, Knows], list[Items]] = field(default_factory=lambda: defaultdict(list))
    ranks: dict[tuple[str, Knows], list[int]] = field(default_factory=lambda: defaultdict(list))
    histories: list[Items] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    touched: list[tuple[float, float]] = field(default_factory=list)


def audit(
    run: Run,
    *,
    users: int = 20,
    most: int = 256,
    seed: int = 0,
    progress: Callable[[str], None] = lambda client: None,
) -> Audit:
    """Attack users of a finished run, and write `audit.json` into its folder.

    users: how many, drawn by the seed, spread over the clients in turn; 0 takes all. most:
    candidates that the search tries at a position, 0 for the whole catalogue. progress: told each
    client's name before it is attacked.

    Raises ConfigError for a run in which nothing crosses, or of a recommender that isn't read yet.
    """
    recommender, server = run.workspace.recommender, run.workspace.server
    if server is None:
        raise ConfigError("nothing crosses in this run: all blocks are on the client; lower k_in")
    if not isinstance(recommender, Hllm):
        raise ConfigError(
            f"model.recommender: the audit reads runs of hllm, not yet of "
            f"{run.config.model.recommender}"
        )
    tally = _Tally()
    popular = places(run.shares.split.train, len(run.shares.dataset.catalogue))
    for client, chosen in _drawn(run, users, seed):
        progress(client.name)
        run.ready = None
        histories = client.client.data.history("test").take(chosen)
        with tapped(client.client, server, run.config) as tap:
            with _going_on(client):
                seen = histories_seen(client.client, tap, histories)
            with _going_on(client):
                steps = steps_seen(client.client, tap, len(chosen))
        if run.config.model.item_residual == "shared":
            train = client.client.learned_from
            scores = _uploaded(client), -popular
            tally.touched.append((told_apart(scores[0], train), told_apart(scores[1], train)))
        tally.histories += [each.items for each in seen]
        tally.targets += [int(label) for step in steps for label in step.labels][: len(chosen)]
        key = StepKey(run.config.seed, client.name, run.config.train.rounds)
        for knows in KNOWS:
            suppose(client.client, run.workspace, client.model, knows)
            for name, guessed in _read_back(recommender, seen, most).items():
                tally.guesses[name, knows] += guessed
            for name, ranks in _told(recommender, steps, key).items():
                tally.ranks[name, knows] += ranks[: len(chosen)]
    done = _summed(run, tally, popular)
    write_json(Path(run.path) / FILE, done.as_json())
    return done


def _drawn(run: Run, users: int, seed: int) -> Iterator[tuple[RunClient, Items]]:
    """Draw test users: clients with rows of their data, those with none left out."""
    rng = seeded(seed, "audit")
    clients = run.clients()
    order = [rng.permutation(client.client.scored("test")) for client in clients]
    total = sum(map(len, order))
    wanted, take = min(users, total) or total, [0] * len(clients)
    while sum(take) < wanted:
        for at, rows in enumerate(order):
            if take[at] < len(rows) and sum(take) < wanted:
                take[at] += 1
    for client, rows, count in zip(clients, order, take, strict=True):
        if count:
            yield client, rows[:count].astype(np.int64)


def _going_on(client: RunClient) -> AbstractContextManager[Turn]:
    """Lend a client its best model for the round after the run's last; nothing is kept of it."""
    run = client.run
    return turn(run.workspace, client.client, run.config.train.rounds, client.model)


def _uploaded(client: RunClient) -> NDArray[np.float64]:
    """Let a client train a whole round, and score items by what it would upload."""
    name = "item_residual"
    with _going_on(client) as it:
        client.client.train(client.run.config.train.rounds)
    return turned(client.model.exchanged[name], it.finished().exchanged[name])


def _read_back(recommender: Hllm, seen: Sequence[Seen], most: int) -> dict[str, list[Items]]:
    """Return what each attacker guesses of each history, with the head that is installed."""
    recommender.eval()
    with torch.no_grad():
        table, head = recommender.item_vectors(), recommender.head
        alone = read_alone(head, table)
        centre = torch.cat([each.activations for each in seen]).mean(dim=0)
        return {
            "nearest": [nearest(each, alone, centre) for each in seen],
            "search": [search(each, head, table, alone, most) for each in seen],
        }


def _told(recommender: Hllm, steps: Sequence[Step], key: StepKey) -> dict[str, list[int]]:
    """Return at which place each attacker has each last target, with the tail installed."""
    recommender.train()
    table, scale = recommender.item_vectors().detach(), float(recommender.scale.detach())
    found: dict[str, list[int]] = {"prediction": [], "gradient": []}
    for step in steps:
        by_gradient, predicted = judged(step, recommender.tail, key, table, scale)
        found["gradient"] += _ranks(by_gradient, step.labels)
        found["prediction"] += _ranks(predicted, step.labels)
    recommender.eval()
    return found


def _ranks(scores: Tensor, labels: Items) -> list[int]:
    own = scores.gather(1, torch.from_numpy(labels)[:, None].to(scores.device))
    return [int(rank) for rank in (scores > own).sum(dim=1)]


def _summed(run: Run, tally: _Tally, popular: Items) -> Audit:
    model = run.config.model
    return Audit(
        k_in=model.k_in,
        k_out=model.k_out,
        codec=run.config.split.codec,
        item_residual=model.item_residual,
        users=len(tally.histories),
        chance=_mean([by_chance(items, popular) for items in tally.histories]),
        inversion=tuple(
            Inversion(
                name,
                knows,
                _mean(list(map(recovered, tally.histories, guesses))),
                float(np.mean(list(map(placed, tally.histories, guesses)))),
            )
            for (name, knows), guesses in tally.guesses.items()
        ),
        learners=len(tally.targets),
        label_chance=_mean([float(popular[item] < _TEN) for item in tally.targets]),
        labels=tuple(
            Labels(
                name,
                knows,
                _mean([float(rank == 0) for rank in ranks]),
                _mean([float(rank < _TEN) for rank in ranks]),
            )
            for (name, knows), ranks in tally.ranks.items()
        ),
        touched=_touched(tally.touched),
    )


def _touched(found: Sequence[tuple[float, float]]) -> Touched | None:
    known = [pair for pair in found if not np.isnan(pair).any()]
    if not known:
        return None
    uploads, popularity = zip(*known, strict=True)
    mean = float(np.mean(uploads))
    return Touched(mean, min(uploads), max(uploads), float(np.mean(popularity)))


def _mean(shares: Sequence[float]) -> Interval:
    return mean_interval(np.asarray(shares), np.random.default_rng(0))
