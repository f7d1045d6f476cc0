"""The codecs: exact sizes, bounded error, hard values, refusals."""

from __future__ import annotations

import math
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fellrec.errors import WireError
from fellrec.split.codecs import BLOCK, Codec, decode, encode, encoded_size

LOSSY = (Codec.BF16, Codec.FP16, Codec.INT8)
codecs = pytest.mark.parametrize("codec", list(Codec))
shapes = st.tuples(st.integers(0, 5), st.integers(1, 2 * BLOCK + 3))


def random_rows(n: int, d: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) * scale


def round_trip(
    rows: torch.Tensor, codec: Codec, generator: torch.Generator | None = None
) -> torch.Tensor:
    n, d = rows.shape
    return decode(encode(rows, codec, generator), n, d, codec)


def block_largest(rows: torch.Tensor) -> torch.Tensor:
    """Return, for each value, the largest magnitude of its block of 64 channels; no vectorising."""
    largest = torch.zeros_like(rows)
    for start in range(0, rows.shape[1], BLOCK):
        block = rows[:, start : start + BLOCK]
        largest[:, start : start + BLOCK] = block.abs().max(dim=1, keepdim=True).values
    return largest


@codecs
@given(shape=shapes, seed=st.integers(0, 99), exponent=st.integers(-30, 30))
def test_size_is_exact_and_error_is_bounded(
    codec: Codec, shape: tuple[int, int], seed: int, exponent: int
) -> None:
    rows = random_rows(*shape, seed=seed, scale=10.0**exponent)
    data = encode(rows, codec)
    assert data.nbytes == encoded_size(*shape, codec)
    error = (decode(data, *shape, codec) - rows).abs()
    if codec is Codec.FP32:
        bound = torch.zeros_like(rows)
    elif codec is Codec.BF16:  # 8 significant bits, rounded to nearest
        bound = rows.abs() * 2**-8
    elif codec is Codec.FP16:
        # 11 significant bits. The largest value is at least 2**14 steps of the scale and subnormal
        # fp16 numbers are 2**-24 apart: half of that over 2**14 is 2**-39 of the largest value.
        bound = rows.abs() * 2**-11 + (rows.abs().max() if rows.numel() else 0.0) * 2**-39
    else:  # half a step; a step is a 127th, rounded up in bf16 by at most 2**-7
        bound = block_largest(rows) / 127 * (1 + 2**-7) / 2 * 1.0001
    assert torch.all(error <= bound)


def test_int8_golden_bytes() -> None:
    # Largest magnitude 254: the scale is 254 / 127 = 2 = bf16 0x4000. Halves round to even:
    # 3 / 2 = 1.5 -> 2, 5 / 2 = 2.5 -> 2. The scale comes first, little-endian.
    rows = torch.tensor([[254.0, -254.0, 3.0, 5.0, -2.0]])
    assert bytes(encode(rows, Codec.INT8)) == b"\x00\x40" + struct.pack("5b", 127, -127, 2, 2, -1)


def test_fp16_golden_bytes() -> None:
    # 1e6 lies in [2**19, 2**20), so the scale that brings it into [2**14, 2**15) is 2**5 = 32.
    # 1e6 / 32 = 31250 = 16384 + 14866: fp16 steps there are 16 wide, 31248 is nearest (to even).
    data = encode(torch.tensor([[1e6, 32.0]]), Codec.FP16)
    assert struct.unpack("<fee", data) == (32.0, 31248.0, 1.0)


def test_bf16_and_fp32_golden_bytes() -> None:
    rows = torch.tensor([[1.0, -2.0]])
    assert bytes(encode(rows, Codec.BF16)) == bytes.fromhex("803f 00c0")
    assert bytes(encode(rows, Codec.FP32)) == struct.pack("<2f", 1.0, -2.0)


def test_int8_is_0_258_of_fp32() -> None:
    # 64 values and one bf16 scale for 64 fp32 values: 66 / 256.
    share = encoded_size(10, 384, Codec.INT8) / encoded_size(10, 384, Codec.FP32)
    assert share == 66 / 256


def test_blocks_do_not_disturb_each_other() -> None:
    rows = torch.full((2, 2 * BLOCK + 2), 1e-3)
    rows[:, :BLOCK] = 1e6
    rows[:, -2:] = 1.0
    torch.testing.assert_close(round_trip(rows, Codec.INT8), rows, rtol=0.01, atol=0)


@codecs
def test_zeros_stay_zeros(codec: Codec) -> None:
    rows = torch.zeros(3, 70)
    rows[1] = 127.0  # tokens of zeros beside another; a step of 1, so int8 is exact too
    assert torch.equal(round_trip(rows, codec), rows)
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(round_trip(rows, codec, generator)[[0, 2]], rows[[0, 2]])


@codecs
@pytest.mark.parametrize("value", [3.4e38, -3.4e38, 1e-38, 1e-45, 65536.0, -0.0])
@pytest.mark.parametrize("stochastic", [False, True])
def test_extreme_values_stay_finite_and_near(codec: Codec, value: float, stochastic: bool) -> None:
    generator = torch.Generator().manual_seed(0) if stochastic else None
    back = round_trip(torch.full((2, 70), value), codec, generator)
    # int8 saturates at 127 steps of its largest scale, 1.2 % under the largest float32; nothing
    # can be closer than the smallest normal number times a step.
    torch.testing.assert_close(back, torch.full((2, 70), value), rtol=0.012, atol=2**-125)


