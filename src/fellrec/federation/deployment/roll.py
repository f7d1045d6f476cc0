"""Who takes part in a deployment, once all have said who they are and agree with each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

import fellrec
from fellrec.config import RunConfig
from fellrec.errors import ConfigError, WireError
from fellrec.federation.deployment.agreement import agreed
from fellrec.federation.deployment.orders import Introduction
from fellrec.federation.shares import Counts, Quota, quotas
from fellrec.split.service.store import check_name

Tensors = Mapping[str, Tensor]
# What all clients have to say alike, and what to mend where one differs.
_ALIKE = {
    "dataset": "give all clients' files one data set's name",
    "split": "split all clients' files alike",
    "items": "make all clients' files with one catalogue",
    "catalogue": "make all clients' files with one catalogue",
    "manifest": "give all parties the same weights of the base",
}


@dataclass(frozen=True)
class Roll:
    """names: the clients in their order, largest first. told: what each said of itself. quotas:
    what each draws of its own. exchanged: the adapter that all start from, client's side.
    """

    names: tuple[str, ...]
    told: Mapping[str, Introduction]
    quotas: Mapping[str, Quota]
    exchanged: Tensors

    @property
    def manifest(self) -> str:
        """Digest of the base's weights, which all clients have."""
        return self.told[self.names[0]].manifest

    def check(self, told: Introduction, start: Tensors) -> None:
        """Raise ConfigError for a client that comes back and is not the one that it was."""
        if told.client not in self.told:
            raise ConfigError("it was not there when the run began; take it along in a new run")
        first = self.told[self.names[0]]
        _compare(first, told)
        _compare_starts(first.client, self.exchanged, told.client, start)

    def rows(self) -> list[dict[str, str | int | float]]:
        """Return a row for each client: client, users, interactions (training targets), share."""
        users = sum(told.users for told in self.told.values())
        return [
            {
                "client": name,
                "users": self.told[name].users,
                "interactions": self.told[name].examples,
                "share": self.told[name].users / users,
            }
            for name in self.names
        ]


def call_roll(
    config: RunConfig,
    introductions: Sequence[tuple[Introduction, Tensors]],
    expected: Sequence[str] = (),
) -> Roll:
    """Put the clients in order and compare what they said.

    expected: names in their order; without them clients are sorted by users, largest first, then
    by name.

    Raises ConfigError for a client that differs from the first one or from the recipe, for two of
    one name, for a name that can be no folder's, and for none.
    """
    told, starts = {}, {}
    for introduction, start in introductions:
        if introduction.client in told:
            raise ConfigError(
                f"two SuperNodes say that they are client {introduction.client!r}; stop one"
            )
        told[introduction.client], starts[introduction.client] = introduction, start
    if not told:
        raise ConfigError("no client is ready; see the clients' logs")
    by_size = sorted(told, key=lambda name: (-told[name].users, name))
    names = tuple(name for name in expected if name in told) if expected else tuple(by_size)
    if not names:
        raise ConfigError("no client is ready that takes part; see the clients' logs")
    for name in names:  # it becomes a folder's
        try:
            check_name(name)
        except WireError as error:
            raise ConfigError(f"{error}; give it a certificate of another name") from None
    first = told[names[0]]
    if first.settings != agreed(config):
        raise ConfigError(f"client {first.client!r} read the recipe otherwise; install the same")
    for name in names:
        _compare(first, told[name])
        _compare_starts(first.client, starts[first.client], name, starts[name])
    counts = Counts(
        *(
            np.array([getattr(told[name], key) for name in names], dtype=np.int64)
            for key in ("examples", "valid_users", "test_users")
        )
    )
    drawn = dict(zip(names, quotas(config, counts), strict=True))
    return Roll(names, {name: told[name] for name in names}, drawn, starts[first.client])


def _compare(first: Introduction, other: Introduction) -> None:
    if other.version != fellrec.__version__:
        raise ConfigError(
            f"client {other.client!r} runs fellrec {other.version}, the coordinator "
            f"{fellrec.__version__}; install the same"
        )
    for key, mend in _ALIKE.items():
        if getattr(first, key) != getattr(other, key):
            raise ConfigError(
                f"clients {first.client!r} and {other.client!r} differ in {key}; {mend}"
            )
    if first.settings != other.settings:
        raise ConfigError(f"client {other.client!r} read the recipe otherwise; install the same")


def _compare_starts(first: str, start: Tensors, name: str, other: Tensors) -> None:
    """Raise ConfigError unless two clients begin with the same adapter.

    They draw it from the seed; machines may differ in the last bits.
    """
    alike = start.keys() == other.keys() and all(
        start[key].shape == other[key].shape
        and torch.allclose(start[key], other[key], rtol=1e-5, atol=1e-6)
        for key in start
    )
    if not alike:
        raise ConfigError(
            f"clients {first!r} and {name!r} begin with different adapters; install the same "
            "versions of fellrec and torch"
        )


def check_adapter(sender: str, tensors: Tensors, like: Tensors) -> None:
    """Raise WireError unless someone sent finite float32 tensors of these names and shapes."""
    odd = min(tensors.keys() ^ like.keys(), default=None)
    if odd is not None:
        raise WireError(f"{sender}: its adapter does not fit, first difference: {odd}")
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32 or tensor.shape != like[name].shape:
            raise WireError(
                f"{sender}: {name} is {tensor.dtype} of shape {tuple(tensor.shape)}, "
                f"expected float32 of {tuple(like[name].shape)}"
            )
        if not bool(torch.isfinite(tensor).all()):
            raise WireError(f"{sender}: {name} holds a value that is NaN or infinite")
