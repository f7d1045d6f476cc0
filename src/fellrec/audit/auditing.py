"""`fellrec audit`: attack a finished run's own clients, and say how much came of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fellrec.audit import membership
from fellrec.audit.alignment import Usual, read_by_fit
from fellrec.audit.findings import Audit, Membership, Trace, Veiled
from fellrec.audit.inverter import Inverter
from fellrec.audit.knowledge import KNOWS, Knows, supposed
from fellrec.audit.order import seen_in_order, steps_in_order, usual_by_place
from fellrec.audit.readers import reader_of
from fellrec.audit.readers.reader import one_unit
from fellrec.audit.recovery import Content
from fellrec.audit.tally import Tally, mean, summed
from fellrec.audit.touched import leaning, told_apart, turned
from fellrec.audit.wiretap import (
    Items,
    Seen,
    Step,
    histories_seen,
    led,
    steps_seen,
    tapped,
)
from fellrec.data.interactions import Ragged
from fellrec.errors import ConfigError
from fellrec.evaluation.bootstrap import paired_bootstrap
from fellrec.evaluation.popularity import places
from fellrec.federation.shares import seeded
from fellrec.federation.turns import ClientModel, Turn, turn
from fellrec.files import write_json
from fellrec.models.dropout import StepKey
from fellrec.privacy import Cover, Draws, Veil, made_up, public_bound
from fellrec.privacy.accounting import histories_epsilon
from fellrec.serving.run import Run, RunClient

FILE = "audit.json"
_PROBES = 64  # histories of one item by which the server asks what a model leans to
_MADE_UP = 128  # histories by which the server learns what each place looks like
_USUAL = 512  # those by which it learns what the public head gives for each unit
_ACQUAINTED = 16  # users of a client whose histories a server with accounts of its own has
_DELTA = 1e-5
_FEWEST = 8  # users of a client with which the game of membership is played


def audit(
    run: Run,
    *,
    users: int = 20,
    most: int = 256,
    lessons: int = 200,
    noise: float = 0.0,
    uploads: bool = True,
    seed: int = 0,
    progress: Callable[[str], None] = lambda doing: None,
) -> Audit:
    """Attack users of a finished run, and write `audit.json` into its folder.

    users: how many, drawn by the seed, spread over the clients in turn; 0 takes all. most:
    candidates that the search tries at a position, 0 for the whole catalogue. lessons: steps for
    which the inverter is taught. noise: of a veil that clients draw over all that they send, with a
    typical activation's length as its bound; 0 for none. uploads: attack these as well, for which
    clients train. progress: told what begins.

    Raises ConfigError for a run in which nothing crosses, or negative noise.
    """
    it = _Auditor(run, most, lessons, noise, seed, progress)
    tally = Tally()
    for client, chosen in _drawn(run, users, seed):
        it.attack(client, chosen, tally)
        if uploads:
            it.attack_upload(client, tally)
    told, halves = it.membership() if uploads else ((), (0, 0))
    done = summed(run, it.reader, tally, it.popular, told, halves, it.veiled(tally))
    write_json(Path(run.path) / FILE, done.as_json())
    return done


class _Auditor:
    """Plays the server against one client after another."""

    def __init__(
        self,
        run: Run,
        most: int,
        lessons: int,
        noise: float,
        seed: int,
        progress: Callable[[str], None],
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
        self._usual: Usual | None = None
        self._cover = self._covering(noise)

    def _covering(self, noise: float) -> Cover:
        """What clients draw over what they send: as the run has it, or a veil of this noise.

        The veil's bound is one that anybody can work out.
        """
        run, own = self._run, self._workspace.cover
        if not noise:
            return own
        if own.veil is not None:
            raise ConfigError(
                f"this run's clients blur what they send already (privacy.noise = "
                f"{own.veil.noise}); leave out --noise"
            )
        rng, first = seeded(self._seed, "veil"), run.clients()[0]
        longest, items = run.config.model.history, len(self.popular)
        with turn(self._workspace, first.client, 0, supposed(self._workspace, first.model, "base")):
            first.client.begin_serving()
            bound = public_bound(first.client.recommender, rng, longest, items)
        return Cover(Veil(bound, noise), own.shuffles, Draws.by(rng), own.order)

    def attack(self, client: RunClient, chosen: Items, tally: Tally) -> None:
        """Let some of a client's users be scored and trained on, and read what crossed."""
        self._progress(f"attacking client {client.name}")
        self._run.ready = None
        histories = client.client.data.history("test").take(chosen)
        others = np.setdiff1d(client.client.scored("test"), chosen)
        with tapped(client.client, self._server, self._run.config, self._cover) as tap:
            with self._going_on(client):
                seen = histories_seen(client.client, tap, histories)
                rest = client.client.data.history("test").take(others)
                crowd = histories_seen(client.client, tap, rest)
            with self._going_on(client):
                steps = steps_seen(client.client, tap, len(chosen))
        tally.truths += [self.reader.content(one_unit(each.inputs)) for each in seen]
        tally.lengths += [len(each.activations) for each in seen]
        tally.targets += [int(x) for step in steps for x in self.reader.labels(step)][: len(chosen)]
        for knows in KNOWS:
            model = supposed(self._workspace, client.model, knows)
            with turn(self._workspace, client.client, 0, model):
                client.client.begin_serving()
                if self._cover.shuffles:
                    made = self._made_up("order", _MADE_UP)
                    usual = usual_by_place(self.reader.activations(made))
                    seen, steps = seen_in_order(seen, usual), steps_in_order(steps, usual)
                    crowd = seen_in_order(crowd, usual)
                self._read_back(seen, crowd, knows, tally)
                self._tell(client, steps, len(chosen), knows, tally)

    def _made_up(self, name: str, count: int) -> Ragged:
        longest, items = self._run.config.model.history, len(self.popular)
        return made_up(seeded(self._seed, name), count, longest, items)

    def attack_upload(self, client: RunClient, tally: Tally) -> None:
        """Let a client train for a round, and tell from its upload what its users touched."""
        self._progress(f"teaching client {client.name} for a round")
        for attack, scores in self._touched(client):
            learned = client.client.learned_from
            pair = told_apart(scores, learned), told_apart(-self.popular, learned)
            tally.touched[attack].append(pair)

    def _going_on(self, client: RunClient) -> AbstractContextManager[Turn]:
        """Lend a client its best model for the round after the run's last; nothing is kept."""
        return turn(self._workspace, client.client, self._run.config.train.rounds, client.model)

    def _read_back(
        self, seen: Sequence[Seen], crowd: Sequence[Seen], knows: Knows, tally: Tally
    ) -> None:
        activations = [each.activations for each in seen]
        found = self.reader.read_back(activations, self._most)
        if knows == "base":
            # The start is common to all clients, and with it what the inverter is taught.
            if self._inverter is None:
                self._progress("teaching an inverter on made-up histories")
                self._inverter = Inverter.taught(
                    self.reader, self._run.config, self._cover, self._lessons, self._seed
                )
            found["inverter"] = self._inverter.read(activations, self.reader)
            found |= self._aligned(activations, crowd)
        for name, contents in found.items():
            tally.guesses[name, knows] += contents

    def _aligned(
        self, activations: Sequence[Tensor], crowd: Sequence[Seen]
    ) -> dict[str, list[Content]]:
        """See `alignment`. crowd: the client's other users, of whom some may be acquainted."""
        if self._usual is None:
            self._progress("fitting what crossed to the public head")
            self._usual = Usual.of(self.reader, self._made_up("usual", _USUAL))
        others = [each.activations for each in crowd]
        known = [one_unit(each.inputs) for each in crowd[:_ACQUAINTED]]
        return read_by_fit(self.reader, self._usual, activations, others, known)

    def _tell(
        self, client: RunClient, steps: Sequence[Step], rows: int, knows: Knows, tally: Tally
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

    def veiled(self, tally: Tally) -> Veiled | None:
        """Score all test users with the veil and without; None where there is no veil."""
        config, veil = self._run.config, self._cover.veil
        if veil is None:
            return None
        self._progress("scoring all users with the veil and without")
        with_it, without = [], []
        for client in self._run.clients():
            with led(client.client, self._workspace.line):
                without.append(client.evaluate()[config.evaluation.metric])
            with led(client.client, self._cover.over(self._workspace.line)):
                with_it.append(client.evaluate()[config.evaluation.metric])
        scores, usual = np.concatenate(with_it), np.concatenate(without)
        width = self._workspace.recommender.head.width
        positions = int(np.median(tally.lengths))
        promised = histories_epsilon(veil.noise, width, positions, 1, _DELTA)
        return Veiled(
            noise=veil.noise,
            bound=veil.bound,
            metric=config.evaluation.metric,
            score=mean(scores),
            without=mean(usual),
            difference=paired_bootstrap(scores, usual, np.random.default_rng(0)),
            positions=positions,
            delta=_DELTA,
            epsilon=promised if math.isfinite(promised) else None,
        )

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
