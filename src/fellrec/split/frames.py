"""What a frame may say: its kinds, its parts, its limits. How it is written is `wire`'s business.

To add a kind of frame, add a member to `FrameKind` and its line to `RULES`. Nothing here has a
slot for tokens, item ids, titles or labels: what the method never sends can't be sent by mistake.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal, NoReturn

import numpy as np
import numpy.typing as npt
import torch

from fellrec.errors import WireError
from fellrec.split.codecs import Codec

MAX_ROWS = 2**16
MAX_CHANNELS = 2**16
MAX_POSITION = 2**20  # cached positions plus new ones, of one row
MAX_CLIENT_BYTES = 64
MAX_MESSAGE_BYTES = 512
UINT32 = 2**32 - 1
ROW_PARTS = ("lengths", "positions", "beams")
PARTS = (*ROW_PARTS, "scalar", "tensor")

Side = Literal["left", "right"]
IntRow = npt.NDArray[np.int32]


class FrameKind(IntEnum):
    """What a frame says; the number is the one sent."""

    FORWARD = 1
    """Client to server: activations at the first cut."""
    OUTPUT = 2
    """Server to client: activations at the second cut."""
    GRADIENT = 3
    """Client to server: the loss's gradient at the second cut."""
    INPUT_GRADIENT = 4
    """Server to client: the loss's gradient at the first cut."""
    NORM = 5
    """Both ways: one squared gradient norm, for clipping by the norm over all stages."""
    ERROR = 6
    """Server to client: why the request was refused."""


@dataclass(frozen=True)
class Rule:
    """Which parts a kind must and may carry, and what the ledger calls its tensor."""

    required: frozenset[str]
    optional: frozenset[str] = frozenset()
    tensor_kind: str = ""


RULES: Mapping[FrameKind, Rule] = {
    FrameKind.FORWARD: Rule(
        frozenset({"lengths", "tensor"}), frozenset({"positions", "beams"}), "activation"
    ),
    FrameKind.OUTPUT: Rule(frozenset({"tensor"}), frozenset({"lengths"}), "activation"),
    FrameKind.GRADIENT: Rule(frozenset({"tensor"}), frozenset({"lengths"}), "gradient"),
    FrameKind.INPUT_GRADIENT: Rule(frozenset({"tensor"}), frozenset({"lengths"}), "gradient"),
    FrameKind.NORM: Rule(frozenset({"scalar"})),
    FrameKind.ERROR: Rule(frozenset({"message"})),
}


@dataclass(frozen=True, eq=False, slots=True)
class Frame:
    """One message between two stages.

    Attributes:
        kind: what it says.
        client: whose session it belongs to; printable, at most 64 UTF-8 bytes, "" when unknown.
        round: finished federation rounds.
        step: optimiser step (or decoding step) within the round.
        micro: micro-batch within the step.
        training: whether dropout is on and a backward pass will follow.
        side: where the rows are padded.
        lengths: ``(b,)`` int32, valid positions of each row; at least 1, and they sum to n.
        positions: ``(b,)`` int32, positions of each row that the KV cache already holds.
        beams: ``(b,)`` int32, the cached row that each row continues. The receiver checks them
            against its cache: a frame cannot know how many rows that has.
        tensor: ``(n, d)`` float32, the valid positions of all rows, one after another.
        scalar: one float64.
        codec: how the tensor travels.
        message: one printable line of at most 512 UTF-8 bytes; see `error_frame`.

    """

    kind: FrameKind
    client: str
    round: int = 0
    step: int = 0
    micro: int = 0
    training: bool = False
    side: Side = "right"
    lengths: IntRow | None = None
    positions: IntRow | None = None
    beams: IntRow | None = None
    tensor: torch.Tensor | None = None
    scalar: float | None = None
    codec: Codec = Codec.FP32
    message: str = ""


