"""What a client must not send: each ends its own session by name, and harms no other."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import grpc
import pytest
import torch

import fellrec
from fellrec.errors import WireError
from fellrec.split.service import messages
from fellrec.split.service.channel import connect
from fellrec.split.service.messages import PROTOCOL, Greeting, Welcome, read_message, write_message
from fellrec.split.service.packing import frame_digest, pack_call, pack_step, unpack_reply
from fellrec.split.service.tokens import Claims, issue, verify
from fellrec.split.service.transport import GrpcTransport, greet
from fellrec.split.wire import Frame, FrameKind, encode_frame
from tests.builders import WIDTH
from tests.split.running import (
    AGREED,
    LIMIT,
    MANIFEST,
    ROUND,
    RUN,
    Running,
    frames_of,
    refusal,
    trunk_server,
)


def step(number: int, frame: bytes, held: int | None = None) -> bytes:
    held = number - 1 if held is None else held
    return pack_step(number, held, frame_digest(frame), frame)


@contextmanager
def raw(trunk: Running, name: str, sent: list[bytes], token: str | None = None) -> Iterator[Any]:
    """Open a stream of our own making; yields its answers."""
    token = trunk.token(name) if token is None else token
    greeting = greet(manifest=MANIFEST, settings=AGREED, token=token)
    channel = connect(trunk.link(name))
    stream = channel.stream_stream("/fellrec.Trunk/Steps")
    try:
        yield stream(iter([write_message(greeting), *sent]))
    finally:
        channel.close()


def nan() -> bytes:
    return frames_of("a")[2][:-4] + struct.pack("<f", float("nan"))


def infinite() -> bytes:
    return frames_of("a")[2][:-4] + struct.pack("<f", float("inf"))


def large() -> bytes:
    tensor = torch.ones(LIMIT // (4 * WIDTH) + 1, WIDTH)
    return encode_frame(Frame(FrameKind.GRADIENT, "a", ROUND, training=True, tensor=tensor))


FIRST, SECOND, BACK = frames_of("a")[:3]
VIOLATIONS: dict[str, tuple[Callable[[], list[bytes]], str]] = {
    "replayed": (lambda: [step(1, FIRST), step(2, SECOND), step(1, FIRST, 0)], "a replay"),
    "replaced": (lambda: [step(1, FIRST), step(1, SECOND)], "a replay"),
    "reordered": (lambda: [step(2, SECOND, 0), step(1, FIRST)], "2 came, 1 was next"),
    "a gap": (lambda: [step(1, FIRST), step(3, SECOND, 1)], "3 came, 2 was next"),
    "number 0": (lambda: [step(0, FIRST, 0)], "frame 0 acknowledges answer 0"),
    "acknowledged too early": (lambda: [step(1, FIRST), step(2, SECOND, 7)], "answer 7"),
    "never acknowledged": (
        lambda: [step(n + 1, frame, 0) for n, frame in enumerate(frames_of("a")[:4])],
        "more than 3 frames without an answer held",
    ),
    "a wrong digest": (lambda: [pack_step(1, 0, bytes(16), FIRST)], "does not match its digest"),
    "cut short": (lambda: [step(1, FIRST[:-1])], "its header announces"),
    "no numbers": (lambda: [b"short"], "its numbers alone take"),
    "an empty message": (lambda: [b""], "its numbers alone take"),
    "too long": (lambda: [step(1, large())], "max_frame_mib"),
    "NaN": (lambda: [step(1, FIRST), step(2, SECOND), step(3, nan())], "NaN or infinite"),
    "infinite": (lambda: [step(1, FIRST), step(2, SECOND), step(3, infinite())], "NaN or infi"),
    "another's frame": (
        lambda: [step(1, frames_of("b")[0])],
        "frame of client 'b' in a session of 'a'",
    ),
    "another round": (lambda: [step(1, frames_of("a", round=5)[0])], "round 5 in a session of 4"),
    "out of order": (lambda: [step(1, SECOND)], r"step 0.1 came, 0.0 was next"),
    "finished amid a step": (lambda: [step(1, FIRST), step(2, b"")], "ends amid step 0"),
}


@pytest.mark.parametrize("name", VIOLATIONS)
def test_a_violation_ends_its_session_and_no_other(trunk: Running, name: str) -> None:
    make, reason = VIOLATIONS[name]
    for client in ("a", "b"):
        trunk.prepare(client)
    other = trunk.client("b")
    frames = frames_of("b")
    others = [other.exchange(frame) for frame in frames[:3]]
    sent = make()
    with raw(trunk, "a", sent) as answers:
        assert read_message(Welcome, next(answers)).ok
        replies = [unpack_reply(answer)[1] for answer in answers]
    assert 1 <= len(replies) <= len(sent)
    assert reason in refusal(replies[-1])
    state = {s.client: s for s in trunk.control.status().sessions}
    assert (state["a"].state, state["b"].state) == ("ended", "open")
    assert reason in state["a"].reason
    with pytest.raises(WireError, match="the session is over"):
        trunk.client("a").open()
    with pytest.raises(WireError, match="its session ended"):
        trunk.control.collect("a", ROUND)
    server = trunk_server()
    server.open("b", ROUND)
    others += [other.exchange(frame) for frame in frames[3:]]
    assert others == [server.handle(frame) for frame in frames]


def test_the_same_frame_again_is_answered_from_store(trunk: Running) -> None:
    trunk.prepare("a")
    sent = [step(1, FIRST), step(2, SECOND, 0), step(1, FIRST, 0), step(2, SECOND, 0)]
    with raw(trunk, "a", sent) as answers:
        next(answers)
        replies = list(answers)
    assert replies[0] == replies[2] != replies[1] == replies[3]


def test_a_frame_beyond_what_grpc_takes_is_refused_for_good(trunk: Running) -> None:
    trunk.prepare("a")
    greeting = greet(manifest=MANIFEST, settings=AGREED, token=trunk.token("a"))
    channel = connect(replace(trunk.link("a"), max_bytes=8 << 20))
    trunk.closing.callback(channel.close)
    sent = [write_message(greeting), bytes(4 << 20)]
    with pytest.raises(grpc.RpcError) as caught:
        list(channel.stream_stream("/fellrec.Trunk/Steps")(iter(sent)))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger than max" in caught.value.details()
    client = trunk.client("a")
    with pytest.raises(WireError, match="max_frame_mib"):
        client.send(bytes(LIMIT + 1))
    assert client.exchange(FIRST)


def test_a_frame_the_trunk_refused_reaches_a_client_by_name(trunk: Running) -> None:
    trunk.prepare("a")
    client = trunk.client("a")
    assert "0.1 came" in refusal(client.exchange(SECOND))
    with pytest.raises(WireError, match=r"the session is over: step 0\.1 came"):
        client.exchange(FIRST)


# --- greetings and tokens ------------------------------------------------------------------------


def refused(trunk: Running, name: str, greeting: Greeting) -> str:
    transport = GrpcTransport(trunk.link(name), greeting, retry_seconds=2)
    trunk.closing.callback(transport.close)
    with pytest.raises(WireError) as caught:
        transport.open()
    return str(caught.value)


def claims(**changes: Any) -> Claims:
    values = {"client": "a", "run": RUN, "round": ROUND, "mode": "train", "expires": 2**33}
    return Claims.model_validate(values | changes)


def test_a_token_is_good_for_one_client_run_round_and_time(trunk: Running) -> None:
    for name in ("a", "b"):
        trunk.prepare(name)
    key = trunk.control._key
    wrong: dict[str, tuple[str, str]] = {
        "the token is for client 'b', the certificate for 'a'": (
            "a",
            issue(key, claims(client="b")),
        ),
        "the token is for client 'a', the certificate for 'b'": ("b", issue(key, claims())),
        "the token has expired": ("a", trunk.token("a", seconds=-1)),
        "the token is of run 'other'": ("a", issue(key, claims(run="other"))),
        "in round 3, the coordinator prepared": ("a", issue(key, claims(round=3))),
        "the token is to serve in round 4": ("a", issue(key, claims(mode="serve"))),
        "the token is not of this coordinator": ("a", issue(bytes(32), claims())),
        "the token can't be read": ("a", "no token, !"),
        "has not prepared a round for client 'c'": ("c", trunk.token("c")),
        "say which run's adapter to use": ("a", ""),
    }
    for reason, (name, token) in wrong.items():
        greeting = greet(manifest=MANIFEST, settings=AGREED, token=token)
        line = refused(trunk, name, greeting)
        assert reason in line
        assert "\n" not in line
    for name in ("a", "b"):  # nobody came to harm
        assert trunk.client(name).exchange(frames_of(name)[0])


def test_a_token_expires_for_newcomers_only(trunk: Running) -> None:
    trunk.prepare("a")
    soon = trunk.token("a", seconds=60)
    client = trunk.client("a", token=soon)
    client.open()
    registry = trunk.service.registry
    registry._clock = lambda: 2.0**34
    greeting = client._greeting
    assert client._welcome is not None
    again = greeting.model_copy(update={"resume": client._welcome.session})
    assert registry.join(again, "a").client == "a"
    with pytest.raises(WireError, match="expired"):
        registry.join(greeting, "a")


@pytest.mark.parametrize("at", range(0, 200, 7))
def test_a_token_that_was_changed_is_none(at: int) -> None:
    key = bytes(range(32))
    token = issue(key, claims())
    assert verify(key, token) == claims()
    at %= len(token)
    changed = token[:at] + ("A" if token[at] != "A" else "B") + token[at + 1 :]
    with pytest.raises(WireError, match="token"):
        verify(key, changed)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"protocol": PROTOCOL + 1}, "the protocol differs"),
        ({"version": "0.0.1"}, "the fellrec version differs: '0.0.1' there"),
        ({"manifest": "other"}, "the base model differs"),
        ({"settings": "other"}, "the settings differs"),
        ({"resume": "0" * 32}, "the session is over: the trunk restarted"),
    ],
)
def test_a_greeting_that_does_not_fit(trunk: Running, change: Any, reason: str) -> None:
    trunk.prepare("a")
    greeting = greet(manifest=MANIFEST, settings=AGREED, token=trunk.token("a"))
    with raw(trunk, "a", []) as answers:
        assert read_message(Welcome, next(answers)).ok
    changed = greeting.model_copy(update=change)
    channel = connect(trunk.link("a"))
    trunk.closing.callback(channel.close)
    (answer,) = channel.stream_stream("/fellrec.Trunk/Steps")(iter([write_message(changed)]))
    welcome = read_message(Welcome, answer)
    assert not welcome.ok
    assert reason in welcome.reason


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b"[]", b"null", bytes(5000), b'{"protocol": "1"}', b"[" * 4000, b"\xff\xfe"],
)
def test_a_greeting_that_is_none(trunk: Running, data: bytes) -> None:
    channel = connect(trunk.link("a"))
    trunk.closing.callback(channel.close)
    (answer,) = channel.stream_stream("/fellrec.Trunk/Steps")(iter([data]))
    assert "Greeting refused" in read_message(Welcome, answer).reason


def test_a_second_process_of_a_client_is_told(trunk: Running) -> None:
    trunk.prepare("a")
    first = trunk.client("a")
    first.exchange(FIRST)
    with pytest.raises(WireError, match="has begun this round already"):
        trunk.client("a").open()
    assert first.exchange(SECOND)


# --- the coordinator's methods -------------------------------------------------------------------


METHODS = ("Begin", "Prepare", "Collect", "Install", "Commit", "Drop", "Status")


@pytest.mark.parametrize("method", METHODS)
def test_only_the_coordinator_gives_orders(trunk: Running, method: str) -> None:
    channel = connect(trunk.link("a"))
    trunk.closing.callback(channel.close)
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(f"/fellrec.Trunk/{method}")(b"")
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert "'coordinator', this one 'a'" in caught.value.details()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(4),
        b"\xff\xff\xff\xff{}",
        pack_call(messages.Done()),
        pack_call(messages.Collect(client="a", round=1)),
        pack_call(messages.Install(client="a", label=1))[:-3],
    ],
)
def test_an_order_that_is_none(trunk: Running, data: bytes) -> None:
    channel = connect(trunk.link("coordinator"))
    trunk.closing.callback(channel.close)
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/fellrec.Trunk/Install")(data)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "Install refused" in caught.value.details()


@pytest.mark.parametrize("client", ["..", ".", "a/b", "a\\b", "/etc", "a\x00b", "é" * 60, "a\nb"])
def test_a_name_that_can_t_be_a_folder_s(trunk: Running, client: str) -> None:
    with pytest.raises(WireError, match=r"can't name a client|Prepare refused"):
        trunk.control.prepare(client, ROUND, 0)
    with pytest.raises(WireError, match="coordinator's name"):
        trunk.control.prepare("coordinator", ROUND, 0)


@pytest.mark.parametrize("run", ["../up", "", "a b", ".hidden", "x" * 101])
def test_a_run_that_can_t_be_a_folder_s(trunk: Running, run: str) -> None:
    order = messages.Begin.model_construct(
        run=run, settings=AGREED, manifest=MANIFEST, version=fellrec.__version__, key="0" * 64
    )
    channel = connect(trunk.link("coordinator"))
    trunk.closing.callback(channel.close)
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/fellrec.Trunk/Begin")(pack_call(order))
    assert "Begin refused: run" in caught.value.details()


def test_an_adapter_that_does_not_fit_is_refused(trunk: Running) -> None:
    good = {name: t.clone() for name, t in trunk_server().initial().items()}
    name = sorted(good)[0]
    wrong = {
        "first difference": {n: t for n, t in good.items() if n != name},
        "difference: extra": {**good, "extra": torch.zeros(1)},
        "of shape": {**good, name: good[name][:1]},
        "F64": {**good, name: good[name].double()},
        "NaN or infinite": {**good, name: good[name] / 0},
    }
    for reason, tensors in wrong.items():
        with pytest.raises(WireError, match=reason):
            trunk.control.prepare("a", ROUND, 1, adapter=tensors)
    body = pack_call(messages.Prepare(client="a", round=1, label=1), good)
    channel = connect(trunk.link("coordinator"))
    trunk.closing.callback(channel.close)
    for data in (body[:-1], body + b"x", body.replace(b"F32", b"I32"), body[:60]):
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/fellrec.Trunk/Prepare")(data)
        assert caught.value.code() in (
            grpc.StatusCode.FAILED_PRECONDITION,
            grpc.StatusCode.INVALID_ARGUMENT,
        )
    assert trunk.control.status().sessions == ()


def test_an_order_out_of_its_place_is_refused(trunk: Running) -> None:
    control, like = trunk.control, trunk_server().initial()
    with pytest.raises(WireError, match="trained nothing in round 4"):
        control.collect("a", ROUND)
    with pytest.raises(WireError, match="trained nothing for label 1"):
        control.install("a", 1, like)
    with pytest.raises(WireError, match="reset names 'no such'"):
        control.install("a", 1, like, ["no such"])
    with pytest.raises(WireError, match="no candidate of label 1"):
        control.commit({"a": messages.Kept(label=1)})
    with pytest.raises(WireError, match="the base model differs: 'other' there, 'base-1' on the"):
        control.begin(RUN, manifest="other", settings=AGREED)
    with pytest.raises(WireError, match="the settings differs: 'other' there"):
        control.begin(RUN, manifest=MANIFEST, settings="other")


def test_a_coordinator_that_begins_anew_ends_what_was_open(trunk: Running) -> None:
    trunk.prepare("a")
    client = trunk.client("a", retry_seconds=5)
    client.exchange(FIRST)
    trunk.control._key = bytes(32)
    trunk.control.begin(RUN, manifest=MANIFEST, settings=AGREED)
    with pytest.raises(WireError, match="not of this coordinator"):
        client.exchange(SECOND)
    assert trunk.control.status().sessions == ()
