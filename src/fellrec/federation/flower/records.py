"""Orders and answers as Flower's records: one text, and tensors as their plain bytes.

A message holds a ConfigRecord "message" with its `kind` and its `body`, JSON, and, where it brings
tensors, an ArrayRecord "tensors" of little-endian float32. Nothing else is accepted, and nothing
in it is unpickled.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

from fellrec.errors import WireError
from fellrec.federation.deployment.orders import (
    Failure,
    Hello,
    Introduction,
    Receive,
    Report,
    Score,
    Test,
    TestScores,
    Train,
)
from fellrec.split.service.messages import Message, read_message, write_message

KINDS: Mapping[str, type[Message]] = {
    kind.__name__: kind
    for kind in (
        Failure,
        Hello,
        Introduction,
        Receive,
        Report,
        Score,
        Test,
        TestScores,
        Train,
    )
}
_MESSAGE, _TENSORS, _RAW, _FLOAT = "message", "tensors", "fellrec.raw", "float32"


def pack(message: Message, tensors: Mapping[str, Tensor]) -> RecordDict:
    """Write a message; tensors: float32, any shape."""
    text = ConfigRecord({"kind": type(message).__name__, "body": write_message(message).decode()})
    content = RecordDict({_MESSAGE: text})
    if tensors:
        content[_TENSORS] = ArrayRecord({name: _array(each) for name, each in tensors.items()})
    return content


def unpack(content: RecordDict) -> tuple[Message, dict[str, Tensor]]:
    """Read a message; WireError names the first thing that is not as `pack` writes it."""
    odd = min(content.keys() - {_MESSAGE, _TENSORS}, default=None)
    text = content.get(_MESSAGE)
    if odd is not None or not isinstance(text, ConfigRecord) or text.keys() != {"kind", "body"}:
        raise WireError(f"a message of other records than fellrec's, first: {odd or _MESSAGE}")
    kind = KINDS.get(str(text["kind"]))
    if kind is None:
        raise WireError(f"a message of the unknown kind {str(text['kind'])[:64]!r}")
    message = read_message(kind, str(text["body"]).encode())
    arrays = content.get(_TENSORS, ArrayRecord())
    if not isinstance(arrays, ArrayRecord):
        raise WireError("a message whose tensors are none")
    return message, {name: _tensor(name, array) for name, array in arrays.items()}


def _array(tensor: Tensor) -> Array:
    values = tensor.detach().to("cpu", torch.float32).contiguous().numpy().astype("<f4", copy=False)
    return Array(dtype=_FLOAT, shape=tuple(values.shape), stype=_RAW, data=values.tobytes())


def _tensor(name: str, array: Array) -> Tensor:
    shape, data = array.shape, array.data
    if array.stype != _RAW or array.dtype != _FLOAT or min(shape, default=0) < 0:
        raise WireError(f"{name} is {array.dtype} in the form {array.stype}, expected raw float32")
    if len(data) != 4 * math.prod(shape):
        raise WireError(f"{name} has {len(data)} bytes for the shape {tuple(shape)}")
    return torch.from_numpy(np.frombuffer(data, "<f4").astype(np.float32).reshape(shape))