def test_fp16_keeps_small_gradients_that_plain_fp16_would_lose() -> None:
    rows = torch.tensor([[1e-7, 3e-9]])
    assert torch.all(rows.half()[0, 1] == 0)
    torch.testing.assert_close(round_trip(rows, Codec.FP16), rows, rtol=2**-11, atol=0)


def test_stochastic_rounding_is_right_on_average() -> None:
    # Steps of 1 (the largest value is 127). A value a fraction f above a whole step goes up with
    # probability f, so the mean of 4,000 draws has a standard error under 0.5 / sqrt(4000) = 0.008.
    values = torch.tensor([127.0, 0.1, 0.5, 0.9, -0.1, -0.75, 3.3])
    rows = values.repeat(4000, 1)
    back = round_trip(rows, Codec.INT8, torch.Generator().manual_seed(1))
    assert torch.all((back - rows).abs() < 1)
    torch.testing.assert_close(back.mean(0), values, rtol=0, atol=5 * 0.008)
    assert torch.all(round_trip(rows, Codec.INT8)[:, 1] == 0)  # to nearest loses the 0.1


def test_stochastic_rounding_follows_its_seed_alone() -> None:
    rows = random_rows(4, 100, seed=3)
    first, again, other = (
        bytes(encode(rows, Codec.INT8, torch.Generator().manual_seed(seed))) for seed in (5, 5, 6)
    )
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    encode(rows, Codec.INT8, torch.Generator().manual_seed(5))
    assert first == again != other
    assert torch.equal(torch.random.get_rng_state(), state)


@codecs
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("column", [0, 69])
def test_values_that_are_not_finite_are_not_sent(codec: Codec, bad: float, column: int) -> None:
    rows = torch.zeros(3, 70)
    rows[1, column] = bad
    with pytest.raises(WireError, match="NaN or infinite"):
        encode(rows, codec)


@pytest.mark.parametrize(
    ("codec", "data"),
    [
        (Codec.FP32, struct.pack("<2f", 1.0, math.nan)),
        (Codec.FP32, struct.pack("<2f", -math.inf, 1.0)),
        (Codec.BF16, bytes.fromhex("807f 0000")),  # infinity
        (Codec.FP16, struct.pack("<f2e", 1.0, 1.0, math.inf)),
        (Codec.FP16, struct.pack("<f2e", math.nan, 1.0, 1.0)),
        (Codec.FP16, struct.pack("<f2e", -1.0, 1.0, 1.0)),
        (Codec.FP16, struct.pack("<f2e", 1e38, 1000.0, 1.0)),  # the product overflows
        (Codec.INT8, bytes.fromhex("807f 0101")),  # a scale of infinity
        (Codec.INT8, bytes.fromhex("c07f 0101")),  # NaN
        (Codec.INT8, bytes.fromhex("80bf 0101")),  # -1
        (Codec.INT8, bytes.fromhex("007c 0101")),  # 2**121, with which -128 overflows
    ],
)
def test_values_that_are_not_finite_are_not_taken_in(codec: Codec, data: bytes) -> None:
    with pytest.raises(WireError):
        decode(data, 1, 2, codec)


@given(bits=st.integers(0, 2**16 - 1), steps=st.binary(min_size=3, max_size=3))
def test_any_int8_bytes_give_finite_values_or_are_refused(bits: int, steps: bytes) -> None:
    try:
        back = decode(bits.to_bytes(2, "little") + steps, 1, 3, Codec.INT8)
    except WireError:
        return
    assert torch.isfinite(back).all()


@codecs
def test_wrong_sizes_are_refused(codec: Codec) -> None:
    data = bytes(encode(torch.ones(2, 3), codec))
    for wrong in (data[:-1], data + b"\0", b""):
        with pytest.raises(WireError, match=f"take {len(data)} bytes, got {len(wrong)}"):
            decode(wrong, 2, 3, codec)


@pytest.mark.parametrize("rows", [torch.ones(3), torch.ones(2, 2).double(), torch.ones(1, 2, 3)])
def test_only_float32_rows_are_sent(rows: torch.Tensor) -> None:
    with pytest.raises(WireError, match="float32 tensors of shape"):
        encode(rows, Codec.FP32)


@codecs
def test_what_is_decoded_has_memory_of_its_own(codec: Codec) -> None:
    data = bytearray(encode(torch.full((2, 65), 127.0), codec))  # exact in every codec
    back = decode(data, 2, 65, codec)
    data[:] = bytes(len(data))
    back[0, 0] = 5.0
    assert back.dtype == torch.float32
    assert torch.equal(back[1], torch.full((65,), 127.0))


@codecs
def test_views_and_tensors_with_history_are_sent_by_value(codec: Codec) -> None:
    base = random_rows(70, 4, seed=1)
    strided = base.T.requires_grad_()
    assert bytes(encode(strided, codec)) == bytes(encode(base.T.contiguous(), codec))


@pytest.mark.parametrize("codec", LOSSY)
def test_encoding_leaves_its_input_alone(codec: Codec) -> None:
    rows = torch.full((2, 70), 3.4e38)
    encode(rows, codec, torch.Generator().manual_seed(0))
    assert torch.equal(rows, torch.full((2, 70), 3.4e38))
