"""Frames: what goes in comes out, and nothing but `WireError` comes of anything else."""

from __future__ import annotations

import math
import struct
import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fellrec.errors import WireError
from fellrec.split.codecs import Codec
from fellrec.split.frames import MAX_CHANNELS, MAX_MESSAGE_BYTES, MAX_POSITION
from fellrec.split.wire import (
    Frame,
    FrameKind,
    decode_frame,
    encode_frame,
    error_frame,
    frame_parts,
)

LIMIT = 1 << 20
HEADER = 35
TENSOR_KINDS = (
    FrameKind.FORWARD,
    FrameKind.OUTPUT,
    FrameKind.GRADIENT,
    FrameKind.INPUT_GRADIENT,
)
printable = st.text(max_size=20).map(lambda text: "".join(c for c in text if c.isprintable()))
clients = printable.map(lambda text: text.encode()[:64].decode(errors="ignore"))
counters = st.integers(0, 2**32 - 1)


def int32(*values: int) -> np.ndarray[Any, np.dtype[np.int32]]:
    return np.array(values, np.int32)


@st.composite
def frames(draw: st.DrawFn) -> Frame:
    kind = draw(st.sampled_from(FrameKind))
    frame = Frame(
        kind,
        draw(clients),
        draw(counters),
        draw(counters),
        draw(counters),
        training=draw(st.booleans()),
        side=draw(st.sampled_from(["left", "right"])),
        codec=draw(st.sampled_from(Codec)),
    )
    if kind is FrameKind.NORM:
        return replace(frame, scalar=draw(st.floats(0, 1e300)))
    if kind is FrameKind.ERROR:
        return replace(frame, message=draw(printable.filter(bool)))
    lengths = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    n = sum(lengths)
    values = torch.Generator().manual_seed(draw(st.integers(0, 9)))
    frame = replace(frame, tensor=torch.randn(n, draw(st.integers(1, 70)), generator=values))
    if kind is FrameKind.FORWARD or draw(st.booleans()):
        frame = replace(frame, lengths=int32(*lengths))
    if kind is FrameKind.FORWARD and draw(st.booleans()):
        rows = st.lists(st.integers(0, 2**19), min_size=len(lengths), max_size=len(lengths))
        frame = replace(frame, positions=int32(*draw(rows)), beams=int32(*draw(rows)))
    return frame


def forward(**changes: Any) -> Frame:
    frame = Frame(
        FrameKind.FORWARD,
        "shop-1",
        round=2,
        step=7,
        micro=1,
        training=True,
        side="left",
        lengths=int32(2, 1),
        tensor=torch.arange(12, dtype=torch.float32).reshape(3, 4),
    )
    return replace(frame, **changes)


@given(frame=frames())
def test_what_is_sent_arrives(frame: Frame) -> None:
    data = encode_frame(frame)
    back = decode_frame(data, max_bytes=LIMIT)
    for name in ("kind", "client", "round", "step", "micro", "training", "side"):
        assert getattr(back, name) == getattr(frame, name)
    assert (back.scalar, back.message, back.codec) == (frame.scalar, frame.message, frame.codec)
    for name in ("lengths", "positions", "beams"):
        np.testing.assert_array_equal(getattr(back, name), getattr(frame, name))
    if frame.tensor is None:
        assert back.tensor is None
    else:
        assert back.tensor is not None
        assert back.tensor.shape == frame.tensor.shape
        # Each codec's own error is tested with the codecs; here: every value in its place.
        atol = 0.0 if frame.codec is Codec.FP32 else float(frame.tensor.abs().max()) / 200
        torch.testing.assert_close(back.tensor, frame.tensor, rtol=0, atol=atol)
    assert sum(frame_parts(frame).values()) == len(data)
    assert frame_parts(back) == frame_parts(frame)


def test_golden_bytes() -> None:
    frame = forward(lengths=int32(1, 1), tensor=torch.tensor([[1.0], [-2.0]]))
    assert encode_frame(frame) == (
        b"FLRC"
        + bytes([1, 1, 0, 1 | 2 | 4 | 64])  # version, FORWARD, fp32, training left lengths tensor
        + struct.pack("<IIIIII", 2, 7, 1, 2, 2, 1)  # round, step, micro, b, n, d
        + b"\x00\x00\x06shop-1"
        + struct.pack("<ii", 1, 1)
        + struct.pack("<ff", 1.0, -2.0)
    )