def error_frame(client: str, message: str, *, round: int = 0, step: int = 0) -> Frame:
    """Make an ERROR frame of any text: put on one line, unprintable characters out, cut to fit."""
    line = "".join(c if c.isprintable() else "?" for c in " ".join(message.split()))
    fitting = line.encode(errors="replace")[:MAX_MESSAGE_BYTES].decode(errors="ignore")
    return Frame(FrameKind.ERROR, client, round, step, message=fitting or "unknown error")


def parts_of(frame: Frame) -> set[str]:
    """Return the names of the parts that a frame carries."""
    present = {part for part in PARTS if getattr(frame, part) is not None}
    return present | {"message"} if frame.message else present


def row_count(frame: Frame) -> int:
    """Return b, the entries of lengths, positions or beams; 0 without any."""
    arrays = [getattr(frame, part) for part in ROW_PARTS]
    return next((len(array) for array in arrays if array is not None), 0)


def shape_of(frame: Frame) -> tuple[int, int]:
    """Return the tensor's (n, d); (0, 0) without one."""
    if frame.tensor is None:
        return 0, 0
    if frame.tensor.ndim != 2:
        refuse(f"its tensor must be of shape (n, d), got {tuple(frame.tensor.shape)}")
    n, d = frame.tensor.shape
    return int(n), int(d)


def check_parts(kind: FrameKind, present: AbstractSet[str]) -> None:
    """Check that a kind carries all that it must and only what it may."""
    rule = RULES[kind]
    missing = sorted(rule.required - present)
    if missing:
        refuse(f"{kind.name} needs {' and '.join(missing)}")
    extra = sorted(present - rule.required - rule.optional)
    if extra:
        refuse(f"{kind.name} may not carry {' or '.join(extra)}")


def check_sizes(present: AbstractSet[str], rows: int, n: int, d: int) -> None:
    """Check b, n and d against their limits, before anything of these sizes is made."""
    has_rows = not present.isdisjoint(ROW_PARTS)
    if not 1 <= rows <= MAX_ROWS if has_rows else rows:
        refuse(f"{rows} rows; 1 ... {MAX_ROWS} with lengths, 0 without")
    if "tensor" not in present:
        if n or d:
            refuse(f"a shape of {n} x {d} without a tensor")
    elif not (1 <= n <= UINT32 and 1 <= d <= MAX_CHANNELS):
        refuse(f"a tensor of {n} x {d}; at least 1 x 1, at most {UINT32} x {MAX_CHANNELS}")


def check_rows(arrays: Mapping[str, IntRow], n: int) -> None:
    """Check lengths, positions and beams against each other and the tensor's n rows."""
    if len({array.shape for array in arrays.values()}) > 1:
        refuse(f"{' and '.join(arrays)} must have one entry for each row")
    for name, array in arrays.items():
        lowest = 1 if name == "lengths" else 0
        if array.min() < lowest or array.max() > MAX_POSITION:
            refuse(
                f"{name} must lie in {lowest} ... {MAX_POSITION}, "
                f"got {array.min()} ... {array.max()}"
            )
    lengths, positions = arrays.get("lengths"), arrays.get("positions")
    if lengths is not None:
        total = int(lengths.sum(dtype=np.int64))
        if total != n:
            refuse(f"its lengths sum to {total}, its tensor has {n} rows")
        if positions is not None and int((lengths + positions).max()) > MAX_POSITION:
            refuse(f"positions and lengths together pass {MAX_POSITION}")


def check_scalar(kind: FrameKind, scalar: float) -> None:
    """Check that the scalar is finite and, for a squared norm, not negative."""
    if not math.isfinite(scalar):
        refuse(f"its scalar is {scalar}")
    if kind is FrameKind.NORM and scalar < 0:
        refuse(f"a squared norm can't be negative, got {scalar}")


def refuse(reason: str) -> NoReturn:
    """Raise the `WireError` that gives this reason."""
    raise WireError(f"frame refused: {reason}")
