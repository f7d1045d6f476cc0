"""`fellrec audit`: attack a finished run's own clients, and say how much came of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fellrec.audit import membership
from fellrec.audit.findings import Audit, Inversion, Labels, Membership, Touched, Trace
from fellrec.audit.inverter import Inverter
from fellrec.audit.knowledge import KNOWS, Knows, supposed
from fellrec.audit.readers import Reader, reader_of
from fellrec.audit.readers.reader import one_unit
from fellrec.audit.recovery import Content, by_chance, placed, recovered, rouge_l
from fellrec.audit.touched import leaning, told_apart, turned
from fellrec.audit.wiretap import Items, Seen, Step, histories_seen, steps_seen, tapped
from fellrec.data.interactions import Ragged
from fellrec.errors import ConfigError
from fellrec.evaluation.bootstrap import Interval, mean_interval
from fellrec.evaluation.popularity import places
from fellrec.federation.turns import ClientModel, Turn, turn
from fellrec.federation.workspace import seeded
from fellrec.files import write_json
from fellrec.models.dropout import StepKey
from fellrec.serving.run import Run, RunClient

FILE = "audit.json"
_TEN = 10
_PROBES = 64  # histories of one item by which the server asks what a model leans to
_FEWEST = 8  # users of a client with which the game of membership is played

Touches = tuple[float, float]


@dataclass
class _Tally:
    """What was guessed so far, by attacker and what it knows.

    ranks: of last targets, from 0. touched: each client's AUC by its upload and by popularity.
    """

    truths: list[Content] = field(default_factory=list)
    guesses: dict[tuple[str, Knows], list[Content]] = field(
        default_factory=lambda: defaultdict(list)
    )
    targets: list[int] = field(default_factory=list)
    ranks: dict[tuple[str, Knows], list[int]] = field(default_factory=lambda: defaultdict(list))
    touched: dict[Trace, list[Touches]] = field(default_factory=lambda: defaultdict(list))


def audit(
    run: Run,
    *,
    users: int = 20,
    most: int = 256,
    lessons: int = 200,
    seed: int = 0,
    progress: Callable[[str], None] = lambda doing: None,
) -> Audit:
    """Attack users of a finished run, and write `audit.json` into its folder.

    users: how many, drawn by the seed, spread over the clients in turn; 0 takes all. most:
    candidates that the search tries at a position, 0 for the whole catalogue. lessons: steps for
    which the inverter is taught. progress: told what begins.

    Raises ConfigError for a run in which nothing crosses.
    """
    it = _Auditor(run, most, lessons, seed, progress)
    tally = _Tally()
    for client, chosen in _drawn(run, users, seed):
        it.attack(client, chosen, tally)
    told, halves = it.membership()
    done = _summed(run, it.reader, tally, it.popular, told, halves)
    write_json(Path(run.path) / FILE, done.as_json())
    return done


class _Auditor:
    """Plays the server against one client after another."""

    def __init__(
        self, run: Run, most: int, lessons: int, seed: int, progress: Callable[[str], None]
    ) -> None:
        workspace = run.workspace
        if workspace.server is None:
            raise ConfigError(
                "nothing crosses in this run: all blocks are on the client; lower k_in"
            )
        self.popular = places(run.shares.split.train, len(run.shares.dataset.catalogue))
        self.reader = reader_of(workspace.recommender, len(self.popular))
        self._run, self._workspace, self._server = run, workspace, workspace.server
        self._most, self._lessons = most, lessons
        self._seed, self._progress = seed, progress
        self._inverter: Inverter | None = None

    def attack(self, client: RunClient, chosen: Items, tally: _Tally) -> None:
        """Let some of a client's users be scored and trained on, and read what crossed."""
        self._progress(f"attacking client {client.name}")
        self._run.ready = None
        histories = client.client.data.history("test").take(chosen)
        with tapped(client.client, self._server, self._run.config) as tap:
            with self._going_on(client):
                seen = histories_seen(client.client, tap, histories)
            with self._going_on(client):
                steps = steps_seen(client.client, tap, len(chosen))
        tally.truths += [self.reader.content(one_unit(each.inputs)) for each in seen]
        tally.targets += [int(x) for step in steps for x in self.reader.labels(step)][: len(chosen)]
        for knows in KNOWS:
            model = supposed(self._workspace, client.model, knows)
            with turn(self._workspace, client.client, 0, model):
                client.client.begin_serving()
                self._read_back(seen, knows, tally)
                self._tell(client, steps, len(chosen), knows, tally)
        for attack, scores in self._touched(client):
            learned = client.client.learned_from
            pair = told_apart(scores, learned), told_apart(-self.popular, learned)
            tally.touched[attack].append(pair)

    def _going_on(self, client: RunClient) -> AbstractContextManager[Turn]:
        """Lend a client its best model for the round after the run's last; nothing is kept."""
        return turn(self._workspace, client.client, self._run.config.train.rounds, client.model)

    def _read_back(self, seen: Sequence[Seen], knows: Knows, tally: _Tally) -> None:
        activations = [each.activations for each in seen]
        found = self.reader.read_back(activations, self._most)
        if knows == "base":
            # The start is common to all clients, and with it what the inverter is taught.
            if self._inverter is None:
                self._progress("teaching an inverter on made-up histories")
                self._inverter = Inverter.taught(
                    self.reader, self._run.config, self._lessons, self._seed
                )
            found["inverter"] = self._inverter.read(activations, self.reader)
        for name, contents in found.items():
            tally.guesses[name, knows] += contents

    def _tell(
        self, client: RunClient, steps: Sequence[Step], rows: int, knows: Knows, tally: _Tally
    ) -> None:
        key = StepKey(self._run.config.seed, client.name, self._run.config.train.rounds)
        for name, ranks in self.reader.told(steps, key, client.client.trunk).items():
            tally.ranks[name, knows] += ranks[:rows]

    def _touched(self, client: RunClient) -> Iterator[tuple[Trace, NDArray[np.float64]]]:
        """Let a client train a whole round, and score items by what it would upload."""
        with self._going_on(client) as it:
            client.client.train(self._run.config.train.rounds)
        before, after = client.model, it.finished()
        table = "item_residual"
        if table in after.exchanged:
            yield "table", turned(before.exchanged[table], after.exchanged[table])
        if self.reader.scores_all:
            rng = seeded(self._seed, "probes")
            items = rng.choice(len(self.popular), min(_PROBES, len(self.popular)), replace=False)
            probes = Ragged.from_lengths(np.ones(len(items), np.int64), items.astype(np.int32))
            then, now = (self._supposed(model) for model in (before, after))
            yield "leaning", leaning(self._workspace, client.client, then, now, probes)

    def _supposed(self, model: ClientModel) -> ClientModel:
        return supposed(self._workspace, model, "adapters")

    def membership(self) -> tuple[tuple[Membership, ...], tuple[int, int]]:
        """Play the game of membership with the client of median size; also say of how many."""
        shares = self._run.shares
        clients = self._run.clients()
        client = sorted(clients, key=lambda each: len(each.client.data))[len(clients) // 2]
        data = client.client.data
        if len(data) < _FEWEST:
            return (), (0, 0)
        self._progress(f"teaching client {client.name} half of its users")
        quota = shares.quotas[shares.partition.names.index(client.name)]
        before, after = membership.game(self._workspace, client.name, data, quota, self._seed)
        return membership.judged(before, after), (len(after.members), len(after.others))


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


def _summed(
    run: Run,
    reader: Reader,
    tally: _Tally,
    popular: Items,
    told: tuple[Membership, ...],
    halves: tuple[int, int],
) -> Audit:
    model = run.config.model
    first = reader.alike[np.argsort(popular)]
    return Audit(
        recommender=model.recommender,
        k_in=model.k_in,
        k_out=model.k_out,
        codec=run.config.split.codec,
        item_residual=model.item_residual if model.recommender == "hllm" else "none",
        users=len(tally.truths),
        chance=_mean([by_chance(truth.items, first) for truth in tally.truths]),
        inversion=tuple(
            _inversion(*by, tally.truths, guesses) for by, guesses in tally.guesses.items()
        ),
        learners=len(tally.targets),
        label_chance=_mean([float(item in first[:_TEN]) for item in tally.targets]),
        labels=tuple(
            Labels(
                *by,
                _mean([float(rank == 0) for rank in ranks]),
                _mean([float(rank < _TEN) for rank in ranks]),
            )
            for by, ranks in tally.ranks.items()
        ),
        touched=tuple(
            each for by, pairs in tally.touched.items() if (each := _touched(by, pairs)) is not None
        ),
        members=halves[0],
        others=halves[1],
        membership=told,
    )


def _inversion(
    attack: str, knows: Knows, truths: Sequence[Content], guesses: Sequence[Content]
) -> Inversion:
    pairs = list(zip(truths, guesses, strict=True))
    spelled = [
        (truth.tokens, guess.tokens)
        for truth, guess in pairs
        if truth.tokens is not None and guess.tokens is not None
    ]
    return Inversion(
        attack,
        knows,
        _mean([recovered(truth.items, guess.items) for truth, guess in pairs]),
        float(np.mean([placed(truth.items, guess.items) for truth, guess in pairs])),
        float(np.mean([placed(*each) for each in spelled])) if spelled else None,
        float(np.mean([rouge_l(*each) for each in spelled])) if spelled else None,
    )


def _touched(attack: Trace, found: Sequence[Touches]) -> Touched | None:
    known = [pair for pair in found if not np.isnan(pair).any()]
    if not known:
        return None
    uploads, popularity = zip(*known, strict=True)
    mean = float(np.mean(uploads))
    return Touched(attack, mean, min(uploads), max(uploads), float(np.mean(popularity)))


def _mean(shares: Sequence[float]) -> Interval:
    return mean_interval(np.asarray(shares), np.random.default_rng(0))
