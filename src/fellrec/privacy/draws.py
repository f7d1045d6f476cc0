"""Random numbers that nobody can tell without their key.

Noise that is to hide something must not follow from other noise. torch's generators are no good for
that: of a seed only 32 bits count, so that all seeds can be tried, and from 624 numbers of a
Mersenne Twister all others follow. Here numbers are read from SHAKE-128 (FIPS 202), keyed by what
stands first, a block for each counter, which costs about as much as turning them into normal ones.

They are the same on every machine but for the last bits of logarithms and cosines. Whoever sees a
noisy number sees it rounded to float32: what its last bits give away (Mironov 2012) is not covered.
"""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Sequence
from typing import Final, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_BLOCK: Final = 1 << 16  # bytes that a hash is asked for at once; it stays in the cache
KEY_BYTES: Final = 32


class Draws:
    """A stream of numbers, decided by a key of `KEY_BYTES` bytes alone.

    Each call takes the next part of the stream, so the order of calls matters and their sizes do.
    """

    def __init__(self, key: bytes) -> None:
        """Begin the stream of a key; ValueError for one of another length."""
        self.restart(key)

    @classmethod
    def fresh(cls) -> Self:
        """Begin a stream that nobody has seen, from the machine's own source."""
        return cls(secrets.token_bytes(KEY_BYTES))

    @classmethod
    def by(cls, rng: np.random.Generator) -> Self:
        """Begin a stream that a generator draws, where it hides nothing: to try noise out."""
        return cls(rng.bytes(KEY_BYTES))

    def restart(self, key: bytes) -> None:
        """Begin the stream of a key; ValueError for one of another length."""
        if len(key) != KEY_BYTES:
            raise ValueError(f"a key of {len(key)} bytes: give {KEY_BYTES}")
        self._keyed = hashlib.shake_128(key)
        self._block = 0

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """Draw numbers of [0, 1), float32, each a multiple of 2⁻²⁴."""
        words = self._words(math.prod(shape)) >> 8
        return torch.from_numpy(words.astype(np.float32)).mul_(2.0**-24).reshape(tuple(shape))

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Draw standard normal numbers, float32, none longer than 6.8.

        By Box and Muller (1958): √(-2 ln u) cos 2πv and √(-2 ln u) sin 2πv are independent and
        normal where u and v are independent and uniform.
        """
        count = math.prod(shape)
        words = self._words(count + count % 2)
        first, second = torch.from_numpy(words.astype(np.float32)).mul_(2.0**-32).chunk(2)
        # Never 0, of which there is no logarithm; float32 may round the largest up to 1.
        length = first.add_(2.0**-33).log_().mul_(-2).clamp_(min=0).sqrt_()
        angle = second.mul_(2 * math.pi)
        drawn = torch.cat([length * angle.cos(), length * angle.sin()])
        return drawn[:count].reshape(tuple(shape))

    def _words(self, count: int) -> npt.NDArray[np.uint32]:
        """Read (count,) numbers of 32 bits; a block that was begun is not gone on with."""
        size = 4 * count
        read = np.empty(-(-size // _BLOCK) * _BLOCK, np.uint8)
        for first in range(0, len(read), _BLOCK):
            keyed = self._keyed.copy()
            keyed.update(self._block.to_bytes(8, "little"))
            wanted = min(_BLOCK, size - first)
            read[first : first + wanted] = np.frombuffer(keyed.digest(wanted), np.uint8)
            self._block += 1
        return read[:size].view("<u4")
