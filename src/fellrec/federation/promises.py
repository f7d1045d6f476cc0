"""What a run promises its users by differential privacy, in its summary's words.

Two things are promised, each only where the recipe asks for the noise, and neither covers the
other: of what crosses the cut (`privacy.veil`) and of what is exchanged (`privacy.user_level`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fellrec.config import RunConfig
from fellrec.federation.decisions import passes, strategy_for


def promises(config: RunConfig, lines: Sequence[Mapping[str, Any]], width: int) -> dict[str, Any]:
    """State unit, noise, δ, ε and what composes; empty where a recipe asks for no noise.

    lines: of metrics.jsonl. width: channels at the cut.
    """
    found: dict[str, Any] = {}
    if config.privacy.noise and width:
        found["activations"] = _activations(config, lines, width)
    if config.privacy.user_noise:
        found["uploads"] = _uploads(config, lines)
    return found


def _activations(
    config: RunConfig, lines: Sequence[Mapping[str, Any]], width: int
) -> dict[str, Any]:
    """Local: of one history, against the trunk server. Of a client that took part in each round."""
    from fellrec.privacy.accounting import histories_epsilon  # loads an accountant, for this alone

    train, privacy = config.train, config.privacy
    rounds = len({line["round"] for line in lines if "failed" not in line})
    scored = 1 + (config.evaluation.before_mixing and strategy_for(config).exchanges)
    an_epoch = train.samples or train.windows  # all few-shot examples may be of one user
    crossings = passes(config) * rounds * train.local_epochs * an_epoch + rounds * scored + 1
    positions = _positions(config)
    not_covered = ["gradients at the second cut and their lengths", "lengths of histories"]
    writes = config.model.recommender == "bigrec" and config.bigrec.decode != "retrieve"
    if writes:  # each token of each beam crosses, and rests on the history
        not_covered.append("what is written while scoring, so that no bound holds")
    return {
        "unit": f"one user's history, any other of at most {positions} positions in its place",
        "noise": privacy.noise,
        "positions": positions,
        "crossings": crossings,
        "delta": privacy.delta,
        "epsilon": math.inf
        if writes
        else histories_epsilon(privacy.noise, width, positions, crossings, privacy.delta),
        "composes": "every time the history crosses: each epoch, each score; a round that is done "
        "again crosses again",
        "not_covered": ", ".join(not_covered),
    }


def _positions(config: RunConfig) -> int:
    """Return the most positions that a history takes: items, or tokens."""
    match config.model.recommender:
        case "hllm":
            return config.model.history
        case "recformer":
            return config.recformer.max_tokens
        case "bigrec":
            return config.bigrec.max_tokens


def _uploads(config: RunConfig, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Central: of one user, against coordinator and other clients.

    Of lines of clients that failed, too: what one of these sent was received.
    """
    privacy = config.privacy
    spent: dict[str, float] = {}
    for line in lines:
        if "epsilon" in line:
            epsilon = math.inf if line["epsilon"] is None else line["epsilon"]
            spent[line["client"]] = max(spent.get(line["client"], 0.0), epsilon)
    return {
        "unit": "one user with all of its history, added or removed",
        "noise": privacy.user_noise,
        "clip": privacy.user_clip,
        "delta": privacy.delta,
        "budget": privacy.epsilon or None,
        "epsilon": spent,
        "composes": "all rounds of a client's uploads, and all that is made of them",
        "not_covered": "a round's mean loss, its scores and counts; what crosses the cut",
    }
