"""The way to `implicit`: its one-line absence, histories as its matrices, one thread.

`implicit` is the library that people use for these two models; ours would be measured against it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from scipy.sparse import csr_matrix

from fellrec.data.interactions import Ragged
from fellrec.extras import need
from fellrec.peers.peer import check_items


def taken(histories: Ragged, items: int) -> csr_matrix:
    """Return who took what as a matrix of ones, (U, items) float32; taking it twice is one.

    Raises `DataError` when a history holds an item outside the catalogue.
    """
    check_items(histories, items)
    ones = np.ones(len(histories.values), dtype=np.float32)
    # A copy: putting duplicates together sorts the rows in place, and their order is the history.
    matrix = csr_matrix(
        (ones, histories.values, histories.offsets), (len(histories), items), copy=True
    )
    matrix.sum_duplicates()
    matrix.data[:] = 1.0
    return matrix


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep the linear algebra below `implicit` to one thread: the same bits on any number of cores.

    Raises `ConfigError` when the packages of the extra "peers" are missing.
    """
    need("peers", ("implicit", "threadpoolctl"), "to compare with item-knn and als")
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, "blas"):
        yield
