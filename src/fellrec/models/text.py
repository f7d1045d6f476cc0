"""Vectors of item texts from a public encoder, computed once and kept on disk by content.

The catalogue is public, so nothing private enters here. A file in the cache is named by a digest of
the texts, of the encoder's files and of these settings: another text or encoder is another file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from fellrec.data.files import replace_file
from fellrec.errors import ModelError
from fellrec.models.bases import load_config

_MAX_TOKENS = 128
_FORMAT = b"mean-pooled, normalised, 128 tokens, 1"


def encode_texts(
    texts: Sequence[str],
    encoder: Path,
    cache: Path,
    *,
    batch_size: int = 64,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:
    """Return (texts, d) float32, mean over tokens of the last hidden state, L2-normalised.

    encoder: a folder with a model and its tokenizer. cache: a folder for results. Raises ModelError
    when the encoder can't be used.
    """
    load_config(encoder)
    path = cache / f"{_digest(texts, encoder)}.safetensors"
    if path.exists():
        try:
            vectors = load_file(path)["vectors"]
            if vectors.shape[0] == len(texts) and bool(torch.isfinite(vectors).all()):
                return vectors
        except (SafetensorError, KeyError):
            path.unlink()  # a damaged cache file costs a recomputation, no more
    vectors = _encode(texts, encoder, batch_size, progress)
    replace_file(path, save({"vectors": vectors}))
    return vectors


def _digest(texts: Sequence[str], encoder: Path) -> str:
    digest = hashlib.blake2b(_FORMAT, digest_size=16)
    settings = (encoder / name for name in ("config.json", "tokenizer.json", "vocab.txt"))
    for file in [*sorted(encoder.glob("*.safetensors")), *filter(Path.exists, settings)]:
        with file.open("rb") as handle:
            digest.update(hashlib.file_digest(handle, "blake2b").digest())
    for text in texts:
        data = text.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def _encode(
    texts: Sequence[str],
    encoder: Path,
    batch_size: int,
    progress: Callable[[int, int], None],
) -> Tensor:
    try:
        tokenizer = AutoTokenizer.from_pretrained(encoder, local_files_only=True)
        model = AutoModel.from_pretrained(encoder, local_files_only=True).eval()
    except Exception as error:  # a damaged file makes these raise nearly anything, KeyError too
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ModelError(f"{encoder}: the item encoder can't be loaded ({reason})") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    vectors = torch.empty(len(texts), model.config.hidden_size)
    with torch.no_grad():
        for first in range(0, len(order), batch_size):
            chosen = order[first : first + batch_size]
            tokens = tokenizer(
                [texts[i] for i in chosen],
                padding=True,
                truncation=True,
                max_length=_MAX_TOKENS,
                return_tensors="pt",
            )
            hidden = model(**tokens).last_hidden_state
            mask = tokens["attention_mask"].unsqueeze(-1).to(hidden.dtype)
            pooled = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
            vectors[chosen] = F.normalize(pooled, dim=-1)
            progress(min(first + batch_size, len(order)), len(order))
    return vectors
