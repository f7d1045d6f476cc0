"""Dynamic balance: from the clients' updates and losses to every client's own mixture.

    attention.py   M1: how alike two clients' LoRA factors are
    heating.py     M2: how much of the others a client takes in this round
    mixing.py      M3 and M4: the personalised average, of factors or of products
    robust.py      what of an update is given to others, where clients may attack
    strategies.py  FELLRec and its neighbours, from local-only to FedAvg, as choices of the above

Pure functions of tensors. Clients are rows, in one order, everywhere; an update is a mapping from
tensor name to float32 tensor.
"""

from __future__ import annotations

from fellrec.balance.attention import (
    Gram,
    Space,
    Spread,
    attention,
    is_lora,
    lora_pairs,
    sharpen,
    spread,
)
from fellrec.balance.heating import HeatingKind, heating
from fellrec.balance.mixing import Mixer, combine, merge_products, mix, mixture
from fellrec.balance.robust import (
    Trimmer,
    change_norms,
    clip_factors,
    excess,
    joint_distances,
    krum,
    shrink,
    sources,
)
from fellrec.balance.strategies import (
    Ditto,
    FedAmp,
    FedAvg,
    FedProx,
    FellRec,
    Local,
    Merge,
    Mixture,
    RoundReport,
    Strategy,
    make_strategy,
)

__all__ = [
    "Ditto",
    "FedAmp",
    "FedAvg",
    "FedProx",
    "FellRec",
    "Gram",
    "HeatingKind",
    "Local",
    "Merge",
    "Mixer",
    "Mixture",
    "RoundReport",
    "Space",
    "Spread",
    "Strategy",
    "Trimmer",
    "attention",
    "change_norms",
    "clip_factors",
    "combine",
    "excess",
    "heating",
    "is_lora",
    "joint_distances",
    "krum",
    "lora_pairs",
    "make_strategy",
    "merge_products",
    "mix",
    "mixture",
    "sharpen",
    "shrink",
    "sources",
    "spread",
]
