"""What attackers guessed, gathered over clients, and what it comes to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fellrec.audit.findings import Audit, Inversion, Labels, Membership, Touched, Trace, Veiled
from fellrec.audit.knowledge import Knows
from fellrec.audit.readers import Reader
from fellrec.audit.recovery import Content, by_chance, placed, recovered, rouge_l
from fellrec.audit.wiretap import Items
from fellrec.evaluation.bootstrap import Interval, mean_interval
from fellrec.serving.run import Run

_TEN = 10

Touches = tuple[float, float]


@dataclass
class Tally:
    """What was guessed so far, by attacker and what it knows.

    lengths: positions of each history. ranks: of last targets, from 0. touched: each client's AUC
    by its upload and by popularity.
    """

    truths: list[Content] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    guesses: dict[tuple[str, Knows], list[Content]] = field(
        default_factory=lambda: defaultdict(list)
    )
    targets: list[int] = field(default_factory=list)
    ranks: dict[tuple[str, Knows], list[int]] = field(default_factory=lambda: defaultdict(list))
    touched: dict[Trace, list[Touches]] = field(default_factory=lambda: defaultdict(list))


def summed(
    run: Run,
    reader: Reader,
    tally: Tally,
    popular: Items,
    told: tuple[Membership, ...],
    halves: tuple[int, int],
    veil: Veiled | None,
) -> Audit:
    """Say what all guesses come to.

    popular: see `evaluation.popularity.places`. told, halves: of the game of membership, and with
    how many users of either half it was played.
    """
    model = run.config.model
    first = reader.alike[np.argsort(popular)]
    return Audit(
        recommender=model.recommender,
        k_in=model.k_in,
        k_out=model.k_out,
        codec=run.config.split.codec,
        item_residual=model.item_residual if model.recommender == "hllm" else "none",
        users=len(tally.truths),
        chance=mean([by_chance(truth.items, first) for truth in tally.truths]),
        inversion=tuple(
            _inversion(*by, tally.truths, guesses) for by, guesses in tally.guesses.items()
        ),
        learners=len(tally.targets),
        label_chance=mean([float(item in first[:_TEN]) for item in tally.targets]),
        labels=tuple(
            Labels(
                *by,
                mean([float(rank == 0) for rank in ranks]),
                mean([float(rank < _TEN) for rank in ranks]),
            )
            for by, ranks in tally.ranks.items()
        ),
        touched=tuple(
            each for by, pairs in tally.touched.items() if (each := _touched(by, pairs)) is not None
        ),
        members=halves[0],
        others=halves[1],
        membership=told,
        veil=veil,
    )


def _inversion(
    attack: str, knows: Knows, truths: Sequence[Content], guesses: Sequence[Content]
) -> Inversion:
    pairs = list(zip(truths, guesses, strict=True))
    spelled = [
        (truth.tokens, guess.tokens)
        for truth, guess in pairs
        if truth.tokens is not None and guess.tokens is not None
    ]
    return Inversion(
        attack,
        knows,
        mean([recovered(truth.items, guess.items) for truth, guess in pairs]),
        float(np.mean([placed(truth.items, guess.items) for truth, guess in pairs])),
        float(np.mean([placed(*each) for each in spelled])) if spelled else None,
        float(np.mean([rouge_l(*each) for each in spelled])) if spelled else None,
    )


def _touched(attack: Trace, found: Sequence[Touches]) -> Touched | None:
    known = [pair for pair in found if not np.isnan(pair).any()]
    if not known:
        return None
    uploads, popularity = zip(*known, strict=True)
    mean = float(np.mean(uploads))
    return Touched(attack, mean, min(uploads), max(uploads), float(np.mean(popularity)))


def mean(shares: Sequence[float] | NDArray[np.float64]) -> Interval:
    """Return a mean over users with its interval, drawn the same way every time."""
    return mean_interval(np.asarray(shares), np.random.default_rng(0))
