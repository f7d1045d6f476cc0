"""The trunk as a service: the same training as in one process, and rounds from begin to commit."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fellrec.errors import WireError
from fellrec.models.adapters import adapter
from fellrec.split.service.messages import Kept
from fellrec.split.service.settings import Limits
from fellrec.split.service.transport import GrpcTransport
from fellrec.split.session import Session
from fellrec.split.trunk import TrunkServer
from fellrec.split.wire import Frame, FrameKind
from tests.builders import random_factors
from tests.split.running import (
    ROUND,
    RUN,
    Authority,
    Relay,
    Running,
    equal,
    frames_of,
    refusal,
    running,
    serving,
    trunk_server,
)


def in_process(
    frames: Sequence[bytes],
    client: str,
    factors: dict[str, Tensor] | None = None,
    moments: dict[str, Tensor] | None = None,
    round: int = ROUND,
) -> tuple[list[bytes], dict[str, Tensor], dict[str, Tensor]]:
    """Return what the simulation's server answers and learns."""
    server = trunk_server()
    server.open(client, round, factors, moments)
    replies = [server.handle(frame) for frame in frames]
    return replies, *server.close(client)[:2]


def pipelined(transport: GrpcTransport, frames: Sequence[bytes], ahead: int = 3) -> list[bytes]:
    """Exchange frames with several on their way at a time."""
    tickets: list[int] = []
    replies: list[bytes] = []
    for frame in frames:
        if len(tickets) == ahead:
            replies.append(transport.receive(tickets.pop(0)))
        tickets.append(transport.send(frame))
    return replies + [transport.receive(ticket) for ticket in tickets]


def test_training_is_bit_for_bit_that_of_one_process(trunk: Running) -> None:
    frames = frames_of("a")
    trunk.prepare("a")
    client = trunk.client("a")
    replies = [client.exchange(frame) for frame in frames]
    client.finish()
    counted, found = trunk.control.collect("a", ROUND)
    expected_replies, expected, _ = in_process(frames, "a")
    assert replies == expected_replies
    assert equal(found, expected)
    assert not equal(found, trunk_server().initial())
    assert (counted.steps, counted.positions) == (3, 3 * 2 * 5)
    assert counted.seconds > 0
    up = sum(size for key, size in counted.bytes.items() if key.startswith("up/"))
    assert up == sum(map(len, frames))
    assert sum(counted.bytes.values()) - up == sum(map(len, replies))
    assert trunk.control.collect("a", ROUND)[0] == counted  # asked again, the same


def test_frames_may_be_on_their_way_together(trunk: Running) -> None:
    frames = frames_of("a")
    trunk.prepare("a")
    client = trunk.client("a")
    assert pipelined(client, frames) == in_process(frames, "a")[0]


