"""Numbers as people read them; what is not known is a dash."""

from __future__ import annotations

from rich.filesize import decimal

from fellrec.evaluation.bootstrap import Interval

NOTHING = "–"


def score(value: float | None) -> str:
    """Write a score with four decimals."""
    return NOTHING if value is None else f"{value:.4f}"


def between(value: Interval | None) -> str:
    """Write the ends of an interval."""
    return NOTHING if value is None else f"{value.low:.4f} to {value.high:.4f}"


def percent(value: float | None) -> str:
    """Write a share."""
    return NOTHING if value is None else f"{value:.0%}"


def fixed(value: float | None, decimals: int) -> str:
    """Write a number with so many decimals."""
    return NOTHING if value is None else f"{value:,.{decimals}f}"


def whole(value: int | None) -> str:
    """Write a count to the last one."""
    return NOTHING if value is None else f"{value:,}"


def count(value: int | None) -> str:
    """Write a large count shortly."""
    if value is None:
        return NOTHING
    for size, letter in ((1e9, "B"), (1e6, "M")):
        if value >= 0.1 * size:
            return f"{value / size:.1f} {letter}"
    return f"{value:,}"


def size(value: int | None) -> str:
    """Write bytes."""
    return NOTHING if value is None else decimal(value)


def seconds(value: float | None) -> str:
    """Write a time."""
    if value is None:
        return NOTHING
    if value >= 5400:
        return f"{value / 3600:.1f} h"
    return f"{value / 60:.1f} min" if value >= 120 else f"{value:.1f} s"


def metric(name: str) -> str:
    """Write a metric's name as the literature does."""
    return name.replace("recall", "Recall").replace("ndcg", "NDCG")


def several(number: int, one: str, many: str = "") -> str:
    """Write a number with its noun: "1 client", "5 clients"."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
