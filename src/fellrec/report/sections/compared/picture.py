"""A figure as wide as the page: rows with their intervals, drawn again for a narrow screen."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from fellrec.report.blocks import Figure, Table
from fellrec.report.charts import Row, Words, interval_chart

WIDE, NARROW = 900.0, 330.0
"""Widths of charts for either screen, in pixels."""


def picture(
    words: Words,
    rows: Sequence[Row],
    table: Table,
    *,
    lead: str,
    legend: Markup,
    zero: bool = True,
    reference: float | None = None,
    second: float | None = None,
) -> Figure:
    """Draw the rows. words: their title heads the figure. table: their numbers.

    The rest is as in `interval_chart`.
    """
    wide, narrow = (
        interval_chart(
            Words(f"{words.name}-{size}", words.title, words.description),
            rows,
            width=width,
            zero=zero,
            reference=reference,
            second=second,
            stacked=size == "narrow",
        )
        for size, width in (("wide", WIDE), ("narrow", NARROW))
    )
    return Figure(words.title, lead, [wide], [table], legend, layout="full", narrow=[narrow])
