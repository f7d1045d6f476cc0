"""Largest resident memory of a client's and of a trunk server's process, as they are deployed.

As a script it is the client: it imports what a Flower client does, carries out one order, which
comes on stdin, and prints its largest resident memory. Linux: VmHWM of /proc/PID/status.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fellrec.config import RunConfig


@dataclass(frozen=True)
class Peaks:
    """Bytes. client: the larger of a process that trains for a round and of one that is tested.

    server: of the trunk's process, which served both.
    """

    client: int
    server: int


def highest(pid: int | str = "self") -> int:
    """Return the largest resident memory of a process so far, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "VmHWM":
            return 1024 * int(value.split()[0])
    raise SystemExit("/proc tells no VmHWM: this needs Linux")


def measure(config: RunConfig, *, tested: bool = True) -> Peaks:
    """Let the only client of a recipe train for a round, and be tested, over a deployed trunk.

    tested: False leaves the test out, where training is known to take more.
    """
    import fellrec
    from fellrec.data.sources import fetch_model
    from fellrec.federation.deployment.agreement import agreed
    from fellrec.federation.deployment.grounds import Grounds
    from fellrec.federation.deployment.orders import Placed
    from fellrec.federation.deployment.processes import Processes
    from fellrec.federation.deployment.trunk_process import start_trunk, trunk_address
    from fellrec.federation.shares import share_data
    from fellrec.models import manifest
    from fellrec.split.service.channel import Link
    from fellrec.split.service.control import TrunkControl
    from fellrec.split.service.messages import Mode

    shares = share_data(config)
    (name,) = shares.partition.names
    (quota,) = shares.quotas
    with tempfile.TemporaryDirectory() as temporary:
        grounds = Grounds.prepare(Path(temporary) / "parties", config, shares)
        with Processes(grounds.folder / "logs", dict(os.environ)) as processes:
            trunk = start_trunk(processes, grounds)
            address = trunk_address(trunk)
            control = TrunkControl(Link(address, grounds.tls(grounds.keys.coordinator)), {})
            digest = manifest.digest(fetch_model(config.model.base))
            control.begin("bench", manifest=digest, settings=agreed(config))
            found = []
            work: list[tuple[str, Mode]] = [("Train", "train"), ("Test", "serve")]
            for kind, mode in work[: 1 + tested]:
                control.prepare(name, 0, 0, mode)
                order = Placed(
                    run="bench",
                    recipe=config.to_toml(),
                    version=fellrec.__version__,
                    round=0,
                    label=0,
                    samples=quota.samples,
                    valid_users=quota.valid_users,
                    test_users=quota.test_users,
                    trunk=address,
                    token=control.token(name, 0, mode, 3600.0),
                )
                told = {"node": grounds.node_config(name), "kind": kind, **order.model_dump()}
                found.append(_carried_out(told))
                control.drop(name)
            served = highest(trunk.pid)
            control.close()
    return Peaks(max(found), served)


def _carried_out(told: dict[str, Any]) -> int:
    """Let a fresh process carry an order out: its largest resident memory."""
    done = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps(told),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return int(done.stdout.split()[-1])


def _be_a_client() -> None:
    import fellrec.federation.flower.client_app  # noqa: F401  # all that a client's process has
    from fellrec.federation.deployment import orders
    from fellrec.federation.deployment.allocator import give_back_what_is_freed
    from fellrec.federation.deployment.party import Party
    from fellrec.federation.deployment.place import Place

    told = json.loads(sys.stdin.read())
    place, order = Place.of(told.pop("node")), getattr(orders, told.pop("kind"))
    give_back_what_is_freed()
    Party(place).answer(order.model_validate(told), {})
    print(highest())


if __name__ == "__main__":
    _be_a_client()
