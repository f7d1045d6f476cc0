"""From values to pixels, and where an axis has its ticks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
LETTER = 0.62  # of the size of the letters: a wide face's mean, so that an estimate is never short


@dataclass(frozen=True)
class Scale:
    """A straight map of values `low` … `high` to pixels `start` … `stop`."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        """Return the pixel of a value; equal ends put everything in the middle."""
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return self.start + share * (self.stop - self.start)


def ticks(low: float, high: float, count: int) -> list[float]:
    """Return about `count` round values whose first is not above `low` and last not below `high`.

    A single value gets a range around it.
    """
    if not high > low:
        reach = abs(low) / 2 or 0.5
        low, high = max(0.0, low - reach) if low >= 0 else low - reach, high + reach
    rough = (high - low) / max(1, count - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * power for unit in _STEPS if unit * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def tick_labels(values: Sequence[float]) -> list[str]:
    """Write ticks with as many decimals as the distance between them needs, and no more."""
    step = min((b - a for a, b in pairwise(values)), default=1.0)
    decimals = next(n for n in range(13) if n == 12 or abs(round(step, n) - step) < step * 1e-6)
    return [f"{value:,.{decimals}f}" for value in values]


def whole_ticks(first: int, last: int, count: int) -> list[int]:
    """Return at most `count` whole numbers from first to last, evenly apart, the first with them.

    The last is among them where the step allows.
    """
    step = max(1, math.ceil((last - first) / max(1, count - 1)))
    return list(range(first, last + 1, step))


def extent(values: Iterable[float | None]) -> tuple[float, float] | None:
    """Return the least and the largest of what is a number; None where nothing is."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    return (min(known), max(known)) if known else None


def text_width(words: str, size: float) -> float:
    """Estimate how wide words are, in pixels, whatever face the reader has."""
    return sum(1.0 if ord(letter) > 0x2E7F else LETTER for letter in words) * size


def shorten(words: str, width: float, size: float) -> str:
    """Cut words that would be wider than `width`, with an ellipsis."""
    if text_width(words, size) <= width:
        return words
    kept = words
    while kept and text_width(kept + "…", size) > width:
        kept = kept[:-1]
    return kept.rstrip() + "…"
