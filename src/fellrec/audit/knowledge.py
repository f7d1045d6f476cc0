"""What a server knows of a client's head: the model that it attacks with.

`base`: the public weights, the catalogue, and the tensors that every client started from (a trunk
server that has seen no adapter). `adapters`: also what the client exchanged, its adapters and
dense tensors, as the coordinator has them (or both servers together). A private tensor is known to
neither, and stands at its start.
"""

from __future__ import annotations

from typing import Literal, get_args

from fellrec.federation.client import Client
from fellrec.federation.turns import ClientModel
from fellrec.federation.workspace import Workspace
from fellrec.models.recommender import Kind

Knows = Literal["base", "adapters"]
KNOWS: tuple[Knows, ...] = get_args(Knows)


def suppose(client: Client, workspace: Workspace, model: ClientModel, knows: Knows) -> None:
    """Install in the client's head what the server supposes to be there; its turn is over."""
    start = workspace.initial(Kind.LORA, Kind.DENSE)
    exchanged = start if knows == "base" else model.exchanged
    client.install(0, exchanged, workspace.initial(Kind.PRIVATE))
    client.recommender.eval()
