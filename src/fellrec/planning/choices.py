"""Cuts, codecs, noise and batches: what each would take and let be read, and which fit the limits.

Memory and bytes are foreseen from shapes (`federation.dryrun`). Seconds are of a step measured on
this machine with one cut and counted over to others, block by block; the server is taken to be as
fast as this machine, and both sides to wait for each other and for the line. What is read back is
measured, too: the attacks of the audit on histories that nobody had, with the public head
(`audit.calibration`), which is the clients' own unless the recipe has a secret start. A search that
takes its time finds more than the one here: it is a least of what is read back. Behind noise it is
measured with fp32 alone, whose rounding is nothing beside it. What noise costs in score is not
foreseen: that takes training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fellrec.audit.calibration import calibrated
from fellrec.config import RunConfig
from fellrec.data.sources import known_config
from fellrec.errors import ConfigError
from fellrec.federation.dryrun import foreseen
from fellrec.federation.shares import Shares, share_data
from fellrec.federation.workspace import Workspace
from fellrec.models.bases import parse_config
from fellrec.planning.limits import Limits
from fellrec.planning.speed import Speed, measured
from fellrec.privacy import Secret
from fellrec.split.codecs import Codec, encoded_size

BATCHES = (1, 2, 4, 8, 16, 32, 64)
CODECS = (Codec.FP32, Codec.BF16, Codec.INT8)
"""fp16 takes as many bytes as bf16, and its range is smaller."""

NOISES = (0.0, 1.0, 3.0)
"""Of the recipe's `privacy.noise`, tried where it is limited what may be read back."""

_MOST = 256  # candidates of a search at a place; all would take minutes a cut
_MOST_BLURRED = 64  # behind noise no fit ends a search before, and more find no more

Progress = Callable[[str], None]
_Read = dict[tuple[Codec, float], tuple[float, str]]
"""The share that the best attack finds, and its name, by codec and noise."""


@dataclass(frozen=True)
class Choice:
    """A cut, a codec, noise and a batch, and what they come to.

    memory, server_memory: bytes at the most, libraries included. bytes_up, bytes_down: of a step.
    client_seconds, server_seconds, wire_seconds: of a step. recovered: share of a history's items
    that the best attack reads back; attack: which one. misses: the limits that it breaks, by the
    names in `Limits`.
    """

    k_in: int
    k_out: int
    codec: str
    noise: float
    batch: int
    memory: int
    server_memory: int
    bytes_up: int
    bytes_down: int
    client_seconds: float
    server_seconds: float
    wire_seconds: float
    recovered: float
    attack: str
    misses: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """Of a step, one side after the other."""
        return self.client_seconds + self.server_seconds + self.wire_seconds

    def value(self, limit: str) -> float:
        """Return what a limit is about, so that less is better."""
        match limit:
            case "client_memory":
                return self.memory
            case "max_recovery":
                return self.recovered
        return self.seconds


@dataclass(frozen=True)
class Plan:
    """All choices, and which of them to look at."""

    limits: Limits
    choices: tuple[Choice, ...]

    @property
    def chosen(self) -> Choice | None:
        """Of those that fit the fastest for each example with the least noise; None where none
        fits.
        """
        return min((each for each in self.choices if not each.misses), key=_rank, default=None)

    @property
    def best(self) -> list[Choice]:
        """Of each k_in the fastest of those that break the fewest limits, k_in rising."""
        found = []
        for k_in in sorted({each.k_in for each in self.choices}):
            own = [each for each in self.choices if each.k_in == k_in]
            found.append(min(own, key=lambda each: (len(each.misses), *_rank(each))))
        return found

    def hindrances(self) -> dict[str, Choice]:
        """Return the limits without any one of which something would fit, and what comes nearest.

        Where no limit alone stands in the way, all that are broken by every choice.
        """
        broken = {name for each in self.choices for name in each.misses}
        alone = {
            name: [each for each in self.choices if set(each.misses) <= {name}] for name in broken
        }
        near = {name: found for name, found in alone.items() if found}
        if not near:
            near = {
                name: list(self.choices)
                for name in broken
                if all(name in each.misses for each in self.choices)
            }
        return {
            name: min(found, key=lambda each: each.value(name))
            for name, found in sorted(near.items())
        }


def _rank(choice: Choice) -> tuple[float, float]:
    """Noise, which costs score, then seconds for each example."""
    return choice.noise, choice.seconds / choice.batch


