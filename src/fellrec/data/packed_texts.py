"""Texts as two arrays, and a digest that two parties can compare."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fellrec.data.interactions import Catalogue
from fellrec.errors import DataError


def pack_texts(texts: Sequence[str]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Join texts: their UTF-8 bytes (m,), and offsets (texts + 1,) as in `Ragged`.

    Raises:
        ValueError: a text that is not Unicode (half of a surrogate pair).
    """
    try:
        encoded = [text.encode() for text in texts]
    except UnicodeEncodeError as error:
        raise ValueError(f"the text {error.object!r} is not Unicode") from None
    offsets = np.zeros(len(encoded) + 1, "<i8")
    np.cumsum([len(text) for text in encoded], out=offsets[1:])
    return np.frombuffer(b"".join(encoded), np.uint8), offsets


def unpack_texts(data: NDArray[np.uint8], offsets: NDArray[np.int64]) -> tuple[str, ...]:
    """Undo `pack_texts`.

    Raises:
        ValueError: the offsets do not describe the bytes, or a text is not UTF-8.
    """
    if not len(offsets) or offsets[0] != 0 or offsets[-1] != len(data):
        raise ValueError("the offsets of texts do not fit their bytes")
    if (np.diff(offsets) < 0).any():
        raise ValueError("the offsets of texts decrease")
    joined = data.tobytes()
    try:
        return tuple(joined[a:b].decode() for a, b in itertools.pairwise(offsets.tolist()))
    except UnicodeDecodeError:
        raise ValueError("a text is not UTF-8") from None


def catalogue_digest(catalogue: Catalogue) -> str:
    """Return a SHA-256 of ids, titles and attributes, in their order, as hexadecimal digits.

    Two parties with the same digest call the same item by the same number and text. It tells the
    order of the items apart, so it is for clients and their coordinator, not for a trunk.

    Raises:
        DataError: a text that is not Unicode.
    """
    digest = hashlib.sha256(b"fellrec catalogue 1")
    names = list(catalogue.attributes)
    for texts in (names, catalogue.ids, catalogue.titles, *catalogue.attributes.values()):
        try:
            data, offsets = pack_texts(texts)
        except ValueError as error:
            raise DataError(f"catalogue: {error}; mend it") from None
        digest.update(len(texts).to_bytes(8, "little") + offsets.tobytes() + data.tobytes())
    return digest.hexdigest()
