"""From a recipe to the model that a run works with: stages, what covers the cut, trunk server.

A simulation of any number of clients builds one head, one tail and one trunk: clients take turns
on them, and what is theirs (adapters, private tensors, moments) is on disk between turns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from fellrec.config import RunConfig
from fellrec.data.interactions import Dataset, Split
from fellrec.data.sources import fetch_model
from fellrec.errors import ConfigError
from fellrec.federation.client import Client
from fellrec.federation.members import Start
from fellrec.federation.recommenders import build_recommender, load_part
from fellrec.federation.settings import client_settings, lora_settings, optimiser_settings
from fellrec.federation.shares import Quota, seeded
from fellrec.models.adapters import adapter, attach
from fellrec.models.recommender import Kind, NoTrunk, Trunk
from fellrec.models.stages import Role, Stage
from fellrec.privacy import (
    Cover,
    Secret,
    Veil,
    order_is_free,
    public_bound,
    start_secretly,
)
from fellrec.split.codecs import Codec
from fellrec.split.ledger import Ledger
from fellrec.split.remote import RemoteTrunk
from fellrec.split.transport import InProcessTransport, Transport
from fellrec.split.trunk import SessionSettings, TrunkServer

if TYPE_CHECKING:
    from fellrec.privacy.accounting import Budget

Tensors = Mapping[str, Tensor]
_EVERYTHING = Quota()


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
    noise: gives what the cover of a turn is drawn from. In a simulation both are the seed's, and
    results repeat.
    """

    def __init__(
        self,
        config: RunConfig,
        dataset: Dataset,
        *,
        transport: Transport | None = None,
        secret: Secret | None = None,
        noise: Callable[[], Secret] | None = None,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self.config = config
        self.dataset = dataset
        self.base = fetch_model(config.model.base)
        self.ledger = Ledger()
        head, tail = (load_adapted(config, self.base, role) for role in ("head", "tail"))
        self.recommender = build_recommender(config, dataset, self.base, head, tail, progress)
        self._noise = noise or partial(Secret.of_seed, config.seed)
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
        nothing_crosses = isinstance(self.line, NoTrunk)
        self.trunk = self.line if nothing_crosses else self.cover.over(self.line)

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
        self.cover.renew(self._noise(), client, round, doing)

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

    def client(self, name: str, data: Split, quota: Quota = _EVERYTHING) -> Client:
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
