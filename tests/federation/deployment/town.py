"""A whole deployment in one process: real trunks over TLS, real clients, and a grid in memory.

The grid is a twin of Flower's: it hands every message, through Flower's own bytes, to the real
ClientApp of the node that it is for. A test may change what a node does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as Bytes
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity
from torch import Tensor

from fellrec.config import RunConfig
from fellrec.federation.deployment.grounds import Grounds
from fellrec.federation.deployment.orders import Order
from fellrec.federation.deployment.party import Party
from fellrec.federation.deployment.trunk import check_trunk
from fellrec.federation.flower import client_app
from fellrec.federation.flower.events import Events
from fellrec.federation.flower.server_app import conduct
from fellrec.federation.flower.settings import ServerSettings
from fellrec.federation.observer import RoundRecord
from fellrec.federation.shares import share_data
from fellrec.federation.workspace import trunk_server
from fellrec.files import read_tensors
from fellrec.split.service.messages import Message as Told
from fellrec.split.service.server import TrunkService
from fellrec.split.service.settings import ServiceSettings, TlsFiles

LINK = 1  # the node that a SuperLink answers as, for nodes that are gone
Node = Callable[[Message], Message | None]
"""Answers a message; None says nothing at all."""


class MemoryGrid(Grid):
    """Flower's grid without its processes. nodes: by number. names: as registered, "" if not."""

    def __init__(self) -> None:
        self.nodes: dict[int, Node] = {}
        self.names: dict[int, str] = {}
        self.seen: list[tuple[int, str]] = []
        self._sent = 0
        self._replies: dict[str, Message] = {}

    def add(self, node: int, answer: Node, name: str = "") -> None:
        """Connect a node."""
        self.nodes[node], self.names[node] = answer, name

    def remove(self, node: int) -> None:
        """Let a node go."""
        del self.nodes[node]

    def get_nodes(self) -> list[NodeInfo]:
        return [NodeInfo(node_id=node, name=self.names[node]) for node in self.nodes]

    def get_node_ids(self) -> list[int]:
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        return [self._push(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        wanted = list(message_ids)
        assert all(isinstance(each, str) for each in wanted)
        return [self._replies.pop(each) for each in wanted if each in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        return self.pull_messages(self.push_messages(messages))

    def set_run(self, run: Any) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Any:
        raise NotImplementedError

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError

    def _push(self, message: Message) -> str:
        self._sent += 1
        number, node = str(self._sent), message.metadata.dst_node_id
        message.metadata.__dict__["_message_id"] = number
        self.seen.append((node, message.metadata.message_type))
        if node in self.nodes:
            reply = self.nodes[node](carried(message))
        else:
            reply = Message(Error(5, "the node is gone"), reply_to=message)
            reply.metadata.__dict__["_src_node_id"] = LINK
        if reply is not None:
            self._replies[number] = carried(reply)
        return number


class Watched(Events):
    """The coordinator's events; `after` is called with the number of rounds that are saved."""

    def __init__(self, after: Callable[[int], None]) -> None:
        super().__init__()
        self._after = after

    def round_ends(self, record: RoundRecord) -> None:
        super().round_ends(record)
        self._after(record.round + 1)


def carried(message: Message) -> Message:
    """Return a message as it is after Flower's way through bytes."""
    return message_from_proto(Bytes.FromString(message_to_proto(message).SerializeToString()))


def as_task(node: int) -> None:
    """Be a task of Flower's, as far as messages need it."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, node


@dataclass
class Town:
    """A deployment of one recipe. trunks: those that listen, by their place in the settings."""

    config: RunConfig
    grounds: Grounds
    folder: Path
    grid: MemoryGrid = field(default_factory=MemoryGrid)
    trunks: list[TrunkService] = field(default_factory=list)
    closing: ExitStack = field(default_factory=ExitStack)

    @property
    def names(self) -> tuple[str, ...]:
        return self.grounds.names

    def node(self, name: str) -> int:
        """Return a client's node."""
        return 100 + self.names.index(name)

    def client(self, name: str, message: Message) -> Message:
        """Let a client's real ClientApp answer."""
        context = Context(
            1, self.node(name), dict(self.grounds.node_config(name)), RecordDict(), {}
        )
        return client_app.app(message, context)

    def connect(self, name: str, *, registered: bool = True) -> None:
        """Connect a client's SuperNode."""
        node = partial(self.client, name)
        self.grid.add(self.node(name), node, name if registered else "")

    def start_trunk(self, place: int = 0, record: Path | None = None) -> TrunkService:
        """Start a trunk on its own folder; on its own port again if it was there before."""
        server = trunk_server(self.config)
        assert server is not None
        manifest, agreed = check_trunk(self.config)
        pair, keys = self.grounds.keys.trunk, self.grounds.keys
        again = place < len(self.trunks)
        port = self.trunks[place].port if again else 0
        settings = ServiceSettings(
            f"127.0.0.1:{port}",
            TlsFiles(pair.certificate, pair.key, keys.authority),
            self.grounds.folder / f"trunk-{place}",
            manifest,
            agreed,
            record=record,
        )
        service = TrunkService(server, settings)
        self.closing.callback(service.stop, 0.0)
        self.trunks[place : place + 1] = [service]
        return service

    def settings(self, *, resume: bool = False, **changes: Any) -> ServerSettings:
        """Return what the coordinator is told."""
        told: dict[str, Any] = {
            **self.grounds.run_config(),
            "trunk": ",".join(f"127.0.0.1:{trunk.port}" for trunk in self.trunks),
            "out": str(self.folder / "run"),
            "resume": resume,
            "wait-seconds": 0.01,
            "answer-seconds": 60.0,
            "events": str(self.folder / "events.jsonl"),
            **changes,
        }
        return ServerSettings.of(told)

    def conduct(
        self,
        *,
        resume: bool = False,
        after: Callable[[int], None] = lambda rounds: None,
        **changes: Any,
    ) -> Path:
        """Run the coordinator to the end; return the run directory. after: called between rounds.

        One after another, coordinators are processes: each begins with nothing in memory.
        """
        as_task(LINK)
        settings, events = self.settings(resume=resume, **changes), Watched(after)
        events.to(settings.events)
        conduct(self.grid, settings, events)
        return settings.out

    def party(self, name: str) -> Party:
        """Return a client, to be given orders by hand."""
        return Party(replace(self.grounds.place(name), retry_seconds=1.0))

    def folder_of(self, name: str) -> Path:
        """Return the one folder that a client keeps of a run."""
        (folder,) = self.grounds.place(name).folder.iterdir()
        return folder

    def notes(self) -> list[str]:
        """Return what the coordinator said in passing."""
        lines = map(json.loads, (self.folder / "events.jsonl").read_text().splitlines())
        return [line["text"] for line in lines if line["event"] == "note"]


@contextmanager
def town(
    config: RunConfig, folder: Path, *, trunks: int = 1, connected: bool = True
) -> Iterator[Town]:
    """Prepare a deployment, start its trunks and connect its clients."""
    grounds = Grounds.prepare(folder / "grounds", config, share_data(config))
    with ExitStack() as closing:
        it = Town(config, grounds, folder, closing=closing)
        for place in range(trunks):
            it.start_trunk(place)
        for name in grounds.names if connected else ():
            it.connect(name)
        yield it


def answered(party: Party, order: Order, tensors: Mapping[str, Tensor]) -> Told:
    """Give an order; return the answer without its tensors."""
    return party.answer(order, tensors)[0]


def tensors_below(folder: Path) -> dict[str, dict[str, Tensor]]:
    """Read all tensors below a folder, by path."""
    return {
        str(path.relative_to(folder)): read_tensors(path)
        for path in sorted(folder.rglob("*.safetensors"))
    }