def test_parts_of_a_frame() -> None:
    # Header 35, client "shop-1" 6, lengths 2 x 4; 3 x 4 fp32 values 48, in int8 3 x (4 + 2) = 18.
    assert frame_parts(forward()) == {"layout": HEADER + 6 + 8, "activation": 48}
    assert frame_parts(forward(codec=Codec.INT8)) == {"layout": HEADER + 6 + 8, "activation": 18}
    gradient = Frame(FrameKind.GRADIENT, "é", tensor=torch.ones(1, 1))
    assert frame_parts(gradient) == {"layout": HEADER + 2, "gradient": 4}
    assert frame_parts(Frame(FrameKind.NORM, "", scalar=1.0)) == {"layout": HEADER, "scalar": 8}


def test_one_new_token_costs_a_small_frame() -> None:
    # One cached decoding step of four beams: the tensor's 4 x 64 values and 35 + 1 + 48 bytes.
    rows = int32(1, 1, 1, 1)
    frame = Frame(
        FrameKind.FORWARD, "a", lengths=rows, positions=rows, beams=rows, tensor=torch.ones(4, 64)
    )
    assert len(encode_frame(frame)) == 4 * 64 * 4 + HEADER + 1 + 48


@pytest.mark.parametrize(
    ("frame", "named"),
    [
        (forward(lengths=None), "FORWARD needs lengths"),
        (forward(tensor=None), "FORWARD needs tensor"),
        (forward(scalar=1.0), "FORWARD may not carry scalar"),
        (forward(kind=FrameKind.NORM), "NORM needs scalar"),
        (forward(kind=FrameKind.OUTPUT, positions=int32(0, 0)), "may not carry positions"),
        (forward(message="x"), "may not carry message"),
        (Frame(FrameKind.ERROR, "a"), "ERROR needs message"),
        (Frame(FrameKind.NORM, "a", scalar=math.nan), "scalar is nan"),
        (Frame(FrameKind.NORM, "a", scalar=math.inf), "scalar is inf"),
        (Frame(FrameKind.NORM, "a", scalar=-1.0), "can't be negative"),
        (forward(lengths=int32(1, 1)), "lengths sum to 2, its tensor has 3 rows"),
        (forward(lengths=int32(3, 0)), "lengths must lie in 1"),
        (forward(lengths=int32()), "0 rows"),
        (forward(lengths=np.array([2, 1])), "int32"),
        (forward(lengths=np.array([[2, 1]], np.int32)), "int32 of shape"),
        (forward(positions=int32(0)), "one entry for each row"),
        (forward(positions=int32(0, -1)), "positions must lie in 0"),
        (forward(positions=int32(MAX_POSITION, 0)), "together pass"),
        (forward(beams=int32(-1, 0)), "beams must lie in 0"),
        (forward(tensor=torch.ones(3)), "shape"),
        (forward(tensor=torch.ones(3, 4).half()), "float32"),
        (forward(tensor=torch.full((3, 4), math.nan)), "NaN"),
        (forward(tensor=torch.ones(3, MAX_CHANNELS + 1)), "at most"),
        (forward(tensor=torch.ones(0, 4)), "at least 1 x 1"),
        (forward(round=-1), "round must lie in"),
        (forward(step=2**32), "step must lie in"),
        (forward(side="middle"), "side must be left or right"),
        (forward(client="a" * 65), "client takes 65 bytes"),
        (forward(client="a\nb"), "unprintable"),
    ],
)
def test_frames_that_make_no_sense_are_not_sent(frame: Frame, named: str) -> None:
    with pytest.raises(WireError, match=named):
        encode_frame(frame)


def patched(data: bytes, offset: int, form: str, value: Any) -> bytes:
    out = bytearray(data)
    struct.pack_into(form, out, offset, value)
    return bytes(out)


@pytest.mark.parametrize(
    ("offset", "form", "value", "named"),
    [
        (0, "<4s", b"HTTP", "starts with b'HTTP'"),
        (4, "<B", 2, "version 2"),
        (5, "<B", 0, "unknown kind 0"),
        (5, "<B", 99, "unknown kind 99"),
        (5, "<B", FrameKind.NORM, "NORM needs scalar"),
        (6, "<B", 4, "unknown codec 4"),
        (6, "<B", 1, "announces"),
        (7, "<B", 0x80 | 1 | 2 | 4 | 64, "unknown flags 0x80"),
        (7, "<B", 64, "FORWARD needs lengths"),
        (20, "<I", 3, "announces"),
        (20, "<I", 2**31, "rows"),
        (24, "<I", 4, "announces"),
        (24, "<I", 2**32 - 1, "the limit is"),
        (28, "<I", 2**32 - 1, "at most"),
        (32, "<H", 9, "may not carry message"),
        (34, "<B", 5, "announces"),
        (34, "<B", 65, "too long"),
        (35, "<B", 0xFF, "not UTF-8"),
        (35, "<B", 0x07, "unprintable"),
        (41, "<i", 3, "sum to 4"),
        (41, "<i", -1, "lengths must lie in"),
        (49, "<f", math.nan, "NaN or infinite"),
    ],
)
def test_each_violation_is_named(offset: int, form: str, value: Any, named: str) -> None:
    data = encode_frame(forward())
    with pytest.raises(WireError, match=named):
        decode_frame(patched(data, offset, form, value), max_bytes=LIMIT)


