"""How a stage on one machine calls the next on another.

wire.py, codecs.py   frames and how their tensors are packed
transport.py         how frames travel
remote.py            the client's view of a trunk elsewhere
trunk.py             the server's side: sessions over one shared base
ledger.py            what crossed, counted
"""

from __future__ import annotations

from fellrec.models.cutting import Stages, cut

__all__ = ["Stages", "cut"]
