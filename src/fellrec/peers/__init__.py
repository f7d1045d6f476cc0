"""Peers: recommenders that are not language models, at the protocol of every run.

    peer.py        what a peer is asked (never a test item) and how its scores become metrics
    popular.py     popularity: the most taken items, for everybody
    library.py     the way to `implicit`, which the extra "peers" brings
    neighbours.py  item-knn: items that the same users took
    factors.py     als: matrix factorisation, user factors from the history known at the time
    sasrec.py      the SASRec model: causal attention over a history's items
    training.py    sasrec: its training on everybody's histories, until validation stops rising
    federated.py   sasrec-federated: the same by federated averaging over clients
    running.py     any of them by name

All but sasrec-federated see the data of all clients in one place, which no federation allows: what
they reach shows what keeping histories apart costs. Hyper-parameters are chosen by validation from
the grids in their modules; the same seed gives the same result, on the same number of threads.
"""

from __future__ import annotations

from fellrec.peers.running import PEERS, PeerResult, run_peer

__all__ = ["PEERS", "PeerResult", "run_peer"]
