"""What an audit found, and how it is written down."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from fellrec.audit.knowledge import Knows
from fellrec.evaluation.bootstrap import Interval


@dataclass(frozen=True)
class Inversion:
    """How one attacker fared with histories at the first cut.

    recovered: the share of a user's items that it found, mean over users, with a 95 % interval.
    placed: the share of positions at which it found the item, mean over users.
    """

    attack: str
    knows: Knows
    recovered: Interval
    placed: float


@dataclass(frozen=True)
class Labels:
    """How one attacker fared with the last targets of training, at the second cut.

    first, ten: the share of users whose target was its first guess, or among its first ten.
    """

    attack: str
    knows: Knows
    first: Interval
    ten: Interval


@dataclass(frozen=True)
class Touched:
    """How well the items that a client's users touched are told from the others.

    auc: by the change of the item table that the client uploads; popularity: by how often all
    users together took an item. Means over clients, 0.5 is guessing. least, most: of the clients'.
    """

    auc: float
    least: float
    most: float
    popularity: float


@dataclass(frozen=True)
class Audit:
    """What a server can tell from what crosses.

    users: whose test histories were read back. chance: what guessing the most popular items
    recovers of them. learners: users whose last training target was told; label_chance: the share
    for whom the ten most popular items hold it. touched: None without a shared item table.
    """

    k_in: int
    k_out: int
    codec: str
    item_residual: str
    users: int
    chance: Interval
    inversion: tuple[Inversion, ...]
    learners: int
    label_chance: Interval
    labels: tuple[Labels, ...]
    touched: Touched | None

    def as_json(self) -> dict[str, Any]:
        """Return it as it is written to audit.json; intervals have `mean`, `low`, `high`."""
        found: dict[str, Any] = _plain(self)
        return found


def _plain(value: Any) -> Any:
    if isinstance(value, Interval):
        return value._asdict()
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    if isinstance(value, Audit | Inversion | Labels | Touched):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
    return value
