"""What data a run is of: noted when it begins, looked at wherever they are read again.

A run stores adapters and scores and no histories. Its recipe says where those are; had they changed
since, clients would be other users, and vectors those of other items, without a word.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fellrec.data.digest import data_digest, partition_digest
from fellrec.errors import RunError
from fellrec.federation.shares import Shares
from fellrec.files import read_json, write_json

DATA = "data.json"


def note_data(run: Path, shares: Shares) -> None:
    """Note in a run's folder what it is of, or raise as `check_data` where that is noted."""
    if (run / DATA).exists():
        check_data(run, shares)
    else:
        write_json(run / DATA, _described(shares))


def check_data(run: Path, shares: Shares) -> None:
    """Raise RunError unless these are the data that a run began with.

    A run of a version that did not note them has nothing to be compared with.
    """
    if not (run / DATA).exists():
        return
    noted, found = read_json(run / DATA), _described(shares)
    if noted == found:
        return
    if not (isinstance(noted, dict) and noted.keys() == found.keys()):
        raise RunError(f"{run / DATA}: is damaged; remove it if the data are those of the run")
    rows = noted["digest"] != found["digest"]
    changed = "the items or histories" if rows else "the division of users over clients"
    raise RunError(
        f"{run}: {changed} changed since this run began: {noted['users']} users and "
        f"{noted['items']} items then, {found['users']} and {found['items']} now; bring back the "
        "data of then, or train anew in another folder"
    )


def _described(shares: Shares) -> dict[str, Any]:
    return {
        "dataset": shares.dataset.name,
        "users": len(shares.split),
        "items": len(shares.dataset.catalogue),
        "digest": data_digest(shares.dataset, shares.split),
        "partition": partition_digest(shares.partition),
    }
