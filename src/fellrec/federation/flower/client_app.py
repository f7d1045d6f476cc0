"""A client as a Flower ClientApp: each message is one order, in a process of its own."""

from __future__ import annotations

import traceback

from flwr.app import Context
from flwr.app import Message as FlowerMessage
from flwr.clientapp import ClientApp

from fellrec.errors import ConfigError, FellrecError
from fellrec.federation.deployment.allocator import give_back_what_is_freed
from fellrec.federation.deployment.orders import Failure, Order
from fellrec.federation.deployment.party import Party
from fellrec.federation.deployment.place import Place
from fellrec.federation.flower import engine
from fellrec.federation.flower.records import pack, unpack
from fellrec.federation.observer import Observer

app = ClientApp()


class _Spoken(Observer):
    """Says in the SuperNode's log what goes on."""

    def note(self, text: str) -> None:
        print(text, flush=True)

    def scoring(self, client: str, what: str) -> None:
        print(f"client {client}: scoring, {what}", flush=True)


def _place(context: Context) -> Place:
    """Find this client's machine; the simulation engine gives its nodes a number and no files."""
    number = context.node_config.get("partition-id")
    if number is None or "data" in context.node_config:
        return Place.of(context.node_config)
    return engine.place(context.run_config, int(number))


@app.query()
@app.train()
@app.evaluate()
@app.evaluate("test")
def answer(message: FlowerMessage, context: Context) -> FlowerMessage:
    """Do what the coordinator's order says; what hinders it is said here and there, in a line."""
    give_back_what_is_freed()
    try:
        place = _place(context)
        order, tensors = unpack(message.content)
        if not isinstance(order, Order):
            raise ConfigError(f"this client takes orders, and got a {type(order).__name__}")
        print(f"client {place.name}: {type(order).__name__.lower()}", flush=True)
        told, own = Party(place, _Spoken()).answer(order, tensors)
    except FellrecError as error:
        print(f"error: {error}", flush=True)
        told, own = Failure.of(error), {}
    except Exception as error:  # Flower would send the traceback on, with whatever it shows
        traceback.print_exc()
        reason = f"{type(error).__name__}, which is a bug; the client's log has the traceback"
        told, own = Failure(kind="other", reason=reason), {}
    return FlowerMessage(pack(told, own), reply_to=message)
