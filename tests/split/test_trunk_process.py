"""The trunk as a process: TLS, limits, idle sessions, its end, health, metrics."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fellrec.errors import ConfigError, RunError, WireError
from fellrec.split.service.budget import Budget
from fellrec.split.service.channel import Link, UnreachableError, connect
from fellrec.split.service.control import TrunkControl
from fellrec.split.service.messages import Kept
from fellrec.split.service.server import TrunkService
from fellrec.split.service.settings import Limits
from fellrec.split.service.transport import GrpcTransport, greet
from fellrec.split.wire import Frame, FrameKind, decode_frame, encode_frame
from tests.builders import layout_of, random_hidden
from tests.split.running import (
    AGREED,
    LIMIT,
    MANIFEST,
    ROUND,
    RUN,
    Authority,
    Relay,
    Running,
    frames_of,
    running,
    serving,
    trunk_server,
)


def until(done: Callable[[], object], seconds: float = 30) -> None:
    """Wait for something that another thread brings about."""
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "it never came about"
        time.sleep(0.01)


def test_one_port_and_one_folder_for_each_trunk(trunk: Running, tmp_path: Path) -> None:
    settings = replace(trunk.settings, listen=trunk.address)
    with pytest.raises(RunError, match="another trunk works in this folder"):
        TrunkService(trunk_server(), settings)
    with pytest.raises(ConfigError, match="can't listen on"):
        TrunkService(trunk_server(), replace(settings, folder=tmp_path / "other"))


# --- limits --------------------------------------------------------------------------------------


def test_a_session_too_many_waits_for_its_turn(tmp_path: Path, authority: Authority) -> None:
    with running(tmp_path, authority, limits=Limits(sessions=1)) as trunk:
        for name in ("a", "b"):
            trunk.prepare(name)
        first = trunk.client("a")
        first.open()
        with pytest.raises(WireError, match=r"1 sessions are open.*given up"):
            trunk.client("b", retry_seconds=0.3).open()
        second = trunk.client("b")
        waiting = threading.Thread(target=second.open)
        waiting.start()
        for frame in frames_of("a"):
            first.exchange(frame)
        first.finish()
        waiting.join()
        assert second.exchange(frames_of("b")[0])


def test_memory_is_bounded_over_all_sessions(tmp_path: Path, authority: Authority) -> None:
    forward = decode_frame(frames_of("a")[0], max_bytes=LIMIT)
    one = trunk_server().session("a", ROUND).demand(forward)
    limits = Limits(held_bytes=3 * one, memory_seconds=60)
    with running(tmp_path, authority, limits=limits) as trunk:
        for name in ("a", "b"):
            trunk.prepare(name)
        first, second = trunk.client("a"), trunk.client("b")
        frames, others = frames_of("a", steps=1), frames_of("b", steps=1)
        for frame in frames[:2]:
            first.exchange(frame)
        second.exchange(others[0])
        ticket = second.send(others[1])  # would be the fourth: it waits
        budget = trunk.service.registry.budget
        until(lambda: budget.queue == 1)
        assert budget.held == 3 * one
        for frame in frames[2:]:
            first.exchange(frame)
        assert second.receive(ticket)
        for frame in others[2:]:
            second.exchange(frame)
        assert budget.held == 0


def test_who_waits_too_long_for_memory_is_refused() -> None:
    budget = Budget(10, 1, patience=0.05)
    one, other = object(), object()
    budget.reserve(one, 6, lambda: "")
    with pytest.raises(WireError, match="no memory for this client"):
        budget.reserve(other, 5, lambda: "")
    budget.reserve(other, 4, lambda: "")
    with pytest.raises(WireError, match="its limit is"):
        budget.reserve(one, 11, lambda: "")
    budget.release(other)
    budget.reserve(one, 10, lambda: "")
    with pytest.raises(WireError, match="dropped"):
        budget.reserve(other, 1, lambda: "dropped")
    assert budget.held == 10
    assert budget.queue == 0


def test_an_idle_session_expires_with_all_it_held(tmp_path: Path, authority: Authority) -> None:
    with running(tmp_path, authority, limits=Limits(idle_seconds=0.2)) as trunk:
        trunk.prepare("a")
        client = trunk.client("a")
        frames = frames_of("a")
        client.exchange(frames[0])
        registry = trunk.service.registry
        assert registry.budget.held > 0
        until(lambda: registry.open_sessions() == 0)
        assert registry.budget.held == 0
        with pytest.raises(WireError, match=r"the session is over: no frame came for 0\.2 s"):
            client.exchange(frames[1])


def test_what_a_reader_wrote_expires_too(tmp_path: Path, authority: Authority) -> None:
    decoder = trunk_server(kind="llama")
    limits = Limits(idle_seconds=0.5)
    with running(tmp_path, authority, limits=limits, trunk=decoder) as trunk:
        assert trunk.control.prepare("a", 0, 1, adapter=decoder.initial())
        guest = trunk.guest("a", "last")
        assert guest.open() == 1
        layout = layout_of([3, 5], "left")
        prompts = Frame(
            FrameKind.FORWARD,
            "a",
            1,
            side="left",
            lengths=layout.lengths,
            positions=layout.lengths * 0,
            tensor=layout.pack(random_hidden(layout)),
        )
        guest.exchange(encode_frame(prompts))
        registry = trunk.service.registry
        assert registry.budget.held == 2 * (5 + 32) * decoder.base.cache_bytes
        until(lambda: registry.budget.held == 0)
        with pytest.raises(WireError, match="the session is over"):
            guest.exchange(serving(round=1))
        assert trunk.guest("a", "last").open() == 1  # who comes anew is welcome


def test_who_connects_and_says_nothing_is_hung_up_on(tmp_path: Path, authority: Authority) -> None:
    with running(tmp_path, authority, limits=Limits(greeting_seconds=0.2)) as trunk:
        silent = threading.Event()

        def nothing() -> Iterator[bytes]:
            silent.wait()
            yield from ()

        channel = connect(trunk.link("a"))
        answers = channel.stream_stream("/fellrec.Trunk/Steps")(nothing())
        until(lambda: not answers.is_active())
        silent.set()
        channel.close()


# --- its end -------------------------------------------------------------------------------------


def health_of(trunk: Running, name: str = "") -> int:
    channel = connect(trunk.link("a"))
    try:
        stub = health_pb2_grpc.HealthStub(channel)
        status: int = stub.Check(health_pb2.HealthCheckRequest(service=name)).status
        return status
    finally:
        channel.close()


def test_it_lets_running_rounds_end_and_takes_no_new_ones(trunk: Running) -> None:
    serving_, not_serving = 1, 2
    for name in ("a", "b"):
        trunk.prepare(name)
    assert health_of(trunk) == health_of(trunk, "fellrec.Trunk") == serving_
    client = trunk.client("a")
    frames = frames_of("a")
    client.exchange(frames[0])
    stopping = threading.Thread(target=trunk.service.stop, args=(60.0,))
    stopping.start()
    until(lambda: trunk.control.status().draining)
    assert health_of(trunk) == health_of(trunk, "fellrec.Trunk") == not_serving
    with pytest.raises(WireError, match="about to stop"):
        trunk.client("b", retry_seconds=0.3).open()
    with pytest.raises(WireError, match="about to stop"):
        trunk.control.prepare("c", ROUND, 0)
    for frame in frames[1:]:
        client.exchange(frame)
    client.finish()
    mixed = trunk.control.collect("a", ROUND)[1]
    trunk.control.install("a", ROUND + 1, mixed)
    trunk.prepare("a", ROUND, ROUND + 1, "serve")  # the mixture is scored as well
    assert trunk.service.registry.busy()
    scored = trunk.client("a", mode="serve")
    assert decode_frame(scored.exchange(serving()), max_bytes=LIMIT).kind is FrameKind.OUTPUT
    scored.finish()
    with pytest.raises(WireError, match="about to stop"):
        trunk.prepare("b", ROUND, 0, "serve")  # it trained nothing that waits
    assert stopping.is_alive()  # the round is not committed yet
    trunk.control.commit({"a": Kept(label=ROUND + 1)})
    stopping.join()
    with pytest.raises(UnreachableError):
        trunk.control.status()


def trained(trunk: Running, name: str, round: int = ROUND, label: int = 0) -> None:
    """Let a client train, and install its mixture: the round waits to be committed."""
    trunk.prepare(name, round, label)
    client = trunk.client(name, round=round)
    for frame in frames_of(name, round=round):
        client.exchange(frame)
    client.finish()
    trunk.control.install(name, round + 1, trunk.control.collect(name, round)[1])


def test_a_round_is_waited_for_until_the_coordinator_has_ended_it(trunk: Running) -> None:
    control, busy = trunk.control, trunk.service.registry.busy
    ends: dict[str, Callable[[], object]] = {
        "committed": lambda: control.commit({"a": Kept(label=ROUND + 1)}),
        "dropped": lambda: control.drop("a"),
        "begun again": lambda: trunk.prepare("a"),
        "another coordinator's": lambda: control.begin(RUN, manifest=MANIFEST, settings=AGREED),
    }
    for how, end in ends.items():
        trained(trunk, "a")
        trunk.prepare("a", ROUND, ROUND + 1, "serve")
        assert busy(), how
        scored = trunk.client("a", mode="serve")
        scored.exchange(serving())
        scored.finish()
        assert busy(), how
        end()
        assert not busy(), how


def test_a_session_that_finishes_while_it_is_dropped_is_not_waited_for(trunk: Running) -> None:
    registry = trunk.service.registry
    trunk.prepare("a")
    client = trunk.client("a")
    for frame in frames_of("a"):
        client.exchange(frame)
    seat = registry._seats["a"]
    store = registry._begun()

    def finish() -> None:
        with suppress(WireError):  # the drop may cut the connection before it has its answer
            client.finish()

    finishing = threading.Thread(target=finish)
    dropping = threading.Thread(target=trunk.control.drop, args=("a",))
    with store._lock:  # what it learned is not stored before the drop has begun
        finishing.start()
        until(lambda: seat.idle() == 0)
        dropping.start()
        until(lambda: seat.reason)
    finishing.join()
    dropping.join()
    assert not registry.busy()


def test_who_comes_to_read_is_no_part_of_a_round_under_way(trunk: Running) -> None:
    trained(trunk, "a")
    trunk.control.commit({"a": Kept(label=ROUND + 1, improved=True)})
    trained(trunk, "a", ROUND + 1, ROUND + 1)
    trunk.service.registry.draining = True
    with pytest.raises(WireError, match="about to stop"):
        trunk.guest("a").open()


def test_its_grace_ends(trunk: Running) -> None:
    trunk.prepare("a")
    client = trunk.client("a", retry_seconds=0.3)
    client.exchange(frames_of("a")[0])
    trunk.service.stop(0.1)
    trunk.service.stop()  # again, nothing more to do
    with pytest.raises(WireError, match="nothing answers"):
        client.exchange(frames_of("a")[1])


# --- metrics -------------------------------------------------------------------------------------


def test_metrics_count_what_was_done(tmp_path: Path, authority: Authority) -> None:
    with running(tmp_path, authority, metrics="127.0.0.1:0") as trunk:
        relay = Relay(trunk.service.port)
        trunk.closing.callback(relay.close)
        trunk.prepare("a")
        client = trunk.client("a", address=relay.address)
        frames = frames_of("a", steps=2)
        for number, frame in enumerate(frames):
            if number == 6:
                relay.cut_after("down", 200)
            client.exchange(frame)
        url = f"http://127.0.0.1:{trunk.service.metrics_port}/metrics"
        text = urllib.request.urlopen(url).read().decode()
        found = dict(line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")
        forwards = sum(len(f) for f in frames if f[5] == 1)
        expected = {
            "fellrec_trunk_steps_total": 2,
            'fellrec_trunk_frames_total{direction="up",kind="forward"}': 4,
            'fellrec_trunk_frames_total{direction="down",kind="input_gradient"}': 4,
            'fellrec_trunk_frame_bytes_total{direction="up",kind="forward"}': forwards,
            "fellrec_trunk_resent_frames_total": 1,
            "fellrec_trunk_sessions": 1,
            "fellrec_trunk_queue": 0,
            "fellrec_trunk_held_bytes": 0,
            "fellrec_trunk_draining": 0,
            'fellrec_trunk_seconds_count{stage="forward"}': 4,
            'fellrec_trunk_seconds_count{stage="backward"}': 4,
            'fellrec_trunk_seconds_count{stage="step"}': 2,
        }
        assert {name: float(found[name]) for name in expected} == expected
        client.exchange(serving())
        text = urllib.request.urlopen(url).read().decode()
        assert 'fellrec_trunk_seconds_count{stage="serve"} 1.0' in text


# --- a process of its own ------------------------------------------------------------------------


PROGRAM = """
import sys
from pathlib import Path

