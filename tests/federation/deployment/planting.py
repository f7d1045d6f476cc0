"""A deployment whose data nobody could mistake for anything else, recorded by its servers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fellrec.config import RunConfig
from fellrec.data.client_file import ClientFile, read_client_file, write_client_file
from fellrec.data.interactions import Catalogue, Ragged
from fellrec.federation.deployment.schema import Explained, explain_folder
from fellrec.split.ledger import Ledger
from tests.federation.deployment.recordings import histories, texts
from tests.federation.deployment.town import Town, town
from tests.toys import GENRES, ITEMS

FILLERS = 300  # items before those that users have: no length is as large as their numbers
SMALL: Mapping[str, object] = {
    "clients.partition": "random",
    "clients.count": 2,
    "train.rounds": 1,
    "model.item_residual": "local",
}
Change = Callable[[ClientFile], ClientFile]


def planted(file: ClientFile) -> ClientFile:
    """Plant titles and ids that nobody could mistake, and move all items to high numbers."""
    fill = [f"{GENRES[i % 3]} {i // 18} {i % 18}" for i in range(FILLERS)]
    own = [f"{GENRES[i % 3]} story {i} canary-{i}-é" for i in range(ITEMS)]
    catalogue = Catalogue(
        (*(f"filler-{i}" for i in range(FILLERS)), *(f"sku-{i}-canary" for i in range(ITEMS))),
        (*fill, *own),
        {name: ("love",) * FILLERS + column for name, column in file.catalogue.attributes.items()},
    )
    users = tuple(f"canary-of-{name}" for name in file.split.users)
    renamed = replace(file, catalogue=catalogue, split=replace(file.split, users=users))
    return moved(renamed, np.arange(ITEMS) + FILLERS)


def moved(file: ClientFile, place: npt.NDArray[np.int64]) -> ClientFile:
    """Give items other numbers in all histories: `place` of each."""

    def rows(each: Ragged) -> Ragged:
        return Ragged(each.offsets, place[each.values].astype(np.int32))

    own = file.split
    split = replace(own, train=rows(own.train), valid=rows(own.valid), test=rows(own.test))
    return replace(file, split=split)


def permuted(place: npt.NDArray[np.int64]) -> Change:
    """Return a change of the catalogue's order, and of all users' names."""

    def change(file: ClientFile) -> ClientFile:
        before = planted(file)
        shuffled = replace(before, catalogue=before.catalogue.take(np.argsort(place)))
        file = moved(shuffled, place)
        users = tuple(f"somebody-{number}" for number in range(len(file.split)))
        return replace(file, split=replace(file.split, users=users))

    return change


def recorded(config: RunConfig, folder: Path, change: Change = planted) -> Town:
    """Run a deployment to its end with clients' files changed; both servers record."""
    folder.mkdir()
    with town(config, folder, trunks=0) as it:
        it.start_trunk(record=folder / "recording")
        for name in it.names:
            path = it.grounds.place(name).data
            file = change(read_client_file(path))
            write_client_file(path, file.dataset_name, file.catalogue, file.split, file.split_kind)
        it.conduct(record=str(folder / "recording"))
    return it


def ledger_of(it: Town) -> Ledger:
    """Put together what the coordinator and the clients counted."""
    ledger = Ledger.read(it.folder / "run" / "ledger.csv")
    for name in it.names:
        ledger.merge(Ledger.read(it.folder_of(name) / "ledger.csv"))
    return ledger


def secrets(it: Town) -> dict[str, bytes]:
    """Return all that was planted."""
    written: dict[str, bytes] = {}
    for name in it.names:
        file = read_client_file(it.grounds.place(name).data)
        own = range(FILLERS, FILLERS + ITEMS)
        titles = [file.catalogue.titles[i] for i in own]
        ids = [file.catalogue.ids[i] for i in own]
        written |= texts([*titles, *ids, *file.split.users, "canary"])
        written |= histories(file, run=2)
    return written


def seen(it: Town) -> list[Explained]:
    """Return all that was recorded, explained."""
    return list(explain_folder(it.folder / "recording"))
