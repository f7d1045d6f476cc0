"""What is measured: full ranking, balance between clients, and how sure a difference is.

ranking.py      best items of each user over the whole catalogue; Recall@K and NDCG@K
popularity.py   the most popular items as everybody's recommendation, at the same protocol
balance.py      how evenly clients are served, beside what sampling alone would show
bootstrap.py    95 % intervals of means and of paired differences, over users
"""

from __future__ import annotations

from fellrec.evaluation.balance import balance, sampling_gap
from fellrec.evaluation.bootstrap import Interval, mean_interval, paired_bootstrap
from fellrec.evaluation.popularity import popularity_metrics
from fellrec.evaluation.ranking import mean_metrics, rank, rank_scores, ranking_metrics

__all__ = [
    "Interval",
    "balance",
    "mean_interval",
    "mean_metrics",
    "paired_bootstrap",
    "popularity_metrics",
    "rank",
    "rank_scores",
    "ranking_metrics",
    "sampling_gap",
]
