"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

NOTHING = "–"


def table_text(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Write a table whose first column is of names and the others of numbers."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "".join(f"| {' | '.join(line)} |\n" for line in (header, rule, *lines))


def metric_name(metric: str) -> str:
    """Write a metric as people do: "NDCG@10"."""
    return metric.replace("recall", "Recall").replace("ndcg", "NDCG")
