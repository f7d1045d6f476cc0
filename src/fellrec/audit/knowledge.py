"""What a server knows of a client's model: what it attacks with.

`base`: the public weights, the catalogue, and the tensors that every client started from (a trunk
server that has seen no adapter). `adapters`: also what the client exchanged, its adapters and
dense tensors, as the coordinator has them (or both servers together). A private tensor is known to
neither, and stands at its start. The trunk with the client's adapter is the server's own.
"""

from __future__ import annotations

from typing import Literal, get_args

from fellrec.federation.turns import ClientModel
from fellrec.federation.workspace import Workspace
from fellrec.models.recommender import Kind

Knows = Literal["base", "adapters"]
KNOWS: tuple[Knows, ...] = get_args(Knows)


def supposed(workspace: Workspace, model: ClientModel, knows: Knows) -> ClientModel:
    """Return a client's model as the server supposes it to be."""
    start = workspace.initial(Kind.LORA, Kind.DENSE)  # of this nothing is a secret
    exchanged = start if knows == "base" else model.exchanged
    return ClientModel(exchanged, workspace.public(Kind.PRIVATE), model.trunk)
