"""What a client and its trunk have to agree on before the first frame, as one digest.

Both sides read the same recipe; of it, only what both compute with is compared, so that a server
need not know what data clients have or how they score. The base's weights have a digest of their
own (`models.manifest`), whatever each machine calls the folder that they are in.
"""

from __future__ import annotations

import hashlib
import json

from fellrec.config import RunConfig

_MODEL = ("recommender", "k_in", "k_out", "dropout", "dtype", "quantize")
_TRAIN = ("learning_rate", "weight_decay", "clip", "micro_batches")


def agreed(config: RunConfig) -> str:
    """Return a SHA-256, as hexadecimal digits, of all that both sides of the cut compute with."""
    values = config.model_dump(mode="json")
    shared = {
        "seed": values["seed"],
        "lora": values["lora"],
        "split": values["split"],
        "model": {key: values["model"][key] for key in _MODEL},
        "train": {key: values["train"][key] for key in _TRAIN},
        "rests": bool(values["privacy"]["user_noise"]),
    }
    text = json.dumps(shared, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
