"""FELLRec inside Flower's simulation engine: all parties on one machine, without SuperNodes.

The engine runs ClientApps itself and knows nodes by a number. What a deployment would bring (data
files, certificates, a trunk server) is made here first, as for a rehearsal: client number i is the
i-th largest. Activations go to the trunk server as always.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from flwr.serverapp import Grid
from flwr.superlink.grid.inmemory_grid import InMemoryGrid

from fellrec.errors import ConfigError, RunError
from fellrec.federation.deployment.collect import collect_all
from fellrec.federation.deployment.dispatch import trunk_outline
from fellrec.federation.deployment.grounds import Grounds, parties_of
from fellrec.federation.deployment.place import Place
from fellrec.federation.deployment.processes import Processes
from fellrec.federation.deployment.trunk_process import start_trunk, trunk_address
from fellrec.federation.flower.network import environment
from fellrec.federation.flower.settings import ServerSettings


def simulates(grid: Grid) -> bool:
    """Whether Flower's simulation engine runs the clients."""
    return isinstance(grid, InMemoryGrid)


@contextmanager
def parties(settings: ServerSettings) -> Iterator[ServerSettings]:
    """Make what the parties need and start a trunk server; lend the settings of such a run.

    After the block the run directory is put together. Raises a FellrecError of the kind that fits.
    """
    if settings.out.exists():
        raise RunError(f"{settings.out} exists already; choose another out")
    config, folder = settings.config, parties_of(settings.out)
    grounds = Grounds.at(folder, config) if settings.resume else Grounds.made(folder, config)
    with Processes(folder / "logs", environment(folder / "flwr")) as processes:
        trunks: tuple[str, ...] = ()
        if trunk_outline(config).blocks:
            trunks = (trunk_address(start_trunk(processes, grounds)),)
        yield replace(
            settings,
            out=grounds.coordinator,
            resume=grounds.coordinator.exists(),
            clients=grounds.names,
            trunks=trunks,
            tls=grounds.tls(grounds.keys.coordinator),
            token_seconds=settings.answer_seconds,  # the engine lets clients wait for their turn
        )
    collect_all(settings.out, grounds)


def place(run_config: Mapping[str, Any], number: int) -> Place:
    """Return the machine of a client that the engine knows by a number.

    Raises ConfigError where there are fewer clients than nodes.
    """
    settings = ServerSettings.of(run_config)
    grounds = Grounds.at(parties_of(settings.out), settings.config)
    if number >= len(grounds.names):
        raise ConfigError(
            f"there are {len(grounds.names)} clients and more nodes; this one is not needed"
        )
    return grounds.place(grounds.names[number])
