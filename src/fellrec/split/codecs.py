"""How the values of an ``(n, d)`` tensor are written in fewer bytes, and read back.

======  ===========================  =================================================
codec   bytes of a row of d values   what is lost
======  ===========================  =================================================
fp32    4 d                          nothing
bf16    2 d                          16 bits of mantissa: relative error up to 2**-8
fp16    2 d (+ 4 for all rows)       13 bits of mantissa: relative error up to 2**-11,
                                     values under 2**-28 of the largest lose more
int8    d + 2 ceil(d / 64)           half a 127th of the largest value of each block
                                     of 64 channels
======  ===========================  =================================================

Choices (METHOD, section 2): fp16 is written next to one power of two as scale, so that the
largest value never overflows and small gradients do not vanish; int8 scales are bf16 values rounded
up, so that no value leaves -127 ... 127; all-zero blocks are safe. int8 rounds to nearest
(activations) or, when a generator is given, stochastically (gradients), which is right on average:
the expected decoded value is the value that was sent.

Everything is little-endian. A value that is not finite is refused on the way out and on the way in:
a NaN that enters a shared trunk would otherwise cost its client every adapter it has there.
"""

from __future__ import annotations

import math
from enum import StrEnum

import numpy as np
import numpy.typing as npt
import torch

from fellrec.errors import WireError

BLOCK = 64
"""Channels that share one int8 scale."""

_BF16_MAX = torch.finfo(torch.bfloat16).max
_TINY = torch.finfo(torch.float32).tiny  # 2**-126, whose inverse is still finite
# The largest bf16 scale whose product with every int8, -128 included, is finite. Only values above
# 3.36e38 would need a larger one; they saturate.
_MAX_INT8_SCALE = math.ldexp(1 - 2**-8, 121)
_FP16_SCALE_BYTES = 4
_INT8_SCALE_BYTES = 2

FloatArray = npt.NDArray[np.float32]
ByteArray = npt.NDArray[np.uint8]


