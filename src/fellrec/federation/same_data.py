"""What data a run is of: noted when it begins, looked at wherever they are read again.

A run stores adapters and scores and no histories. Its recipe says where those are; had they changed
since, clients would be other users, and vectors those of other items, without a word. What users
took since is no hindrance to recommending by a history that somebody gives.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fellrec.data.digest import catalogue_digest, data_digest, partition_digest
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
    _compare(run, _described(shares))


def check_items(run: Path, shares: Shares) -> None:
    """Raise RunError unless the items are those that a run began with, whatever users took since.

    That is all a model has to have as it was where somebody gives it a history.
    """
    _compare(run, _described(shares), tuple(_items(shares)))


def _compare(run: Path, found: dict[str, Any], keys: tuple[str, ...] = ()) -> None:
    """Hold what is found against what was noted; keys: the entries that count, or all."""
    if not (run / DATA).exists():
        return
    noted = read_json(run / DATA)
    if not (isinstance(noted, dict) and noted.keys() == found.keys()):
        raise RunError(f"{run / DATA}: is damaged; remove it if the data are those of the run")
    other = [key for key in keys or found if noted[key] != found[key]]
    if not other:
        return
    items, rows = (key in other for key in ("catalogue", "digest"))
    changed = "the items" if items else "histories" if rows else "whose users they are"
    raise RunError(
        f"{run}: {changed} changed since this run began: {noted['users']} users and "
        f"{noted['items']} items then, {found['users']} and {found['items']} now; bring back the "
        "data of then, or train anew in another folder"
    )


def _items(shares: Shares) -> dict[str, Any]:
    catalogue = shares.dataset.catalogue
    return {"items": len(catalogue), "catalogue": catalogue_digest(catalogue)}


def _described(shares: Shares) -> dict[str, Any]:
    return {
        "users": len(shares.split),
        **_items(shares),
        "digest": data_digest(shares.dataset, shares.split),
        "partition": partition_digest(shares.partition),
    }