def test_two_clients_at_once_equal_each_alone(tmp_path: Path, authority: Authority) -> None:
    found: dict[str, list[bytes]] = {}
    with running(tmp_path, authority, limits=Limits(workers=2)) as trunk:
        for name in ("a", "b"):
            trunk.prepare(name)

        def train(name: str) -> None:
            client = trunk.client(name)
            found[name] = [client.exchange(frame) for frame in frames_of(name, steps=8)]
            client.finish()

        threads = [threading.Thread(target=train, args=(name,)) for name in ("a", "b")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for name in ("a", "b"):
            replies, expected, _ = in_process(frames_of(name, steps=8), name)
            assert found[name] == replies
            assert equal(trunk.control.collect(name, ROUND)[1], expected)


def train_round(trunk: Running, client: str, round: int, label: int) -> dict[str, Tensor]:
    trunk.prepare(client, round, label)
    transport = trunk.client(client, round=round)
    for frame in frames_of(client, round=round):
        transport.exchange(frame)
    transport.finish()
    return trunk.control.collect(client, round)[1]


def test_a_round_from_begin_to_commit(trunk: Running, tmp_path: Path) -> None:
    trained = train_round(trunk, "a", 0, 0)
    mixed = {name: 0.5 * tensor for name, tensor in trained.items()}
    reset = sorted(mixed)[:1]
    trunk.control.install("a", 1, mixed, reset)
    assert trunk.control.status().labels == {"a": ()}
    trunk.prepare("a", 0, 1, "serve")  # the mixed adapter is scored before it is the client's
    served = trunk.client("a", round=0, mode="serve").exchange(serving(round=0))
    assert served == in_process([serving(round=0)], "a", mixed, round=0)[0][0]
    trunk.control.commit({"a": Kept(label=1, improved=True)})
    trunk.control.commit({"a": Kept(label=1, improved=True)})  # repeated, the same
    assert trunk.control.status().labels == {"a": (1,)}
    # The next round starts from the mixed adapter and from moments of the tensors not reset.
    again = train_round(trunk, "a", 1, 1)
    _, _, moments = in_process(frames_of("a", round=0), "a", round=0)
    kept = {key: value for key, value in moments.items() if key.partition("/")[2] not in reset}
    assert kept.keys() < moments.keys()
    expected = in_process(frames_of("a", round=1), "a", mixed, kept, round=1)[1]
    assert equal(again, expected)
    assert not equal(again, in_process(frames_of("a", round=1), "a", mixed, round=1)[1])
    folder = tmp_path / RUN / "clients" / "a"
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2.trained"]


def test_two_labels_are_kept_and_the_best_one_is_remembered(trunk: Running) -> None:
    like = trunk_server().initial()
    adapters = [random_factors(like, seed) for seed in range(4)]
    for t, improved in enumerate((True, False, False)):
        train_round(trunk, "a", t, t)
        trunk.control.install("a", t + 1, adapters[t])
        trunk.control.commit({"a": Kept(label=t + 1, improved=improved)})
    assert trunk.control.status().labels == {"a": (2, 3)}
    frame = serving(round=3)
    for kind, expected in (("best", adapters[0]), ("last", adapters[2])):
        guest = trunk.guest("a", kind)
        assert guest.open() == 3
        assert guest.exchange(frame) == in_process([frame], "a", expected, round=3)[0][0]
    # A coordinator that died before its own commit goes on from the label before.
    train_round(trunk, "a", 2, 2)
    assert trunk.control.status().labels == {"a": (2,)}


def test_a_trunk_that_lacks_an_adapter_asks_for_it(trunk: Running) -> None:
    given = random_factors(trunk_server().initial(), 5)
    assert not trunk.control.prepare("a", ROUND, 2)
    assert trunk.control.prepare("a", ROUND, 2, adapter=given)
    client = trunk.client("a")
    frames = frames_of("a")
    assert [client.exchange(frame) for frame in frames] == in_process(frames, "a", given)[0]


def test_what_a_client_sends_is_refused_where_it_only_reads(trunk: Running) -> None:
    train_round(trunk, "a", 0, 0)
    trunk.control.install("a", 1, trunk_server().initial())
    trunk.control.commit({"a": Kept(label=1, improved=True)})
    for frame in (frames_of("a", round=1)[0], frames_of("a", round=1)[-1]):
        guest = trunk.guest("a")
        guest.exchange(serving(round=1))
        assert "read-only" in refusal(guest.exchange(frame))
    with pytest.raises(WireError, match="no best adapter of client 'b' in run 'run-1'"):
        trunk.guest("b").open()
    with pytest.raises(WireError, match="knows no run 'another'"):
        trunk.guest("a", run="another").open()


def test_a_restarted_server_keeps_what_was_committed(tmp_path: Path, authority: Authority) -> None:
    with running(tmp_path, authority) as trunk:
        for name in ("a", "b"):
            mixed = train_round(trunk, name, 0, 0)
            trunk.control.install(name, 1, mixed)
        trunk.control.commit({"a": Kept(label=1, improved=True)})
        last = train_round(trunk, "a", 1, 1)
    with running(tmp_path, authority, begin=False) as trunk:
        assert trunk.guest("a").open() == 1  # no coordinator needed
    with running(tmp_path, authority) as trunk:
        assert trunk.control.status().labels == {"a": (1,), "b": ()}
        with pytest.raises(WireError, match="has trained nothing in round 1"):
            trunk.control.collect("a", 1)
        with pytest.raises(WireError, match="no candidate of label 1"):
            trunk.control.commit({"b": Kept(label=1)})
        assert not trunk.control.prepare("b", 1, 1)
        assert equal(train_round(trunk, "a", 1, 1), last)  # the same again, moments too


def test_a_drop_forgets_what_was_learned(trunk: Running) -> None:
    trunk.prepare("a")
    client = trunk.client("a")
    for frame in frames_of("a", steps=1):
        client.exchange(frame)
    trunk.control.drop("a")
    with pytest.raises(WireError, match="has trained nothing"):
        trunk.control.collect("a", ROUND)
    trunk.prepare("a")
    fresh = trunk.client("a")
    frames = frames_of("a")
    assert [fresh.exchange(frame) for frame in frames] == in_process(frames, "a")[0]


def cut_now(relay: Relay) -> None:
    relay.cut()


def cut_up(relay: Relay) -> None:
    relay.cut_after("up", 300)


def cut_down(relay: Relay) -> None:
    relay.cut_after("down", 300)


@pytest.mark.parametrize("cut", [cut_now, cut_up, cut_down])
@pytest.mark.parametrize("at", range(5))
def test_a_cut_connection_changes_nothing(
    trunk: Running, at: int, cut: Callable[[Relay], None]
) -> None:
    relay = Relay(trunk.service.port)
    trunk.closing.callback(relay.close)
    trunk.prepare("a")
    client = trunk.client("a", address=relay.address)
    frames = frames_of("a")
    replies = []
    for number, frame in enumerate(frames):
        if number == 5 + at:
            cut(relay)
        replies.append(client.exchange(frame))
    client.finish()
    expected_replies, expected, _ = in_process(frames, "a")
    assert relay.cuts == 1
    assert client.reconnections == 1
    assert replies == expected_replies
    counted, found = trunk.control.collect("a", ROUND)
    assert equal(found, expected)
    assert counted.steps == 3
    assert trunk.control.status().sessions[0].steps == 3


def test_a_cut_with_several_frames_on_their_way(trunk: Running) -> None:
    relay = Relay(trunk.service.port)
    trunk.closing.callback(relay.close)
    trunk.prepare("a")
    client = trunk.client("a", address=relay.address)
    client.open()
    relay.cut_after("down", 5000)
    frames = frames_of("a", steps=12)
    assert pipelined(client, frames) == in_process(frames, "a")[0]
    assert client.reconnections == relay.cuts == 1


def test_collecting_ends_a_session_that_did_not_say_it_had_finished(trunk: Running) -> None:
    trunk.prepare("a")
    client = trunk.client("a")
    frames = frames_of("a")
    for frame in frames[:-1]:
        client.exchange(frame)
    with pytest.raises(WireError, match="the session ends amid step 2"):
        trunk.control.collect("a", ROUND)
    client.exchange(frames[-1])
    assert equal(trunk.control.collect("a", ROUND)[1], in_process(frames, "a")[1])
    assert "session has finished" in refusal(client.exchange(frames[0]))


def test_a_client_is_told_why_its_session_could_not_end(trunk: Running) -> None:
    trunk.prepare("a")
    client = trunk.client("a")
    client.exchange(frames_of("a")[0])
    with pytest.raises(WireError, match="could not end the session: the session ends amid step 0"):
        client.finish()
    trunk.prepare("b")
    other = trunk.client("b")
    for frame in frames_of("b", steps=1):
        other.exchange(frame)
    session = trunk.service.registry._seats["b"]._session
    assert session is not None
    with torch.no_grad():
        next(iter(adapter(session.stage).values())).fill_(torch.nan)
    with pytest.raises(WireError, match=r"it diverged, lower train\.learning_rate"):
        other.finish()


class SlowSession(Session):
    """Takes long over its first frame."""

    first_seconds = 1.5

    def answer(self, request: Frame) -> tuple[Frame, torch.Generator | None]:
        if request.step == request.micro == 0 and request.kind is FrameKind.FORWARD:
            time.sleep(self.first_seconds)
        return super().answer(request)


class SlowTrunk(TrunkServer):
    """A trunk whose sessions are slow."""

    def session(self, client: str, round: int, *args: Any, **kwargs: Any) -> Session:
        made = super().session(client, round, *args, **kwargs)
        return SlowSession(made.stage, made.optimiser, round, self.settings)


def test_a_cut_is_no_outage_because_an_answer_was_due_for_long(
    tmp_path: Path, authority: Authority
) -> None:
    plain = trunk_server()
    with running(tmp_path, authority, trunk=SlowTrunk(plain.base, plain.settings)) as trunk:
        relay = Relay(trunk.service.port)
        trunk.closing.callback(relay.close)
        trunk.prepare("a")
        # However soon a trunk is given up: this one is never out of reach for so long.
        client = trunk.client("a", address=relay.address, retry_seconds=1.0)
        frames = frames_of("a")
        ticket = client.send(frames[0])
        time.sleep(1.2)
        relay.cut()
        replies = [client.receive(ticket)]
        replies += [client.exchange(frame) for frame in frames[1:]]
        assert client.reconnections == 1
        assert replies == in_process(frames, "a")[0]
