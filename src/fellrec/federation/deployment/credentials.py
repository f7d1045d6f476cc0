"""One folder with every certificate and key of a federation: who needs which is in the names.

    ca.crt, ca.key               the authority; ca.crt is what everybody trusts
    superlink.*                  the SuperLink's server certificate
    trunk.*                      the trunk server's
    coordinator.*                by which the trunk knows the coordinator
    clients/NAME.crt, .key       by which the trunk knows a client
    nodes/NAME.pub, .key         by which the SuperLink knows a client's SuperNode

A rehearsal uses it as it is. Parties on several machines take their own files from it, or make
their own keys and never hand them out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fellrec.data.folders import new_folder
from fellrec.errors import ConfigError
from fellrec.federation.deployment.certificates import Authority, NodeKey, Pair, make_node_key

COORDINATOR = "coordinator"
"""The common name of the coordinator, which no client may have."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Credentials:
    """The files of a federation; `clients` and `nodes` by client's name."""

    authority: Path
    superlink: Pair
    trunk: Pair
    coordinator: Pair
    clients: Mapping[str, Pair]
    nodes: Mapping[str, NodeKey]

    @classmethod
    def at(cls, folder: Path, clients: Sequence[str]) -> Credentials:
        """Return the paths below `folder`, whether the files are there or not."""
        return cls(
            authority=Pair.at(folder / "ca").certificate,
            superlink=Pair.at(folder / "superlink"),
            trunk=Pair.at(folder / "trunk"),
            coordinator=Pair.at(folder / COORDINATOR),
            clients={name: Pair.at(folder / "clients" / name) for name in clients},
            nodes={name: NodeKey.at(folder / "nodes" / name) for name in clients},
        )


def make_credentials(
    folder: Path, clients: Sequence[str], *, days: int, hosts: Sequence[str] = LOOPBACK
) -> Credentials:
    """Make all that N clients, one SuperLink and one trunk server need.

    Args:
        folder: appears whole or not at all.
        clients: their names, which become common names and file names.
        days: how long the certificates are good.
        hosts: the addresses and DNS names of SuperLink and trunk server.

    Raises:
        ConfigError: `folder` exists already or can't be written, a name that can't be used, twice
            or the coordinator's, a host or days that won't do, or `cryptography` is not installed.
    """
    _check_names(clients)
    with new_folder(folder) as partial:
        authority = Authority.make(partial, days=days)
        for server in ("superlink", "trunk"):
            authority.server(partial / server, hosts, days=days)
        authority.client(partial / COORDINATOR, COORDINATOR, days=days)
        for name in clients:
            authority.client(partial / "clients" / name, name, days=days)
            make_node_key(partial / "nodes" / name)
    return Credentials.at(folder, clients)


def _check_names(clients: Sequence[str]) -> None:
    """Refuse names that can't be files, and those that would be mistaken for another."""
    for name, times in Counter(clients).items():
        if {"/", "\\", "\0"} & set(name) or name in ("", ".", ".."):
            raise ConfigError(f"{name!r} can't name a client's files; use another name")
        if name == COORDINATOR:
            raise ConfigError(f"no client may be called {COORDINATOR!r}; use another name")
        if times > 1:
            raise ConfigError(f"two clients are called {name!r}; use another name for one")
