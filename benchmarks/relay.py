"""A slow link in a process of its own: passes TCP on at a rate, after a delay, and counts bytes.

    python benchmarks/relay.py --target PORT [--ms 20] [--mbit 100]     passes on until stdin ends
    python benchmarks/relay.py                                          measures itself

Each direction is a link of its own, as in a full-duplex line: bytes leave one after another at the
rate (a token bucket that saves nothing up) and arrive `--ms` later. All connections share it. What
waits for its turn is bounded, as a router's queue is, to a tenth of a second on the line; beyond
that the sender is not read on, and TCP slows it down. Not emulated: losses, TCP's slow start,
packet headers.

It prints the port it listens on. To each line on stdin it answers with one line of JSON, the bytes
that went "up" (to the target) and "down" since it started: payload of TCP, so TLS is in it and
packet headers are not.
"""

from __future__ import annotations

import argparse
import json
import socket
import sys
import threading
import time
from collections import deque
from contextlib import suppress

BLOCK = 16 << 10
QUEUE_SECONDS = 0.1  # what may wait for its turn, in time on the line
CHECKED_BYTES = 5_000_000


class Line:
    """One direction. rate: bytes/s. delay: seconds."""

    def __init__(self, rate: float, delay: float) -> None:
        self.bytes = 0
        self._rate, self._delay = rate, delay
        self._free = 0.0
        self._lock = threading.Lock()

    def enter(self, size: int) -> tuple[float, float]:
        """Take `size` bytes: when they have left the sender, and when they arrive."""
        with self._lock:
            self._free = max(self._free, time.monotonic()) + size / self._rate
            self.bytes += size
            return self._free, self._free + self._delay


class Pump:
    """Carries one connection's bytes over a line, from `source` to `sink`."""

    def __init__(self, line: Line, source: socket.socket, sink: socket.socket) -> None:
        self._line, self._source, self._sink = line, source, sink
        self._under_way: deque[tuple[float, bytes]] = deque()
        self._changed = threading.Condition()
        for work in (self._take, self._give):
            threading.Thread(target=work, daemon=True).start()

    def _take(self) -> None:
        """Read as fast as the line lets, and a bounded time ahead of it."""
        more = True
        while more:
            data = b""
            with suppress(OSError):  # a cut connection ends as any other
                data = self._source.recv(BLOCK)
            left, arrives = self._line.enter(len(data))
            with self._changed:
                self._under_way.append((arrives, data))
                self._changed.notify()
            time.sleep(max(0.0, left - QUEUE_SECONDS - time.monotonic()))
            more = bool(data)

    def _give(self) -> None:
        """Hand on what has arrived; an empty block is the end of the connection."""
        with suppress(OSError):
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._under_way)
                    arrives, data = self._under_way.popleft()
                time.sleep(max(0.0, arrives - time.monotonic()))
                if not data:
                    break
                self._sink.sendall(data)
        with suppress(OSError):
            self._sink.shutdown(socket.SHUT_WR)


class Relay:
    """Listens on a free port of loopback and passes every connection on to `target` there."""

    def __init__(self, target: int, milliseconds: float, megabits: float) -> None:
        self.up, self.down = (Line(megabits * 1e6 / 8, milliseconds / 1e3) for _ in range(2))
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            near, _ = self._listener.accept()
            far = socket.create_connection(("127.0.0.1", self._target))
            for end in (near, far):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            Pump(self.up, near, far)
            Pump(self.down, far, near)


def serve(target: int, milliseconds: float, megabits: float) -> None:
    """Pass on until stdin ends."""
    relay = Relay(target, milliseconds, megabits)
    print(relay.port, flush=True)
    for _ in sys.stdin:
        print(json.dumps({"up": relay.up.bytes, "down": relay.down.bytes}), flush=True)


def measure(milliseconds: float, megabits: float) -> None:
    """Print what a byte's way there and back takes, and how fast many go."""
    listener = socket.create_server(("127.0.0.1", 0))
    relay = Relay(listener.getsockname()[1], milliseconds, megabits)
    with socket.create_connection(("127.0.0.1", relay.port)) as near, listener.accept()[0] as far:
        near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        start = time.perf_counter()
        near.sendall(b"?")
        far.recv(1)
        far.sendall(b"!")
        near.recv(1)
        trip = time.perf_counter() - start
        sender = threading.Thread(target=near.sendall, args=(bytes(CHECKED_BYTES),))
        start = time.perf_counter()
        sender.start()
        left = CHECKED_BYTES
        while left:
            left -= len(far.recv(min(left, BLOCK)))
        rate = 8 * CHECKED_BYTES / (time.perf_counter() - start - milliseconds / 1e3) / 1e6
    print(
        f"relay: there and back {1e3 * trip:.1f} ms (asked {2 * milliseconds:g}), "
        f"{rate:.1f} Mbit/s (asked {megabits:g}), counted {relay.up.bytes:,} of "
        f"{CHECKED_BYTES + 1:,} bytes"
    )


def main() -> None:
    """Parse the options; serve, or measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--target", type=int, help="port on loopback; without it: measure")
    parser.add_argument("--ms", type=float, default=20.0, help="one way")
    parser.add_argument("--mbit", type=float, default=100.0, help="each direction")
    options = parser.parse_args()
    if options.target is None:
        measure(options.ms, options.mbit)
    else:
        serve(options.target, options.ms, options.mbit)


if __name__ == "__main__":
    main()
