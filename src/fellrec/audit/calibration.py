"""How much a server reads back of histories that nobody had, with the head that is public.

No run and nobody's data are needed: histories are drawn evenly from the catalogue, and go through
the head as clients start from it, a veil and the codec. Without a secret start that is the public
head: the worst case of a setting, and a test of the attacks. Where nothing is hidden and the head
is known, they have to recover everything (at any depth of a causal head, and before the first block
of the others), else what they miss of a trained run proves nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fellrec.audit.alignment import Usual, read_by_fit
from fellrec.audit.readers import reader_of
from fellrec.audit.recovery import recovered
from fellrec.audit.wiretap import across
from fellrec.data.interactions import Ragged
from fellrec.evaluation.bootstrap import Interval, mean_interval
from fellrec.federation.shares import seeded
from fellrec.federation.workspace import Workspace
from fellrec.models.adapters import write
from fellrec.models.recommender import Kind
from fellrec.privacy import Cover, Draws, Veil, made_up, typical_length
from fellrec.split.codecs import Codec

_CROWD = 512  # histories of others that the server sees, and that it makes up, behind a secret


@dataclass(frozen=True)
class Calibrated:
    """What one attack recovers of made-up histories behind noise; see `findings.Inversion`."""

    noise: float
    attack: str
    recovered: Interval


def calibrated(
    workspace: Workspace,
    noises: Sequence[float],
    *,
    codec: Codec | None = None,
    histories: int = 8,
    most: int = 0,
    acquainted: int = 16,
    seed: int = 0,
) -> Iterator[Calibrated]:
    """Attack made-up histories behind each strength of noise, with the public head.

    workspace: of a recipe, untrained; where it was given a secret, clients' own head starts there.
    The public head is what is installed afterwards. noises: of veils, see `privacy.Veil`; 0 leaves
    the veil out. codec: None takes the recipe's. most: candidates that a search tries at a place, 0
    for all. acquainted: histories that a server knows which tries `alignment` on a secret start.
    """
    recommender, config = workspace.recommender, workspace.config
    tensors, kinds = recommender.parameters_of(*Kind), tuple(Kind)
    write(tensors, workspace.initial(*kinds))
    recommender.eval()
    items = len(workspace.dataset.catalogue)
    reader = reader_of(recommender, items)

    def drawn(name: str, count: int) -> Ragged:
        return made_up(seeded(seed, name), count, config.model.history, items)

    attacked, crowd = drawn("calibration", histories), drawn("crowd", _CROWD)
    activations = reader.activations(attacked)
    hidden = config.privacy.secret_start > 0
    others = reader.activations(crowd) if hidden else []
    known = reader.inputs(crowd)[:acquainted] if hidden else []
    truths = [reader.content(each) for each in reader.inputs(attacked)]
    bound = typical_length(activations)
    codec = Codec(config.split.codec) if codec is None else codec
    write(tensors, workspace.public(*kinds))
    usual = Usual.of(reader, drawn("usual", _CROWD)) if hidden else None
    for noise in noises:
        draws = Draws.by(seeded(seed, "noise"))
        cover = Cover(Veil(bound, noise) if noise else None, noise=draws)
        seen = [across(each, codec, cover) for each in activations]
        found = reader.read_back(seen, most)
        if usual is not None:
            crossed = [across(each, codec, cover) for each in others]
            found |= read_by_fit(reader, usual, seen, crossed, known)
        for attack, guesses in found.items():
            shares = [
                recovered(truth.items, guess.items)
                for truth, guess in zip(truths, guesses, strict=True)
            ]
            interval = mean_interval(shares, np.random.default_rng(0))
            yield Calibrated(noise, attack, interval)
