"""A client's turn on the one model of a simulation: its tensors in, its work, its tensors out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from torch import Tensor

from fellrec.federation.client import Client
from fellrec.federation.store import CLIENT, SERVER, RunStore
from fellrec.federation.workspace import Workspace
from fellrec.files import read_tensors
from fellrec.models.recommender import Kind

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class ClientModel:
    """All that is one client's. exchanged, private, moments: on the client; the rest: on the
    server.
    """

    exchanged: Tensors
    private: Tensors
    trunk: Tensors
    moments: Tensors = field(default_factory=dict)
    trunk_moments: Tensors = field(default_factory=dict)


@dataclass(frozen=True)
class Anchor:
    """What training is pulled towards, on either side; what is not named is not pulled."""

    exchanged: Tensors = field(default_factory=dict)
    trunk: Tensors = field(default_factory=dict)


@dataclass
class Turn:
    """client: ready to work. server_seconds: what the trunk spent on it, known at the end."""

    client: Client
    after: ClientModel | None = None
    server_seconds: float = 0.0

    def finished(self) -> ClientModel:
        """Return the client's model as the turn left it; RuntimeError while it lasts."""
        if self.after is None:
            raise RuntimeError("the turn is not over")
        return self.after


def stored_model(
    store: RunStore,
    workspace: Workspace,
    round: int,
    name: str,
    prefix: Literal["", "best_", "personal_"] = "",
) -> ClientModel:
    """Read a client's model as a finished round left it; the common start where there is none.

    prefix: of its files' names; the best model has no moments.
    """
    exchanged = store.tensors(round, CLIENT, name, f"{prefix}adapter")
    private = store.tensors(round, CLIENT, name, f"{prefix}private")
    trunk = store.tensors(round, SERVER, name, f"{prefix}adapter")
    return ClientModel(
        workspace.initial(Kind.LORA, Kind.DENSE) if exchanged is None else exchanged,
        workspace.initial(Kind.PRIVATE) if private is None else private,
        workspace.initial_trunk() if trunk is None else trunk,
        store.tensors(round, CLIENT, name, f"{prefix}optimiser") or {},
        store.tensors(round, SERVER, name, f"{prefix}optimiser") or {},
    )


@contextmanager
def turn(
    workspace: Workspace,
    client: Client,
    round: int,
    model: ClientModel,
    anchor: Anchor | None = None,
    *,
    doing: str = "serve",
) -> Iterator[Turn]:
    """Lend the model to a client: install its tensors, open its session on the trunk, close it.

    doing: what for, by which the cover of what it sends is drawn (`Workspace.cover_anew`). anchor:
    what a proximal term pulls both sides towards; None: what they start from. After the block,
    `after` holds copies of the tensors as they then are. When the block raises, the session is
    dropped with all that it learned.
    """
    server = workspace.server
    if server is not None:
        there = anchor.trunk if anchor else None
        server.open(client.name, round, model.trunk, model.trunk_moments, there)
    here = anchor.exchanged if anchor else None
    workspace.cover_anew(client.name, round, doing)
    client.install(round, model.exchanged, model.private, model.moments, here)
    it = Turn(client)
    try:
        yield it
    except BaseException:
        client.release()
        if server is not None:
            server.drop(client.name)
        raise
    trunk: Tensors = {}
    trunk_moments: Tensors = {}
    if server is not None:
        trunk, trunk_moments, it.server_seconds = server.close(client.name)
    it.after = ClientModel(
        {name: p.detach().to("cpu", copy=True) for name, p in client.exchanged().items()},
        {name: p.detach().to("cpu", copy=True) for name, p in client.private().items()},
        trunk,
        client.release(),
        trunk_moments,
    )


def published_model(path: Path, name: str) -> ClientModel:
    """Read a client's best model from a finished run's `clients/<id>` and `server/<id>`."""
    here, there = path / CLIENT / name, path / SERVER / name
    private = here / "best_private.safetensors"
    return ClientModel(
        read_tensors(here / "best_adapter.safetensors"),
        read_tensors(private) if private.exists() else {},
        read_tensors(there / "best_adapter.safetensors"),
    )