from fellrec.split.service.server import serve
from fellrec.split.service.settings import ServiceSettings, TlsFiles
from tests.split.running import AGREED, MANIFEST, trunk_server

certificate, key, authority, folder, listen = sys.argv[1:]
tls = TlsFiles(Path(certificate), Path(key), Path(authority))
settings = ServiceSettings(listen, tls, Path(folder), MANIFEST, AGREED)
serve(trunk_server(), settings, lambda it: print(it.port, flush=True))
"""


@contextmanager
def process(folder: Path, authority: Authority, listen: str) -> Iterator[tuple[int, int]]:
    """Start a trunk as a process; yields its port and its process id."""
    tls = authority.files("trunk")
    files = [str(path) for path in (tls.certificate, tls.key, tls.authority, folder)]
    root = Path(__file__).parent.parent.parent
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *files, listen],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(root)},
        cwd=root,
        text=True,
    ) as child:
        try:
            assert child.stdout is not None
            yield int(child.stdout.readline()), child.pid
        finally:
            child.terminate()
            assert child.wait(60) in (0, -signal.SIGKILL)


@pytest.mark.integration
def test_a_killed_process_comes_back_with_what_was_committed(
    tmp_path: Path, authority: Authority
) -> None:
    like = trunk_server().initial()
    with process(tmp_path, authority, "127.0.0.1:0") as (port, pid):
        link = Link(f"127.0.0.1:{port}", authority.files("coordinator"), LIMIT)
        control = TrunkControl(link, like)
        control.begin("run-1", manifest=MANIFEST, settings=AGREED)
        control.prepare("a", 0, 0)
        token = control.token("a", 0, "train", 60)
        greeting = greet(manifest=MANIFEST, settings=AGREED, token=token)
        client = GrpcTransport(replace(link, tls=authority.files("a")), greeting, retry_seconds=60)
        for frame in frames_of("a", round=0):
            client.exchange(frame)
        client.finish()
        control.install("a", 1, control.collect("a", 0)[1])
        control.commit({"a": Kept(label=1, improved=True)})
        control.prepare("a", 1, 1)
        token = control.token("a", 1, "train", 60)
        greeting = greet(manifest=MANIFEST, settings=AGREED, token=token)
        client = GrpcTransport(replace(link, tls=authority.files("a")), greeting, retry_seconds=60)
        frames = frames_of("a", round=1)
        client.exchange(frames[0])
        os.kill(pid, signal.SIGKILL)
    with process(tmp_path, authority, f"127.0.0.1:{port}"):
        with pytest.raises(WireError, match="no coordinator has begun a run since"):
            client.exchange(frames[1])
        control.begin("run-1", manifest=MANIFEST, settings=AGREED)
        assert control.status().labels == {"a": (1,)}
        client.close()
        control.close()
