"""How each recommender's histories are read back from what crosses: one reader each."""

from fellrec.audit.readers.bigrec import BigrecReader
from fellrec.audit.readers.hllm import HllmReader
from fellrec.audit.readers.reader import Reader
from fellrec.audit.readers.recformer import RecformerReader
from fellrec.models.bigrec import Bigrec
from fellrec.models.hllm import Hllm
from fellrec.models.recformer import Recformer
from fellrec.models.recommender import Recommender

__all__ = ["Reader", "reader_of"]


def reader_of(recommender: Recommender, items: int) -> Reader:
    """Return the reader of a recommender's histories; TypeError where none is written for it.

    items: how many the catalogue has.
    """
    match recommender:
        case Hllm():
            return HllmReader(recommender)
        case Bigrec():
            return BigrecReader(recommender, items)
        case Recformer():
            return RecformerReader(recommender, items)
    raise TypeError(f"no reader for a {type(recommender).__name__}")