def plan(
    config: RunConfig,
    limits: Limits,
    *,
    histories: int = 6,
    progress: Progress = lambda doing: None,
) -> Plan:
    """Work out all cuts with the recipe's k_out; the rest as in `BATCHES`, `CODECS`, `NOISES`.

    histories: made-up ones by which it is measured what can be read back. progress: told what is
    measured.

    Raises ConfigError for a base with no block to spare, and the FellrecError that the run would
    begin with.
    """
    architecture = parse_config(known_config(config.model.base), config.model.base)
    blocks, k_out = int(architecture.num_hidden_layers), config.model.k_out
    if blocks <= k_out:
        raise ConfigError(
            f"{config.model.base} has {blocks} blocks and model.k_out = {k_out} keeps them all; "
            "lower it"
        )
    shares = share_data(config)
    progress("timing a step")
    speed = _speed(config, shares)
    noises = NOISES if limits.max_recovery is not None else NOISES[:1]
    found: list[Choice] = []
    for k_in in range(blocks - k_out):
        progress(f"reading back behind {k_in} of {blocks} blocks")
        cut = _with(config, {"model.k_in": k_in})
        read = _read_back(cut, shares, histories, noises)
        for batch in BATCHES:
            found += _of_batch(cut, shares, batch, speed, read, limits, blocks)
    return Plan(limits, tuple(found))


def _with(config: RunConfig, values: dict[str, object]) -> RunConfig:
    return RunConfig.from_text(config.to_toml(), "plan", {"name": config.name}, values)


def _speed(config: RunConfig, shares: Shares) -> Speed:
    workspace = Workspace(_with(config, {"model.k_in": 0, "split.codec": "fp32"}), shares.dataset)
    sizes = [
        np.count_nonzero(shares.partition.assignment == n) for n in range(len(shares.partition))
    ]
    largest = int(np.argmax(sizes))
    return measured(workspace, shares.partition.names[largest], shares.of(largest))


def _read_back(config: RunConfig, shares: Shares, histories: int, noises: Sequence[float]) -> _Read:
    secret = Secret.of_seed(config.seed)
    workspace = Workspace(config, shares.dataset, secret=secret)

    def best(codec: Codec, noise: float) -> tuple[float, str]:
        most = _MOST_BLURRED if noise else _MOST
        tried = calibrated(workspace, [noise], codec=codec, histories=histories, most=most)
        return max((each.recovered.mean, each.attack) for each in tried)

    blurred = {noise: best(Codec.FP32, noise) for noise in noises if noise}
    return {
        (codec, noise): blurred[noise] if noise else best(codec, 0.0)
        for codec in CODECS
        for noise in noises
    }


def _of_batch(
    config: RunConfig,
    shares: Shares,
    batch: int,
    speed: Speed,
    read: _Read,
    limits: Limits,
    blocks: int,
) -> Iterator[Choice]:
    """Yield a choice for each codec and noise."""
    found = foreseen(_with(config, {"train.batch_size": batch, "split.codec": "fp32"}), shares)
    clients, memory = found["clients"], found["memory"]
    steps = sum(each["steps"] for each in clients)
    positions = sum(each["positions"] for each in clients) / steps
    plain = sum(each["activation_bytes"] + each["gradient_bytes"] for each in clients) / steps
    model = config.model
    own = model.k_in + model.k_out
    width = int(parse_config(known_config(model.base), model.base).hidden_size)
    for (codec, noise), (share, attack) in read.items():
        crossed = int(plain * encoded_size(1, width, codec) / encoded_size(1, width, Codec.FP32))
        choice = Choice(
            k_in=model.k_in,
            k_out=model.k_out,
            codec=codec.value,
            noise=noise,
            batch=batch,
            memory=memory["client"]["total"],
            server_memory=memory["server"]["total"],
            bytes_up=crossed,
            bytes_down=crossed,
            client_seconds=speed.seconds(positions, own, client=True),
            server_seconds=speed.seconds(positions, blocks - own, client=False),
            wire_seconds=_on_the_line(crossed, limits),
            recovered=share,
            attack=attack,
        )
        yield replace(choice, misses=_misses(choice, limits))


def _on_the_line(crossed: int, limits: Limits) -> float:
    """Activations and gradients one way each and back, then a number each way."""
    lines: Sequence[int | None] = (limits.uplink, limits.downlink or limits.uplink)
    return 3 * limits.latency + sum(crossed / line for line in lines if line)


def _misses(choice: Choice, limits: Limits) -> tuple[str, ...]:
    asked = {
        name: getattr(limits, name) for name in ("client_memory", "max_recovery", "max_seconds")
    }
    return tuple(
        name for name, most in asked.items() if most is not None and choice.value(name) > most
    )
