"""Cut each user's interactions into training, validation and test.

All splits are by time, never at random: a recommender is judged on what came next.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from fellrec.data.interactions import Dataset, Interactions, Ragged, Split
from fellrec.errors import ConfigError, DataError

SplitKind = Literal["leave-one-out", "last-5", "global-time", "files"]
TRAIN, VALID, TEST = 0, 1, 2


def split(dataset: Dataset, how: SplitKind) -> Split:
    """Split a data set.

    Args:
        dataset: interactions sorted by (user, time, file order).
        how: "leave-one-out": the last item is the test, the one before validation; a user needs 3.
            "last-5": the last five are test, the one before validation; a user needs 7.
            "global-time": the first 80 % of all interactions by time train, the next 10 % validate,
            the last 10 % test; equal times in file order. "files": as the files say.

    Returns:
        The users with at least one training item, in their old order; the others are counted in
        `dropped`. In the last two kinds, a user may have several targets or none.

    Raises:
        ConfigError: an unknown kind.
        DataError: no user survives, or "files" on a data set whose files don't say.
    """
    log = dataset.interactions
    if how == "leave-one-out":
        part, needed = _from_the_end(log, len(dataset.users), tests=1), 3
    elif how == "last-5":
        part, needed = _from_the_end(log, len(dataset.users), tests=5), 7
    elif how == "global-time":
        part, needed = _by_time(log), 1
    elif how == "files":
        if log.part is None:
            raise DataError(
                f"{dataset.name}: split 'files' needs .train.inter, .valid.inter and .test.inter; "
                f"choose another split"
            )
        part, needed = log.part, 1
    else:
        raise ConfigError(f"unknown split '{how}'; choose {', '.join(get_args(SplitKind))}")
    rows = [_rows(log, part == number, len(dataset.users)) for number in (TRAIN, VALID, TEST)]
    # A user too short to be cut has no training item, whatever the kind.
    kept = np.flatnonzero(rows[TRAIN].lengths() > 0)
    if not len(kept):
        kind = "interactions" if needed > 1 else "training interaction"
        raise DataError(f"{dataset.name}: split '{how}' needs a user with at least {needed} {kind}")
    whole = Split(dataset.users, rows[TRAIN], rows[VALID], rows[TEST], 0, dataset.user_columns)
    survivors = whole.take(kept)
    return Split(
        survivors.users,
        survivors.train,
        survivors.valid,
        survivors.test,
        len(dataset.users) - len(kept),
        survivors.user_columns,
    )


def _from_the_end(log: Interactions, n_users: int, tests: int) -> NDArray[np.int8]:
    """Mark each user's last `tests` items as test and the one before as validation."""
    counts = np.bincount(log.user, minlength=n_users)
    ends = np.cumsum(counts)
    left = ends[log.user] - np.arange(len(log))  # 1 for a user's last interaction
    return np.where(left <= tests, TEST, np.where(left == tests + 1, VALID, TRAIN)).astype(np.int8)


def _by_time(log: Interactions) -> NDArray[np.int8]:
    """Mark the first 8 tenths of all interactions as training, then 1 and 1."""
    order = np.lexsort((log.row, log.time))
    total = len(log)
    part = np.empty(total, dtype=np.int8)
    part[order[: total * 8 // 10]] = TRAIN
    part[order[total * 8 // 10 : total * 9 // 10]] = VALID
    part[order[total * 9 // 10 :]] = TEST
    return part


def _rows(log: Interactions, mask: NDArray[np.bool_], n_users: int) -> Ragged:
    counts = np.bincount(log.user[mask], minlength=n_users)
    return Ragged.from_lengths(counts, log.item[mask])
