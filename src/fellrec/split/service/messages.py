"""What the trunk's service and its callers say besides frames: JSON, strictly checked."""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fellrec.errors import WireError
from fellrec.split.frames import MAX_CLIENT_BYTES, UINT32

SERVICE = "fellrec.Trunk"
PROTOCOL = 1
MAX_GREETING_BYTES = 4096
MAX_HEADER_BYTES = 1 << 20

Mode = Literal["train", "serve"]
State = Literal["awaited", "open", "finished", "ended"]
Text = Annotated[str, Field(min_length=1, max_length=256)]
Round = Annotated[int, Field(ge=0, le=UINT32)]
RunId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
ClientName = Annotated[str, Field(min_length=1, max_length=MAX_CLIENT_BYTES)]


class Message(BaseModel):
    """Base of all: unknown keys, other types and values outside their limits are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Greeting(Message):
    """A client's first message.

    token: of the coordinator, "" to be served without one; then `run` and `adapter` say what by.
    manifest: digest of the base's weights. settings: digest of what both sides agreed on. resume:
    the session's name after a cut connection, "" at first.
    """

    protocol: int
    version: Annotated[str, Field(max_length=64)]
    token: Annotated[str, Field(max_length=1024)] = ""
    manifest: Text
    settings: Text
    resume: Annotated[str, Field(max_length=64)] = ""
    run: RunId | Literal[""] = ""
    adapter: Literal["best", "last"] = "best"


class Welcome(Message):
    """The server's answer: why not, or the session's name and where it stands.

    last: highest number answered so far. window: most frames without a reply that the client holds.
    round: what frames have to name.
    """

    ok: bool
    reason: str = ""
    session: str = ""
    last: Annotated[int, Field(ge=0)] = 0
    window: Annotated[int, Field(ge=0)] = 0
    round: Round = 0


class Begin(Message):
    """A coordinator takes over: all open rounds end. key: 64 hex digits, for tokens."""

    run: RunId
    settings: Text
    manifest: Text
    version: Annotated[str, Field(max_length=64)]
    key: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", repr=False)]


class Prepare(Message):
    """A client may come, with a token of this round and mode. Tensors: its adapter, if wanted.

    label: rounds the adapter went through. best: use the best adapter of that label.
    """

    client: ClientName
    round: Round
    label: Round
    mode: Mode = "train"
    best: bool = False


class Collect(Message):
    """Ask for what a client's session trained in a round."""

    client: ClientName
    round: Round


class Trained(Message):
    """Answer to `Collect`, with the adapter. seconds: spent by the trunk on the session.

    steps: optimiser steps. positions: valid positions trained on. bytes: of frames, by "up/kind"
    and "down/kind", each frame once, however often it was sent.
    """

    steps: int
    positions: int
    seconds: float
    bytes: dict[str, int]


class Install(Message):
    """A client's mixed adapter, in the tensors. reset: those whose moments start anew."""

    client: ClientName
    label: Round
    reset: tuple[Text, ...] = ()


class Kept(Message):
    """One client's part of a `Commit`. improved: whether its adapter is now the best one."""

    label: Round
    improved: bool = False


class Commit(Message):
    """From now on these labels are the clients' own."""

    labels: dict[ClientName, Kept]


class Drop(Message):
    """Forget a client's open session and what it learned there."""

    client: ClientName


class Status(Message):
    """Ask how things stand."""


class SessionState(Message):
    """One session in `Standing`."""

    client: str
    round: int
    mode: Mode
    state: State
    steps: int
    reason: str = ""


class Standing(Message):
    """Answer to `Status`."""

    run: str
    version: str
    draining: bool
    held_bytes: int
    sessions: tuple[SessionState, ...]
    labels: dict[str, tuple[int, ...]]


class Done(Message):
    """Answer of methods that have nothing to tell."""


M = TypeVar("M", bound=Message)


def write_message(message: Message) -> bytes:
    """Write a message as JSON."""
    return message.model_dump_json().encode()


def read_message(kind: type[M], data: bytes, limit: int = MAX_HEADER_BYTES) -> M:
    """Read a message; WireError names the first thing wrong."""
    if len(data) > limit:
        raise WireError(f"{kind.__name__} refused: {len(data)} bytes, the limit is {limit}")
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise WireError(f"{kind.__name__} refused: {key or 'JSON'}: {first['msg']}") from None
    except RecursionError:
        raise WireError(f"{kind.__name__} refused: nested too deeply") from None
