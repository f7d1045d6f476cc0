"""What is measured: full ranking, balance between clients, and how sure a difference is.

ranking.py   best items of each user over the whole catalogue; Recall@K and NDCG@K
balance.py   how evenly clients are served, beside what sampling alone would show
"""

from __future__ import annotations

from fellrec.evaluation.balance import balance, paired_bootstrap, sampling_gap
from fellrec.evaluation.ranking import mean_metrics, rank, rank_scores, ranking_metrics

__all__ = [
    "balance",
    "mean_metrics",
    "paired_bootstrap",
    "rank",
    "rank_scores",
    "ranking_metrics",
    "sampling_gap",
]
