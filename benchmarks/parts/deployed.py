"""A trunk as people deploy it, for benchmarks: `fellrec trunk`, a process of its own, with TLS."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fellrec.config import RunConfig
from fellrec.data.sources import fetch_model
from fellrec.federation.deployment.agreement import agreed
from fellrec.federation.deployment.certificates import Pair
from fellrec.federation.deployment.credentials import Credentials, make_credentials
from fellrec.models import manifest
from fellrec.split.service.channel import Link
from fellrec.split.service.control import TrunkControl
from fellrec.split.service.messages import Greeting
from fellrec.split.service.settings import TlsFiles
from fellrec.split.service.transport import GrpcTransport, greet

RUN, ROUND = "bench", 0
_PROGRAM = [sys.executable, "-c", "from fellrec.cli import app; app(prog_name='fellrec')"]
_HOUR = 3600.0


@dataclass(frozen=True)
class Deployed:
    """A running trunk, its coordinator, and what clients need to reach it."""

    config: RunConfig
    port: int
    keys: Credentials
    control: TrunkControl
    digest: str

    def link(self, client: str, port: int = 0) -> Link:
        """Return a client's way to the trunk, or to a relay at `port` of this machine."""
        return _link(self.config, self.keys, self.keys.clients[client], port or self.port)

    def call(self, client: str) -> Greeting:
        """Let a client come, in a new session from the initial adapter: what it greets with."""
        self.control.prepare(client, ROUND, 0)
        token = self.control.token(client, ROUND, "train", _HOUR)
        return greet(manifest=self.digest, settings=agreed(self.config), token=token)

    def transport(self, client: str, port: int = 0) -> GrpcTransport:
        """Begin a client's session."""
        transport = GrpcTransport(self.link(client, port), self.call(client))
        transport.open()
        return transport


@contextmanager
def deployed(config: RunConfig, clients: Sequence[str]) -> Iterator[Deployed]:
    """Start the trunk of a recipe, which computes on one thread; end it afterwards."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        keys = make_credentials(folder / "keys", clients, days=1)
        recipe = folder / "recipe.toml"
        recipe.write_text(config.to_toml())
        options = {
            "--config": recipe,
            "--listen": "127.0.0.1:0",
            "--tls-cert": keys.trunk.certificate,
            "--tls-key": keys.trunk.key,
            "--client-ca": keys.authority,
            "--folder": folder / "trunk",
            "--grace-seconds": 0,
        }
        words = [str(word) for pair in options.items() for word in pair]
        with subprocess.Popen(
            [*_PROGRAM, "trunk", *words],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                port = _listening(process)
                control = TrunkControl(_link(config, keys, keys.coordinator, port), {})
                digest = manifest.digest(fetch_model(config.model.base))
                control.begin(RUN, manifest=digest, settings=agreed(config))
                yield Deployed(config, port, keys, control, digest)
                control.close()
            finally:
                process.terminate()


def _listening(process: subprocess.Popen[str]) -> int:
    found = re.search(
        r" on 127\.0\.0\.1:([0-9]+)", process.stdout.readline() if process.stdout else ""
    )
    if found is None:
        raise SystemExit("the trunk did not start")
    return int(found[1])


def _link(config: RunConfig, keys: Credentials, own: Pair, port: int) -> Link:
    tls = TlsFiles(own.certificate, own.key, keys.authority)
    return Link(f"127.0.0.1:{port}", tls, config.split.max_frame_mib << 20)
