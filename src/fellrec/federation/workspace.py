"""From a recipe to the things a run works with: data, clients' shares, stages, trunk server.

A simulation of any number of clients builds one head, one tail and one trunk: clients take turns
on them, and what is theirs (adapters, private tensors, moments) is on disk between turns.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from fellrec.config import PROXIMAL, RunConfig
from fellrec.data.interactions import Dataset, Split, k_core, sample_users
from fellrec.data.partition import Partition, partition
from fellrec.data.sampling import apportion, evenly
from fellrec.data.sources import fetch_model, load_dataset
from fellrec.data.splits import split
from fellrec.errors import ConfigError, DataError
from fellrec.federation.client import Client, ClientSettings
from fellrec.federation.members import Start
from fellrec.federation.recommenders import build_recommender, load_part
from fellrec.models.adapters import LoraSettings, adapter, attach
from fellrec.models.optimiser import OptimiserSettings
from fellrec.models.recommender import Kind, NoTrunk, Trunk
from fellrec.models.stages import Role, Stage
from fellrec.privacy import (
    Cover,
    Secret,
    UserLevel,
    Veil,
    order_is_free,
    public_bound,
    start_secretly,
)
from fellrec.split.codecs import Codec
from fellrec.split.frames import MAX_CLIENT_BYTES
from fellrec.split.ledger import Ledger
from fellrec.split.remote import RemoteTrunk
from fellrec.split.transport import InProcessTransport, Transport
from fellrec.split.trunk import SessionSettings, TrunkServer

if TYPE_CHECKING:
    from fellrec.privacy.accounting import Budget

_Counts = npt.NDArray[np.int64]
Spread = Callable[[int, _Counts], _Counts]
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Quota:
    """What one client draws of its own: examples to learn from, users to be scored; 0 is all."""

    samples: int = 0
    valid_users: int = 0
    test_users: int = 0


@dataclass(frozen=True)
class Shares:
    """The data of a run, whose it is, and how much of it is used."""

    dataset: Dataset
    split: Split
    partition: Partition
    quotas: tuple[Quota, ...]

    def of(self, client: int) -> Split:
        """Return the users of one client."""
        return self.split.take(np.flatnonzero(self.partition.assignment == client))


def seeded(seed: int, *names: str) -> np.random.Generator:
    """Return a generator that depends on the seed and the names alone."""
    text = "|".join((str(seed), *names))
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def load_split(config: RunConfig) -> tuple[Dataset, Split]:
    """Load, filter and split the data of a recipe."""
    dataset = load_dataset(config.data.source)
    if config.data.k_core:
        dataset = k_core(dataset, config.data.k_core)
    if config.data.max_users:
        dataset = sample_users(dataset, config.data.max_users, seeded(config.seed, "users"))
    return dataset, split(dataset, config.data.split)


def share_data(config: RunConfig) -> Shares:
    """Load, filter, split and partition the data of a recipe."""
    dataset, parts = load_split(config)
    clients = config.clients
    shares = partition(
        parts,
        clients.partition,
        clients.count,
        seeded(config.seed, "partition"),
        column=clients.column,
        alpha=clients.concentration,
        n_items=len(dataset.catalogue),
        groups=clients.groups,
    )
    if clients.per_round > len(shares.names):
        raise ConfigError(
            f"clients.per_round = {clients.per_round}, but there are {len(shares.names)} clients"
        )
    for client, name in enumerate(shares.names):
        # A client's name becomes that of a folder and travels in every frame.
        odd = {"/", "\\", "\0"} & set(name) or name in (".", "..") or not name.isprintable()
        if odd or len(name.encode()) > MAX_CLIENT_BYTES:
            raise DataError(f"{name!r} can't name a client; use another value in the users' column")
        users = np.flatnonzero(shares.assignment == client)
        if not (parts.train.lengths()[users] >= 2).any():
            raise DataError(f"client {name} has no history to learn from; use fewer clients")
    counts = Counts.of(parts, shares.assignment, len(shares))
    return Shares(dataset, parts, shares, quotas(config, counts))


@dataclass(frozen=True)
class Counts:
    """How much clients have to draw from, each (clients,): examples, users with targets."""

    examples: _Counts
    valid_users: _Counts
    test_users: _Counts

    @classmethod
    def of(cls, parts: Split, assignment: npt.NDArray[np.integer], clients: int) -> Counts:
        """Count the users of a split by client."""

        def count(each: npt.NDArray[np.integer]) -> _Counts:
            return np.bincount(assignment, each, clients).astype(np.int64)

        return cls(
            count((parts.train.lengths() - 1).clip(0)),
            count(np.sign(parts.valid.lengths())),
            count(np.sign(parts.test.lengths())),
        )


def quotas(config: RunConfig, counts: Counts) -> tuple[Quota, ...]:
    """Spread the run's samples over clients: examples evenly, users in proportion.

    Who has few examples to show of its own kind is not to be drowned out, while a score over a
    sample of users has to be that of all users on average. Raises ConfigError for a sample that is
    smaller than the number of clients.
    """

    def spread(key: str, total: int, of_client: _Counts, how: Spread) -> _Counts:
        if 0 < total < np.count_nonzero(of_client):
            raise ConfigError(f"{key} = {total}, but there are {len(of_client)} clients; raise it")
        return how(total, of_client) if total else np.zeros_like(of_client)

    train, scored = config.train, config.evaluation
    columns = (
        spread("train.samples", train.samples, counts.examples, evenly),
        spread("evaluation.valid_users", scored.valid_users, counts.valid_users, apportion),
        spread("evaluation.test_users", scored.test_users, counts.test_users, apportion),
    )
    return tuple(Quota(*map(int, row)) for row in np.stack(columns, axis=1))


def lora_settings(config: RunConfig) -> LoraSettings:
    """Read the [lora] section."""
    lora = config.lora
    return LoraSettings(lora.rank, lora.alpha, lora.dropout, tuple(lora.targets), lora.freeze_a)


def optimiser_settings(config: RunConfig) -> OptimiserSettings:
    """Read the optimiser's part of the [train] section, and a strategy's proximal term."""
    train, balance = config.train, config.balance
    proximal = balance.proximal if balance.strategy in PROXIMAL else 0.0
    return OptimiserSettings(train.learning_rate, train.weight_decay, train.clip, proximal)


def client_settings(config: RunConfig, quota: Quota) -> ClientSettings:
    """Read what a client needs of the [train] and [evaluation] sections."""
    train, evaluation = config.train, config.evaluation
    return ClientSettings(
        seed=config.seed,
        optimiser=optimiser_settings(config),
        local_epochs=train.local_epochs,
        batch_size=train.batch_size,
        micro_batches=train.micro_batches,
        in_flight=train.in_flight,
        windows=train.windows,
        ks=tuple(evaluation.ks),
        evaluation_batch=evaluation.batch_size,
        samples=quota.samples,
        valid_users=quota.valid_users,
        test_users=quota.test_users,
        alternate=config.lora.alternate,
        user_level=user_level(config),
    )


def user_level(config: RunConfig) -> UserLevel | None:
    """Read what the [privacy] section asks of steps; None where these are not private."""
    privacy = config.privacy
    return UserLevel(privacy.user_noise, privacy.user_clip) if privacy.user_noise else None


def moving(config: RunConfig, names: Iterable[str]) -> set[str]:
    """Return which of the tensors that are exchanged are trained and mixed: not a frozen A."""
    return {name for name in names if not (config.lora.freeze_a and ".lora_A." in name)}


def start_of(config: RunConfig, exchanged: Tensors, trunk: Tensors) -> Start:
    """Put together what every client starts from."""
    apart = config.privacy.user_noise or not config.privacy.exchange_trunk  # it rests, or stays
    mixed = exchanged if apart else {**exchanged, **trunk}
    return Start(exchanged, trunk, moving(config, mixed))


def load_adapted(config: RunConfig, base: Path, role: Role) -> Stage:
    """Load one stage with its adapter attached."""
    stage = load_part(config, base, role)
    attach(stage, lora_settings(config), config.seed)
    return stage


def trunk_server(config: RunConfig) -> TrunkServer | None:
    """Load the trunk of a recipe, ready to answer frames; None where no block is left for it."""
    stage = load_adapted(config, fetch_model(config.model.base), "trunk")
    optimiser = optimiser_settings(config)
    if config.privacy.user_noise:  # the trunk's adapter rests
        optimiser = replace(optimiser, learning_rate=0.0, proximal=0.0)
    settings = SessionSettings(
        config.seed,
        optimiser,
        config.train.micro_batches,
        config.split.max_frame_mib << 20,
        config.split.max_cache_mib << 20,
        config.lora.alternate,
    )
    return TrunkServer(stage, settings) if stage.blocks else None


class Workspace:
    """The model of a run, cut; every part is in this process unless a transport leads elsewhere.

    recommender: the client's side. server: the trunk's side, None where no block is left for it or
    where it is elsewhere. line: how the client reaches it, through the wire's codec; cover: what it
    draws over what it sends; trunk: the line under the cover. ledger: what crossed.

    secret: where a private head starts, see the recipe's [privacy]; None for the public start.
    noise: what the cover is drawn from. In a simulation both are the seed's, and results repeat.
    """

    def __init__(
        self,
        config: RunConfig,
        dataset: Dataset,
        *,
        transport: Transport | None = None,
        secret: Secret | None = None,
        noise: Secret | None = None,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self.config = config
        self.dataset = dataset
        self.base = fetch_model(config.model.base)
        self.ledger = Ledger()
        head, tail = (load_adapted(config, self.base, role) for role in ("head", "tail"))
        self.recommender = build_recommender(config, dataset, self.base, head, tail, progress)
        self._noise = noise or Secret.of_seed(config.seed)
        privacy = config.privacy
        self.recommender.head_stays = privacy.private_head
        self._public = self._tensors()
        self.cover = self._covering()
        if privacy.secret_start and secret is not None:
            start_secretly(self.recommender, privacy.secret_start, secret)
        self._initial = self._tensors()
        self.server = trunk_server(config) if transport is None else None
        if transport is None and self.server is not None:
            transport = InProcessTransport(self.server)
        self.line = self._connect(transport)
        self.trunk = self.cover.over(self.line)

    def _tensors(self) -> dict[str, Tensor]:
        trained = self.recommender.trained()
        return {name: p.detach().to("cpu", copy=True) for name, (_, p) in trained.items()}

    def _covering(self) -> Cover:
        """Make the recipe's cover, while the head is as everybody has it."""
        config, privacy = self.config, self.config.privacy
        if privacy.shuffle and not order_is_free(self.recommender.head):
            raise ConfigError(
                f"privacy.shuffle: the blocks of {config.model.base} look at where positions "
                "stand; leave it out or use a base like BERT"
            )
        if not privacy.noise:
            return Cover(None, privacy.shuffle)
        rng, items = seeded(config.seed, "veil"), len(self.dataset.catalogue)
        bound = privacy.bound or public_bound(self.recommender, rng, config.model.history, items)
        return Cover(Veil(bound, privacy.noise), privacy.shuffle)

    def cover_anew(self, client: str, round: int, doing: str) -> None:
        """Draw the cover of a client's turn, see `Cover.renew`."""
        self.cover.renew(self._noise, client, round, doing)

    def _connect(self, transport: Transport | None) -> Trunk:
        if transport is None:
            return NoTrunk()
        split_config = self.config.split
        return RemoteTrunk(
            transport,
            codec=Codec(split_config.codec),
            ledger=self.ledger,
            max_bytes=split_config.max_frame_mib << 20,
        )

    def client(self, name: str, data: Split, quota: Quota = Quota()) -> Client:
        """Return a client that works on this model when its turn comes."""
        settings = client_settings(self.config, quota)
        users = self.cover.users
        return Client(name, data, self.recommender, self.trunk, settings, users)

    def budget(self, client: Client) -> Budget | None:
        """What a client may tell of its users; None where that is not bounded."""
        config, privacy = self.config, self.config.privacy
        if not privacy.user_noise:
            return None
        from fellrec.privacy.accounting import Budget  # loads an accountant, for this alone

        users, size = len(client.learners), config.train.batch_size
        steps = config.train.local_epochs * -(-users // size)
        limit = privacy.epsilon or math.inf
        return Budget(privacy.user_noise, min(1.0, size / users), steps, privacy.delta, limit)

    def initial(self, *kinds: Kind) -> dict[str, Tensor]:
        """The tensors of some kinds that every client starts from."""
        return {name: self._initial[name] for name in self.recommender.parameters_of(*kinds)}

    def public(self, *kinds: Kind) -> dict[str, Tensor]:
        """The same as anybody can work them out, without a secret."""
        return {name: self._public[name] for name in self.recommender.parameters_of(*kinds)}

    def trunk_adapter(self) -> dict[str, nn.Parameter]:
        """The adapter of the shared trunk, as attached."""
        return adapter(self.server.base) if self.server is not None else {}

    def initial_trunk(self) -> dict[str, Tensor]:
        """The trunk adapter that every client starts from."""
        return self.server.initial() if self.server is not None else {}

    def start(self) -> Start:
        """What every client starts from, on both sides."""
        return start_of(self.config, self.initial(Kind.LORA, Kind.DENSE), self.initial_trunk())