def test_sizes_that_would_overflow_32_and_64_bits_are_computed_exactly() -> None:
    # n x d x 4 = 2**32 x 2**16 x 4, less a little: 2**50. In 32 bits it would look small.
    data = patched(encode_frame(forward()), 24, "<I", 2**32 - 1)
    data = patched(data, 28, "<I", MAX_CHANNELS)
    with pytest.raises(WireError, match=str(4 * (2**32 - 1) * 2**16)):
        decode_frame(data, max_bytes=LIMIT)


def test_the_limit_holds_for_the_frame_and_for_what_it_decodes_to() -> None:
    frame = forward(lengths=int32(1000), tensor=torch.ones(1000, 64), codec=Codec.INT8)
    data = encode_frame(frame)
    assert decode_frame(data, max_bytes=256_000).tensor is not None
    with pytest.raises(WireError, match="take 256000 bytes, the limit is 255999"):
        decode_frame(data, max_bytes=255_999)
    with pytest.raises(WireError, match=f"{len(data)} bytes, the limit is {len(data) - 1}"):
        decode_frame(data, max_bytes=len(data) - 1)


@given(frame=frames())
@settings(max_examples=25)
def test_every_truncation_and_any_extra_byte_is_refused(frame: Frame) -> None:
    data = encode_frame(frame)
    for end in range(len(data)):
        with pytest.raises(WireError):
            decode_frame(data[:end], max_bytes=LIMIT)
    with pytest.raises(WireError):
        decode_frame(data + b"\0", max_bytes=LIMIT)


@given(
    frame=frames(),
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), min_size=1, max_size=6),
    in_header=st.booleans(),
)
@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow])
def test_damaged_frames_raise_wire_errors_only_and_take_little_memory(
    frame: Frame, flips: list[tuple[int, int]], in_header: bool
) -> None:
    data = bytearray(encode_frame(frame))
    for place, change in flips:
        data[place % (HEADER if in_header else len(data))] ^= change
    tracemalloc.start()
    try:
        back = decode_frame(data, max_bytes=LIMIT)
    except WireError:
        pass
    else:  # still a frame: then a sound one, which can be sent on
        encode_frame(replace(back, codec=Codec.FP32))
    finally:
        _, peak = tracemalloc.get_traced_memory()  # numpy's arrays are in it, tensors' too
        tracemalloc.stop()
    assert peak < LIMIT


@given(st.binary(max_size=200))
def test_any_bytes_behind_the_magic_are_refused_or_read(tail: bytes) -> None:
    for data in (tail, b"FLRC\x01" + tail):
        try:
            decode_frame(data, max_bytes=LIMIT)
        except WireError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview])
def test_any_buffer_is_read_and_left_alone(wrap: Any) -> None:
    data = encode_frame(forward())
    buffer = wrap(data)
    back = decode_frame(buffer, max_bytes=LIMIT)
    assert back.tensor is not None and back.lengths is not None
    back.tensor.zero_()
    back.lengths[:] = 9
    assert bytes(buffer) == data


def test_gradients_round_by_the_generator_given() -> None:
    rows = torch.tensor([[127.0, 0.5]])
    frame = Frame(FrameKind.GRADIENT, "a", tensor=rows.repeat(50, 1), codec=Codec.INT8)
    data = encode_frame(frame, torch.Generator().manual_seed(1))
    back = decode_frame(data, max_bytes=LIMIT).tensor
    assert back is not None
    assert set(back[:, 1].tolist()) == {0.0, 1.0}
    assert data == encode_frame(frame, torch.Generator().manual_seed(1))


@given(st.text(max_size=700))
def test_any_text_makes_an_error_frame(text: str) -> None:
    back = decode_frame(encode_frame(error_frame("a", text)), max_bytes=LIMIT)
    assert back.message.isprintable()
    assert 0 < len(back.message.encode()) <= MAX_MESSAGE_BYTES


def test_error_frames_keep_what_they_can() -> None:
    assert error_frame("a", "step 3:\n  out of \x07order").message == "step 3: out of ?order"
    assert error_frame("a", " \n").message == "unknown error"
    assert error_frame("a", "é" * 300).message == "é" * 256