class Codec(StrEnum):
    """How a tensor's values travel."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"
    INT8 = "int8"


def encoded_size(n: int, d: int, codec: Codec) -> int:
    """Return the exact bytes that `encode` writes for an ``(n, d)`` tensor."""
    match codec:
        case Codec.FP32:
            return 4 * n * d
        case Codec.BF16:
            return 2 * n * d
        case Codec.FP16:
            return _FP16_SCALE_BYTES + 2 * n * d
        case Codec.INT8:
            return n * (d + _INT8_SCALE_BYTES * _blocks(d))


def encode(
    tensor: torch.Tensor, codec: Codec, generator: torch.Generator | None = None
) -> memoryview:
    """Write a tensor's values as bytes.

    Args:
        tensor: ``(n, d)`` float32, on any device, with or without a gradient history.
        codec: how to write it.
        generator: a CPU generator makes int8 round stochastically; other codecs ignore it.

    Returns:
        `encoded_size` bytes. With fp32 on the CPU they are the tensor's own memory, not a copy: use
        them before the tensor changes.

    Raises:
        WireError: the tensor is not float32 of two dimensions, or a value is NaN or infinite.

    """
    if tensor.dtype != torch.float32 or tensor.ndim != 2:
        raise WireError(
            f"a frame carries float32 tensors of shape (n, d), got {tensor.dtype} of shape "
            f"{tuple(tensor.shape)}"
        )
    rows = tensor.detach().cpu().contiguous()
    match codec:
        case Codec.FP32:
            _largest(rows)
            values = rows.numpy().astype("<f4", copy=False)
        case Codec.BF16:
            if _largest(rows) > _BF16_MAX:  # would round to infinity
                rows = rows.clamp(-_BF16_MAX, _BF16_MAX)
            bits = rows.to(torch.bfloat16).view(torch.int16)
            values = bits.numpy().astype("<i2", copy=False)
        case Codec.FP16:
            values = _encode_fp16(rows)
        case Codec.INT8:
            values = _encode_int8(rows, generator)
    octets: ByteArray = values.reshape(-1).view(np.uint8)
    return octets.data


def decode(buffer: bytes | bytearray | memoryview, n: int, d: int, codec: Codec) -> torch.Tensor:
    """Read what `encode` wrote.

    Returns:
        ``(n, d)`` float32 on the CPU, writable, in memory of its own.

    Raises:
        WireError: the buffer is not exactly `encoded_size` bytes, or a value is NaN or infinite.

    """
    size = encoded_size(n, d, codec)
    if len(buffer) != size:
        raise WireError(f"{n} x {d} values in {codec} take {size} bytes, got {len(buffer)}")
    match codec:
        case Codec.FP32:
            values = np.frombuffer(buffer, "<f4").astype(np.float32)
        case Codec.BF16:
            values = _widen(np.frombuffer(buffer, "<u2"))
        case Codec.FP16:
            values = _decode_fp16(buffer)
        case Codec.INT8:
            values = _decode_int8(buffer, n, d)
    tensor = torch.from_numpy(values.reshape(n, d))
    if codec is not Codec.INT8:  # int8 can only be as wrong as its scales, and these are checked
        _largest(tensor)
    return tensor


def _widen(bf16: npt.NDArray[np.uint16]) -> FloatArray:
    """Widen bf16 to fp32, of which it is the upper half."""
    bits = bf16.astype(np.uint32)
    bits <<= 16  # in place: a second megabyte would cost more in page faults than the shift
    return bits.view(np.float32)


def _blocks(d: int) -> int:
    return -(-d // BLOCK)


def _largest(rows: torch.Tensor) -> float:
    """Return the largest magnitude; refuse NaN (which min and max pass on) and infinity."""
    if rows.numel() == 0:
        return 0.0
    low, high = (float(value) for value in torch.aminmax(rows))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise WireError("a tensor holds a value that is NaN or infinite")
    return max(-low, high)


def _encode_fp16(rows: torch.Tensor) -> ByteArray:
    """Write one fp32 scale, then the values divided by it, as fp16.

    The scale is a power of two, so dividing by it rounds nothing, and puts the largest magnitude
    into [2**14, 2**15), under fp16's 65504. It stays a normal number, so its inverse is finite.
    """
    largest = _largest(rows)
    exponent = max(math.frexp(largest)[1] - 15, -126) if largest else 0
    out = np.empty(encoded_size(rows.shape[0], rows.shape[1], Codec.FP16), np.uint8)
    head = _FP16_SCALE_BYTES
    out[:head].view("<f4")[0] = math.ldexp(1.0, exponent)
    scaled = (rows * math.ldexp(1.0, -exponent)).to(torch.float16)
    out[head:].view("<i2")[:] = scaled.view(torch.int16).numpy().reshape(-1)
    return out


def _decode_fp16(buffer: bytes | bytearray | memoryview) -> FloatArray:
    scale = float(np.frombuffer(buffer, "<f4", count=1)[0])
    if not (math.isfinite(scale) and scale > 0):
        raise WireError(f"an fp16 scale must be finite and above 0, got {scale}")
    bits = np.frombuffer(buffer, "<i2", offset=_FP16_SCALE_BYTES).astype(np.int16)
    values = np.empty(bits.size, np.float32)
    # torch widens fp16 with vector instructions; numpy is twenty times slower at it.
    torch.from_numpy(values).copy_(torch.from_numpy(bits).view(torch.float16)).mul_(scale)
    return values


def _encode_int8(rows: torch.Tensor, generator: torch.Generator | None) -> ByteArray:
    """Write the bf16 scales ``(n, blocks)`` of all rows, then the int8 values ``(n, d)``."""
    n, d = rows.shape
    out = np.empty(encoded_size(n, d, Codec.INT8), np.uint8)
    head = n * _blocks(d) * _INT8_SCALE_BYTES
    scales = torch.empty(n, _blocks(d), dtype=torch.float32)
    quantised = torch.from_numpy(out[head:].view(np.int8).reshape(n, d))
    for channels, columns, width in _sections(d):
        values = rows[:, channels].reshape(n, columns.stop - columns.start, width)
        scale = _int8_scales(values)
        scales[:, columns] = scale
        steps = values * scale.reciprocal().unsqueeze(-1)
        if generator is None:
            steps.round_()
        else:
            steps.add_(torch.rand(steps.shape, generator=generator)).floor_()
        # v + u may round up to 128 when v is 127 and u just under 1.
        quantised[:, channels] = steps.clamp_(-127, 127).flatten(1).to(torch.int8)
    out[:head].view("<u2")[:] = (scales.numpy().view(np.uint32) >> 16).reshape(-1)
    return out


def _int8_scales(values: torch.Tensor) -> torch.Tensor:
    """Return each block's scale, ``(n, k, width)`` to ``(n, k)``: bf16 values held in float32.

    Rounding up is adding to the bits all that bf16 cuts off, then cutting. The smallest scale is
    the smallest normal number: an all-zero block divides by it as safely as any other.
    """
    largest = values.abs().amax(dim=-1)
    _largest(largest)
    wanted = (largest / 127).clamp_(_TINY, _MAX_INT8_SCALE)
    bits = wanted.view(torch.int32)
    return bits.add_(0xFFFF).bitwise_and_(~0xFFFF).view(torch.float32)


def _decode_int8(buffer: bytes | bytearray | memoryview, n: int, d: int) -> FloatArray:
    head = n * _blocks(d) * _INT8_SCALE_BYTES
    bits = np.frombuffer(buffer, "<u2", count=head // 2).reshape(n, _blocks(d))
    scales = _widen(bits)
    if not np.all((scales >= 0) & (scales <= _MAX_INT8_SCALE)):  # False for NaN too
        raise WireError(f"an int8 scale must lie between 0 and {_MAX_INT8_SCALE:.4g}")
    values = np.frombuffer(buffer, np.int8, offset=head).astype(np.float32).reshape(n, d)
    for channels, columns, width in _sections(d):
        section = values[:, channels]
        # Splitting the last axis of a slice is a view, so this scales `values` in place.
        section.reshape(n, columns.stop - columns.start, width)[...] *= scales[:, columns, None]
    return values


def _sections(d: int) -> list[tuple[slice, slice, int]]:
    """Return (channels, columns of their scales, block width): whole blocks, then the short one."""
    whole = d // BLOCK
    sections = []
    if whole:
        sections.append((slice(0, whole * BLOCK), slice(0, whole), BLOCK))
    if d % BLOCK:
        sections.append((slice(whole * BLOCK, d), slice(whole, whole + 1), d % BLOCK))
    return sections
