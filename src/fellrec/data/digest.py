"""Digests by which data is recognised again, here and elsewhere."""

from __future__ import annotations

import hashlib

from fellrec.data.interactions import Catalogue, Dataset, Split
from fellrec.data.partition import Partition


def catalogue_digest(catalogue: Catalogue) -> str:
    """Return a digest of the items' texts in their order, 16 hexadecimal digits."""
    return _of_texts(catalogue).hexdigest()[:16]


def data_digest(dataset: Dataset, split: Split) -> str:
    """Return a digest of items and split, 16 hexadecimal digits: the same for the same rows.

    The items' texts count: recommenders read them. Users' ids do not.
    """
    digest = _of_texts(dataset.catalogue)
    for part in (split.train, split.valid, split.test):
        digest.update(part.offsets.astype("<i8").tobytes())
        digest.update(part.values.astype("<i4").tobytes())
    return digest.hexdigest()[:16]


def partition_digest(partition: Partition) -> str:
    """Return a digest of which user is whose, 16 hexadecimal digits; clients' names count."""
    digest = hashlib.sha256("\n".join(partition.names).encode())
    digest.update(partition.assignment.astype("<i4").tobytes())
    return digest.hexdigest()[:16]


def _of_texts(catalogue: Catalogue) -> hashlib._Hash:
    return hashlib.sha256("\n".join(catalogue.texts()).encode())
