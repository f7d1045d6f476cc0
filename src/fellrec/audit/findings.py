"""What an audit found, and how it is written down."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal

from fellrec.audit.knowledge import Knows
from fellrec.evaluation.bootstrap import Interval

Trace = Literal["table", "leaning"]


@dataclass(frozen=True)
class Inversion:
    """How one attacker fared with histories at the first cut.

    recovered: the share of a user's items that it found, mean over users, with a 95 % interval.
    placed: the share of positions at which it found the item, mean over users. token_accuracy,
    rouge_l: of the tokens that spell the history, means over users; None where positions are items.
    """

    attack: str
    knows: Knows
    recovered: Interval
    placed: float
    token_accuracy: float | None
    rouge_l: float | None


@dataclass(frozen=True)
class Labels:
    """How one attacker fared with the last targets of training, at the second cut.

    first, ten: the share of rows whose target was its first guess, or among its first ten.
    """

    attack: str
    knows: Knows
    first: Interval
    ten: Interval


@dataclass(frozen=True)
class Touched:
    """How well the items that a client's users touched are told from the others.

    attack: `table`, by the change of the item table that the client uploads; `leaning`, by what the
    client's whole upload recommends more than before. auc: mean over clients, 0.5 is guessing;
    least, most: of the clients'. popularity: by how often all users together took an item.
    """

    attack: Trace
    auc: float
    least: float
    most: float
    popularity: float


@dataclass(frozen=True)
class Membership:
    """How well users that a client learned from are told from others of the same client.

    attack: `loss`, by how well the client's upload predicts the history; `gain`, by how much better
    than before training. auc: with a 95 % interval, 0.5 is guessing. caught: the share of members
    above the score that 1 in 20 others passes.
    """

    attack: Literal["loss", "gain"]
    auc: Interval
    caught: float


@dataclass(frozen=True)
class Veiled:
    """What clients drew over all that they sent, as far as the audit asked for it, and its price.

    noise, bound: of the `privacy.Veil`. metric: of the scores, whose means over test users are with
    the veil and without, by the models as they were trained; difference: of the two, paired.
    epsilon: the local ε, at δ = `delta`, of one user's history of `positions` that crosses once;
    None where it is past all meaning.
    """

    noise: float
    bound: float
    metric: str
    score: Interval
    without: Interval
    difference: Interval
    positions: int
    delta: float
    epsilon: float | None


@dataclass(frozen=True)
class Audit:
    """What a server can tell from what crosses.

    users: whose test histories were read back. chance: what guessing the most popular items
    recovers of them. learners: rows of training whose last target was told; label_chance: the share
    of them that have it among the ten most popular items. touched, membership: empty where nobody
    looked. veil: None where nothing was drawn over what was sent.
    """

    recommender: str
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
    touched: tuple[Touched, ...]
    members: int
    others: int
    membership: tuple[Membership, ...]
    veil: Veiled | None

    def as_json(self) -> dict[str, Any]:
        """Return it as it is written to audit.json; intervals have `mean`, `low`, `high`."""
        found: dict[str, Any] = _plain(self)
        return found


def _plain(value: Any) -> Any:
    if isinstance(value, Interval):
        return value._asdict()
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    if is_dataclass(value):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
    return value
