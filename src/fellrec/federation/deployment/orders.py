"""What coordinator and client say to each other in a deployment, besides tensors.

Each order is answered by one answer, or by a `Failure`. Both sides check every field of what comes:
unknown keys, other types and values outside their limits are refused. This is all that a
coordinator is told: no history, no user's id, no title (`docs/deployment.md` has the list).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field

from fellrec.errors import DataError, FellrecError, RunError, TrainingError, WireError
from fellrec.split.service.messages import ClientName, Round, RunId, Text
from fellrec.split.service.messages import Message as Strict


def _whole(sizes: dict[str, int]) -> dict[str, int]:
    """Refuse sizes of other names than a client counts."""
    wanted = {"client_parameters", "client_bytes", "client_blocks", "client_block_parameters"}
    if sizes.keys() != wanted:
        raise ValueError(f"expected {', '.join(sorted(wanted))}")
    return sizes


Number = Annotated[int, Field(ge=0, le=2**53)]
Recipe = Annotated[str, Field(max_length=1 << 16)]
Token = Annotated[str, Field(max_length=1024)]
Address = Annotated[str, Field(max_length=256)]
Sizes = Annotated[dict[str, Number], AfterValidator(_whole)]
Metrics = dict[Annotated[str, Field(max_length=64)], float]


Kind = Literal["wire", "missing", "other"]


class Message(Strict):
    """Base of all: as the trunk's messages, and a number may be NaN."""

    model_config = ConfigDict(ser_json_inf_nan="constants")


class AbsentError(RunError):
    """A client does not hold the adapter that it is to go on from."""


class Order(Message):
    """Base of the coordinator's orders. run: names the run's folder at the client. recipe: TOML."""

    run: RunId
    recipe: Recipe
    version: Annotated[str, Field(max_length=64)]


class Hello(Order):
    """Asks a client who it is, and whether it is ready. The answer is an `Introduction`."""


class Introduction(Message):
    """A client's word on itself; its tensors are the adapter that it starts from.

    users: how many it has. examples: training targets of one epoch. valid_users, test_users: those
    who have targets. items: of the catalogue. catalogue, manifest, settings: digests of the items
    and their texts, of the base's weights, of what both sides of the cut compute with. sizes: what
    it holds of the model, see `sizes`. held: labels, rounds that adapters it still holds went
    through.
    """

    client: ClientName
    version: Annotated[str, Field(max_length=64)]
    dataset: Text
    split: Text
    users: Annotated[Number, Field(ge=1)]
    dropped: Number
    items: Number
    examples: Number
    valid_users: Number
    test_users: Number
    catalogue: Text
    manifest: Text
    settings: Text
    sizes: Sizes
    held: Annotated[list[Round], Field(max_length=64)]


class Placed(Order):
    """Base of orders to work. label: rounds that the client's own adapter went through, 0 for the
    common start.

    samples, valid_users, test_users: what it draws of its own, 0 takes all. trunk: "HOST:PORT", ""
    where there is none. token: to be let in there. Tensors: the adapter of that label where the
    client no longer holds it.
    """

    round: Round
    label: Round
    samples: Number
    valid_users: Number
    test_users: Number
    trunk: Address
    token: Token


class Train(Placed):
    """Asks for a local round. The answer is a `Report`."""


class Report(Message):
    """Answer to `Train`; its tensors are those that are mixed.

    loss: mean over the round's targets. examples: targets in one epoch. scored: whether `before`,
    the validation score without mixing, was asked for; it is NaN without targets. epsilon: what
    the client's uploads, this one too, tell of each of its users, 0 where that is not bounded.
    last: whether its privacy budget covers no further round.
    """

    loss: float
    examples: Number
    scored: bool
    before: float
    epsilon: float = 0.0
    last: bool = False


class Receive(Placed):
    """Hands a client its mixture, in the tensors, and asks what it is worth: a `Score`.

    reset: names of tensors whose moments start anew. scored, best_score, best_round, stale,
    stopped: its standing before this round; best_score counts only if scored.
    """

    reset: Annotated[list[Text], Field(max_length=100_000)]
    scored: bool
    best_score: float
    best_round: Round
    stale: Number
    stopped: bool


class Score(Message):
    """Answer to `Receive`: the mean validation score; NaN without targets."""

    score: float


class Test(Placed):
    """Asks for the test score of the client's best adapter, and ends its run: `TestScores`."""


class TestScores(Message):
    """Answer to `Test`: how many users were scored, and each metric's mean over them."""

    scored: Number
    metrics: Metrics


class Failure(Message):
    """A client's answer when it can't do what it was told. reason: one line.

    kind: "missing" where it no longer holds the adapter that the order names.
    """

    kind: Kind
    reason: Annotated[str, Field(max_length=4096)]

    @classmethod
    def of(cls, error: FellrecError) -> Failure:
        """Say what went wrong; of the client's own data, no more than that it is they."""
        kind: Kind = "wire" if isinstance(error, WireError) else "other"
        if isinstance(error, AbsentError):
            kind = "missing"
        line = "its data file can't be used; its own log says why"
        reason = line if isinstance(error, DataError) else " ".join(str(error).split())[:4096]
        return cls(kind=kind, reason=reason)

    def error(self, client: str) -> FellrecError:
        """Return what the coordinator makes of it; in its line nothing that moves a cursor."""
        reason = "".join(each if each.isprintable() else " " for each in self.reason)
        if self.kind == "wire":
            return WireError(reason)
        named = reason if client in reason else f"client {client}: {reason}"
        return AbsentError(named) if self.kind == "missing" else TrainingError(named)
