"""Writing across the cut: prompts that a session remembers, beams that go on, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fellrec.errors import WireError
from fellrec.models.adapters import LoraSettings, adapter
from fellrec.split.codecs import Codec
from fellrec.split.trunk import SessionSettings, TrunkServer
from fellrec.split.wire import Frame, FrameKind, decode_frame, encode_frame
from tests.builders import (
    WIDTH,
    connect,
    install,
    layout_of,
    random_factors,
    random_hidden,
    stage_of,
    tiny,
)

CACHE_BYTES = 4 * 2 * 2 * 8 * 4  # of a position: 4 blocks, keys and values of 2 heads x 8 channels


def started(kind: str = "llama", cache_positions: int = 200) -> TrunkServer:
    lora = LoraSettings(rank=4, alpha=8, dropout=0.2)
    trunk = stage_of(tiny(kind), "trunk", 1, 1, lora=lora)
    install(trunk, random_factors(adapter(trunk)))
    settings = SessionSettings(max_cache_bytes=cache_positions * CACHE_BYTES)
    server = TrunkServer(trunk, settings)
    for client in ("a", "b"):
        server.open(client, 4)
    return server


def prompt(**changes: object) -> Frame:
    fields: dict[str, object] = {
        "kind": FrameKind.FORWARD,
        "client": "a",
        "round": 4,
        "side": "left",
        "lengths": np.array([3, 1], np.int32),
        "positions": np.zeros(2, np.int32),
        "tensor": torch.ones(4, WIDTH),
    }
    return Frame(**(fields | changes))  # type: ignore[arg-type]  # fields of different types


def token(beams: list[int], positions: list[int] | None, **changes: object) -> Frame:
    rows = len(beams)
    fields: dict[str, object] = {
        "kind": FrameKind.FORWARD,
        "client": "a",
        "round": 4,
        "side": "left",
        "lengths": np.ones(rows, np.int32),
        "positions": np.array(positions, np.int32) if positions is not None else None,
        "beams": np.array(beams, np.int32),
        "tensor": torch.ones(rows, WIDTH),
    }
    return Frame(**(fields | changes))  # type: ignore[arg-type]  # fields of different types


def ask(server: TrunkServer, frame: Frame) -> Frame:
    return decode_frame(server.handle(encode_frame(frame)), max_bytes=1 << 24)


LONG = np.array([38], np.int32)
VIOLATIONS: dict[str, tuple[tuple[Frame, ...], Frame, str]] = {
    "a token of nothing": ((), token([0], [0]), "no prompt is remembered"),
    "a row that is not there": ((prompt(),), token([0, 2], [3, 3]), "row 2 of 2"),
    "a position too far": ((prompt(),), token([0], [4]), "do not follow"),
    "a position again": ((prompt(), token([0, 1], [3, 1])), token([0], [3]), "do not follow"),
    "another row's position": ((prompt(),), token([0, 1], [1, 3]), "do not follow"),
    "beams without positions": ((prompt(),), token([0], None), "do not follow"),
    "two positions of a row": (
        (prompt(),),
        token([0, 1], [3, 1], lengths=np.array([2, 1], np.int32), tensor=torch.ones(3, WIDTH)),
        "3 positions for 2 rows",
    ),
    "a prompt in the middle": (
        (),
        prompt(positions=np.array([0, 1], np.int32)),
        "start at position 0",
    ),
    "padding on the right": ((), prompt(side="right"), "padded on the left"),
    "a text longer than the base": (
        (
            prompt(lengths=LONG, positions=np.zeros(1, np.int32), tensor=torch.ones(38, WIDTH)),
            token([0], [38]),
            token([0], [39]),
        ),
        token([0], [40]),
        "passes the base's 40 positions",
    ),
    "more rows than are remembered": (
        (prompt(),),
        token([0] * 51, [3] * 51),
        r"split\.max_cache_mib",
    ),
    "more prompts than are remembered": (
        (),
        prompt(
            lengths=np.ones(201, np.int32),
            positions=np.zeros(201, np.int32),
            tensor=torch.ones(201, WIDTH),
        ),
        r"split\.max_cache_mib",
    ),
    "training in between": (
        (
            prompt(),
            prompt(training=True, positions=None, side="right"),
        ),
        token([0], [3]),
        "no prompt is remembered",
    ),
    "another text in between": (
        (prompt(), prompt(positions=None)),
        token([0], [3]),
        "no prompt is remembered",
    ),
}


@pytest.mark.parametrize("name", VIOLATIONS)
def test_a_violation_ends_its_session_and_no_other(name: str) -> None:
    server = started()
    before, wrong, reason = VIOLATIONS[name]
    assert ask(server, prompt(client="b")).kind is FrameKind.OUTPUT
    for frame in before:
        assert ask(server, frame).kind is FrameKind.OUTPUT
    reply = ask(server, wrong)
    assert reply.kind is FrameKind.ERROR
    with pytest.raises(WireError, match=reason):
        raise WireError(reply.message)
    assert "no open session" in ask(server, prompt()).message
    assert ask(server, token([1, 0], [1, 3], client="b")).kind is FrameKind.OUTPUT


def test_an_encoder_writes_no_texts() -> None:
    reply = ask(started("bert"), prompt())
    assert reply.kind is FrameKind.ERROR and "encoder" in reply.message


def written(server: TrunkServer, codec: Codec = Codec.FP32) -> Tensor:
    """Write three tokens on two prompts in the session of client a, and return all that came."""
    remote = connect(server, "a", 4, codec).eval()
    layout = layout_of([5, 2], "left")
    found = [remote.prefill(random_hidden(layout), layout)[layout.valid]]
    for step, beams in enumerate(([0, 0, 1, 1], [3, 1, 2], [2, 0, 1, 1, 0])):
        hidden = random_hidden(layout_of([1] * len(beams)), seed=step + 1)
        found.append(remote.extend(hidden, np.array(beams, np.int32))[:, 0])
    return torch.cat(found)


def test_what_a_session_remembers_is_its_own() -> None:
    alone = written(started())
    server = started()
    other = connect(server, "b", 4).eval()
    layout = layout_of([4, 4, 4], "left")
    other.prefill(random_hidden(layout, seed=9), layout)
    assert torch.equal(written(server), alone)
    assert torch.equal(written(server), alone)  # a new prompt forgets the one before


def test_a_coarser_codec_differs_by_little() -> None:
    exact = written(started())
    for codec, bound in ((Codec.BF16, 0.02), (Codec.FP16, 0.005), (Codec.INT8, 0.05)):
        error = (written(started(), codec) - exact).norm() / exact.norm()
        assert 0 < float(error) < bound


def test_nothing_is_remembered_after_a_session() -> None:
    server = started()
    written(server)
    stage = server._sessions["a"].stage
    assert stage.cache is not None and server.base.cache is None
    server.close("a")
    server.open("a", 5)
    assert server._sessions["a"].stage.cache is None
