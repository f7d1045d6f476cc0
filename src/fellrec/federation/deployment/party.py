"""A client on its own machine: it takes the coordinator's orders, one at a time.

Its histories, its private tensors and its optimiser's moments stay in its folder. Of the base it
loads head and tail, whose tensors it checks against the base's manifest when a run begins; the
trunk is reached over the wire.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import fellrec
from fellrec.config import RunConfig
from fellrec.data.client_file import ClientFile, read_client_file
from fellrec.data.sources import fetch_model
from fellrec.errors import ConfigError, DataError, RunError, WireError
from fellrec.evaluation.ranking import mean_metrics
from fellrec.federation.client import Client
from fellrec.federation.decisions import judge
from fellrec.federation.deployment.agreement import agreed
from fellrec.federation.deployment.client_store import ClientStore
from fellrec.federation.deployment.orders import (
    AbsentError,
    Hello,
    Introduction,
    Order,
    Placed,
    Receive,
    Report,
    Score,
    Test,
    TestScores,
    Train,
)
from fellrec.federation.deployment.place import Place
from fellrec.federation.deployment.roll import check_adapter
from fellrec.federation.observer import Observer
from fellrec.federation.recommenders import outline_part
from fellrec.federation.runs import write_scores
from fellrec.federation.shares import Counts, Quota
from fellrec.federation.sizes import client_sizes
from fellrec.federation.store import Standing
from fellrec.federation.turns import ClientModel
from fellrec.federation.work import Work
from fellrec.federation.workspace import Workspace, moving
from fellrec.files import alone_in, append_line, finite, write_bytes
from fellrec.models import manifest
from fellrec.models.bases import load_config
from fellrec.models.optimiser import without
from fellrec.models.recommender import Kind
from fellrec.privacy import Secret
from fellrec.split.service.channel import Link
from fellrec.split.service.messages import Message
from fellrec.split.service.transport import GrpcTransport, greet
from fellrec.split.transport import Transport

Tensors = Mapping[str, Tensor]
_PATIENCE = 120.0  # seconds: for a process of this client that the trunk is about to turn away


class Party:
    """Answers orders.

    Every answer raises the FellrecError that fits; ConfigError where versions differ.
    """

    def __init__(self, place: Place, observer: Observer | None = None) -> None:
        self.place = place
        self.observer = observer or Observer()

    def answer(self, order: Order, tensors: Tensors) -> tuple[Message, Tensors]:
        """Do what an order says: the answer, and its tensors."""
        if order.version != fellrec.__version__:
            raise ConfigError(
                f"this client runs fellrec {fellrec.__version__}, the coordinator {order.version}; "
                "install the same"
            )
        folder = self.place.run(order.run)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # it tells who its users are
        config = RunConfig.from_text(
            order.recipe, "the coordinator's recipe", overrides=self.place.overrides
        )
        busy = "another process of this client works on the run; let it end"
        with alone_in(folder, busy, _PATIENCE):
            match order:
                case Hello():
                    return self._introduce(order, config)
                case Train():
                    with self._desk(order, config) as desk:
                        return desk.train(order, tensors)
                case Receive():
                    with self._desk(order, config) as desk:
                        return desk.receive(order, tensors)
                case Test():
                    with self._desk(order, config) as desk:
                        return desk.test(order, tensors)
                case _:
                    raise ConfigError(f"this client does not know the order {type(order).__name__}")

    def _introduce(self, order: Hello, config: RunConfig) -> tuple[Message, Tensors]:
        """Say who this is, once everything that a round needs has been looked at."""
        self.place.tls.read()
        own = read_client_file(self.place.data)
        if own.split_kind != config.data.split:
            raise DataError(
                f"{self.place.data}: is split {own.split_kind!r}, the recipe asks for "
                f"{config.data.split!r}; make it again"
            )
        digest = check_client(config)
        workspace = _workspace(config, self.place, own, _transport(config, None))
        folder = self.place.run(order.run)
        write_bytes(folder / "config.toml", config.to_toml().encode())
        self.place.note(order.run)
        counts = Counts.of(own.split, np.zeros(len(own.split), dtype=np.int64), 1)
        told = Introduction(
            client=self.place.name,
            version=fellrec.__version__,
            dataset=own.dataset_name,
            split=own.split_kind,
            users=len(own.split),
            dropped=own.split.dropped,
            items=len(own.catalogue),
            examples=int(counts.examples[0]),
            valid_users=int(counts.valid_users[0]),
            test_users=int(counts.test_users[0]),
            catalogue=own.catalogue_digest,
            manifest=digest,
            settings=agreed(config),
            sizes=client_sizes(workspace.recommender),
            held=ClientStore(folder, self.place.name).labels()[-64:],
        )
        return told, workspace.initial(Kind.LORA, Kind.DENSE)

    @contextmanager
    def _desk(self, order: Placed, config: RunConfig) -> Iterator[_Desk]:
        """Lay out what work takes; the connection to the trunk is closed in the end."""
        with ExitStack() as closing:
            connection = None
            if order.trunk:
                size = config.split.max_frame_mib << 20
                connection = GrpcTransport(
                    Link(order.trunk, self.place.tls, size),
                    greet(
                        manifest=manifest.digest(fetch_model(config.model.base)),
                        settings=agreed(config),
                        token=order.token,
                    ),
                    retry_seconds=self.place.retry_seconds,
                )
                closing.callback(connection.close)
            yield _Desk(self.place, config, order, connection, self.observer)


class _Desk:
    """One order's work: the client with its model, and where both are kept."""

    def __init__(
        self,
        place: Place,
        config: RunConfig,
        order: Placed,
        connection: GrpcTransport | None,
        observer: Observer,
    ) -> None:
        if config.train.threads:
            torch.set_num_threads(config.train.threads)
        self._config = config
        self._connection = connection
        self._own: ClientFile = read_client_file(place.data)
        transport = _transport(config, connection)
        self._workspace = _workspace(config, place, self._own, transport)
        self._quota = Quota(order.samples, order.valid_users, order.test_users)
        self._client: Client = self._workspace.client(place.name, self._own.split, self._quota)
        self._work = Work(config, self._workspace, observer)
        self._store = ClientStore(place.run(order.run), place.name)

    def train(self, order: Train, tensors: Tensors) -> tuple[Message, Tensors]:
        """Train from the label that the order names; what is mixed travels, all else is kept."""
        model = self._model(order, tensors)
        folder = self._store.begin(order.round + 1, order.label)
        sent = self._store.contribute() if self._config.privacy.user_noise else 0
        learned = self._work.learn(self._client, order.round, model, contributed=sent)
        if self._connection is not None:
            self._connection.finish()
        after, report = learned.model, learned.report
        for name, own in (
            ("adapter", after.exchanged),
            ("private", after.private),
            ("optimiser", after.moments),
        ):
            self._store.put(order.round + 1, name, own)
        line = {
            "round": order.round,
            "client": self._client.name,
            "loss": report.loss,
            "examples": report.examples,
            "tokens": report.tokens,
            "steps": report.steps,
            "seconds": round(report.seconds, 3),
            "waiting_seconds": round(report.waiting, 3),
        }
        append_line(folder / "metrics.jsonl", json.dumps(finite(line)))
        self._log(folder)
        told = Report(
            loss=report.loss,
            examples=report.examples,
            scored=learned.before is not None,
            before=0.0 if learned.before is None else learned.before,
            epsilon=report.epsilon,
            last=report.last,
        )
        names = moving(self._config, after.exchanged)
        return told, {name: after.exchanged[name] for name in names}

    def receive(self, order: Receive, tensors: Tensors) -> tuple[Message, Tensors]:
        """Take the mixture, score it, and keep it as the next label."""
        label, store = order.round + 1, self._store
        start = self._workspace.initial(Kind.LORA, Kind.DENSE)
        names = moving(self._config, start)
        check_adapter("the coordinator", tensors, {name: start[name] for name in names})
        folder = store.preparing(label)
        if not folder.exists():
            raise RunError(f"nothing was trained in round {order.round} here")
        if order.reset:
            own = [name for name in order.reset if name in self._workspace.initial(*Kind)]
            store.put(label, "optimiser", without(store.prepared(label, "optimiser"), own))
        exchanged = {**start, **tensors}
        store.put(label, "adapter", exchanged)
        model = ClientModel(exchanged, store.prepared(label, "private"), {})
        score, after = self._work.try_on(self._client, order.round, model)
        self._leave()
        store.put(label, "private", after.private)
        standing = Standing(
            order.best_score if order.scored else None, order.best_round, order.stale, order.stopped
        )
        _, improved = judge(standing, score, label, self._config.train.patience)
        self._log(folder)
        store.seal(label, order.label, improved=improved)
        return Score(score=score), {}

    def test(self, order: Test, tensors: Tensors) -> tuple[Message, Tensors]:
        """Score the best adapter on the test targets, and leave it where it stays."""
        model = self._model(order, tensors, best=True)
        scores, after = self._work.test(self._client, order.round, model, trained=order.label > 0)
        self._leave()
        best = {"adapter": model.exchanged, "private": after.private}
        if order.label:  # of a copy that the coordinator had kept, these are the private tensors
            self._store.complete(order.label, "best_private", after.private)
        folder = self._store.publish(order.label, best)
        write_scores(folder / "scores.parquet", self._client.data, scores)
        self._log(self._store.path)
        counted = int(np.count_nonzero(~np.isnan(scores[self._config.evaluation.metric])))
        return TestScores(scored=counted, metrics=mean_metrics(scores)), {}

    def _model(self, order: Placed, tensors: Tensors, *, best: bool = False) -> ClientModel:
        """Read the client's model of a label; the common start for label 0."""
        start, prefix = self._workspace.initial, "best_" if best else ""
        if tensors:
            check_adapter("the coordinator", tensors, start(Kind.LORA, Kind.DENSE))
            self._store.take_over(order.label, f"{prefix}adapter", tensors)
        exchanged = self._store.read(order.label, f"{prefix}adapter")
        if exchanged is None and order.label:
            raise AbsentError(
                f"client {self._client.name} no longer holds its {prefix}adapter of {order.label} "
                "rounds; the coordinator has a copy"
            )
        private = self._store.read(order.label, f"{prefix}private")
        return ClientModel(
            start(Kind.LORA, Kind.DENSE) if exchanged is None else exchanged,
            start(Kind.PRIVATE) if private is None else private,
            {},
            {} if best else self._store.read(order.label, "optimiser") or {},
        )

    def _leave(self) -> None:
        """Let the trunk know that nothing more comes, so that it lets go of the session."""
        if self._connection is not None:
            with suppress(WireError):  # a trunk that can't be told lets go when it is tired of us
                self._connection.finish()

    def _log(self, folder: Path) -> None:
        self._workspace.ledger.append_csv(folder / "ledger.csv")


