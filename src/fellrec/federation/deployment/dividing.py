"""A data set divided into clients' files, to try a deployment out: who has it all hands it out.

In a deployment proper nobody does this; each party makes its own file (`data.client_file`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fellrec.config import RunConfig
from fellrec.data.client_file import write_client_file
from fellrec.data.folders import new_folder
from fellrec.federation.shares import Shares, share_data


@dataclass(frozen=True)
class Piece:
    """One client's file. users: in it. interactions: of these users, targets included."""

    client: str
    path: Path
    users: int
    interactions: int


def hand_out(shares: Shares, config: RunConfig, place: Callable[[str], Path]) -> list[Piece]:
    """Write every client's file where `place` says for its name; return them, largest first.

    Raises DataError for names or texts that no client file can hold, or a file that can't be
    written.
    """
    pieces = []
    for number, name in enumerate(shares.partition.names):
        own, path, dataset = shares.of(number), place(name), shares.dataset
        write_client_file(path, dataset.name, dataset.catalogue, own, config.data.split)
        taken = sum(len(rows.values) for rows in (own.train, own.valid, own.test))
        pieces.append(Piece(name, path, len(own), taken))
    return pieces


def divide(config: RunConfig, out: Path) -> list[Piece]:
    """Divide a recipe's data over its clients: the folder `out`, with a file `NAME.fellrec` each.

    The folder appears whole or not at all. Raises ConfigError where it exists already or the recipe
    can't be followed, DataError and SourceError for the data.
    """
    with new_folder(out) as folder:
        pieces = hand_out(share_data(config), config, lambda name: folder / f"{name}.fellrec")
    return [Piece(p.client, out / p.path.name, p.users, p.interactions) for p in pieces]