def _workspace(
    config: RunConfig, place: Place, own: ClientFile, transport: Transport | None
) -> Workspace:
    """Put the client's model together, with noise that nobody else can draw.

    Raises ConfigError where the recipe asks for a secret that this machine has not been given.
    """
    if config.privacy.secret_start and place.secret is None:
        raise ConfigError(
            "privacy.secret_start: this client has no secret; give its SuperNode a file that all "
            "clients have alike (secret of --node-config)"
        )
    secret = Secret.read(place.secret) if place.secret is not None else None
    noise = Secret.drawn  # another one for each turn
    return Workspace(config, own.public(), transport=transport, secret=secret, noise=noise)


class _Nowhere:
    """Stands for a trunk that no order has named yet."""

    def exchange(self, frame: bytes) -> bytes:
        raise WireError("the coordinator named no trunk; give it one (trunk = HOST:PORT)")


def _transport(config: RunConfig, connection: GrpcTransport | None) -> Transport | None:
    """Return the way to the trunk; None where the recipe leaves no block for one."""
    architecture = load_config(fetch_model(config.model.base))
    if not outline_part(config, architecture, "trunk").blocks:
        return None
    return _Nowhere() if connection is None else connection


def check_client(config: RunConfig) -> str:
    """Check the tensors that a client will read of the base; return the digest of its manifest.

    Raises ModelError for a tensor of head, tail or output layer that is not the manifest's.
    """
    base = fetch_model(config.model.base)
    architecture = load_config(base)
    stages = [outline_part(config, architecture, role) for role in ("head", "tail")]
    output = config.model.recommender == "bigrec"
    manifest.check(base, manifest.stage_tensors(base, stages, output=output))
    return manifest.digest(base)
