"""The terms of a client's and of a trunk server's memory; the package's docstring has them all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fellrec.config import RunConfig
from fellrec.data.interactions import Dataset
from fellrec.federation.memory.blocks import (
    FLOAT,
    kept_by_blocks,
    passing_in_serving,
    passing_in_training,
    repeated,
)
from fellrec.federation.memory.program import program
from fellrec.federation.memory.widest import Widest
from fellrec.models import bigrec, recformer
from fellrec.models.recommender import Recommender
from fellrec.models.stages import Stage

_WARM_BYTES = 44 << 20  # measured: 31 MiB of code and 13 of buffers, on either side
_TRAINED_BYTES = 12  # gradient and two moments of a float32 parameter
_COPIES_BYTES = 8  # of what is trained on a client, as it began and as the order brought it
_TOKEN_BYTES = 640  # of a tokenizer for each token that it knows, measured for two
_TEXT_BYTES = 49  # of Python's for each text
_PAGE_COLUMNS = 16  # columns of a cache that share a page of memory, with heads of 64 channels


def foreseen_memory(
    config: RunConfig,
    recommender: Recommender,
    server: Stage | None,
    cost: Mapping[str, int | float],
    learned: Widest,
    scored: Widest,
    dataset: Dataset,
) -> dict[str, dict[str, int]]:
    """Return the terms of both sides, in bytes; see the package.

    server: the trunk, None where no block is left for it. cost: sizes of both sides, with what each
    trains. learned, scored: the largest micro-batch of training, and batch of scoring.

    Raises RunError where the program's own memory can't be measured.
    """
    own = [recommender.head, recommender.tail]
    there = [] if server is None else [server]
    copy = FLOAT * int(cost["server_adapter_parameters"])
    client = _side(config, recommender, own, learned, scored, remote=bool(there))
    client |= {
        "program": program().client + _WARM_BYTES,
        "weights": int(cost["client_bytes"]),
        "data": _data(config, recommender, dataset),
        "training": (_TRAINED_BYTES + _COPIES_BYTES) * int(cost["client_trained_parameters"]),
        "scores": _scores(config, recommender, learned, len(dataset.catalogue)),
    }
    client["scoring"] += _ranking(recommender, scored, len(dataset.catalogue))
    if server is None:
        trunk = {}
    else:
        trunk = _side(config, recommender, there, learned, scored, remote=True) | {
            "program": program().server + _WARM_BYTES,
            "weights": int(cost["server_bytes"]) + copy,
            "training": _TRAINED_BYTES * int(cost["server_trained_parameters"]),
        }
    return {"client": _whole(client), "server": _whole(trunk)}


_STANDING = ("program", "weights", "data", "training")
_LEARNING = ("activations", "scores", "frames")


def _whole(terms: Mapping[str, int]) -> dict[str, int]:
    """Put all terms in their order, and the total behind them."""
    found = {name: terms.get(name, 0) for name in (*_STANDING, *_LEARNING, "scoring")}
    standing = sum(found[name] for name in _STANDING)
    learning = sum(found[name] for name in _LEARNING)
    return {**found, "total": standing + max(learning, found["scoring"])}


def _side(
    config: RunConfig,
    recommender: Recommender,
    stages: Sequence[Stage],
    learned: Widest,
    scored: Widest,
    *,
    remote: bool,
) -> dict[str, int]:
    """Count what goes through the stages of one side; remote: whether frames cross."""
    under_way = min(config.train.in_flight, config.train.micro_batches)
    kept = sum(kept_by_blocks(config, stage) for stage in stages)
    passing = max(map(passing_in_training, stages))
    frames = _frames(learned.positions, stages[0].width) if remote else 0
    again = _encoded(recommender)
    batches = [scored, Widest(places=again, positions=again)]
    through = max(_through(stages, batch, remote=remote) for batch in batches)
    return {
        "activations": learned.places * (under_way * kept + passing),
        "frames": under_way * frames,
        "scoring": max(through, _writing(recommender, stages, scored)),
    }


def _frames(positions: int, width: int) -> int:
    """A message, the frame in it, and its values, all as if float32 was sent; see the package."""
    return 3 * FLOAT * positions * width


def _through(stages: Sequence[Stage], batch: Widest, *, remote: bool) -> int:
    """A batch on its way through some stages, without a gradient."""
    width, passing = stages[0].width, max(map(passing_in_serving, stages))
    frames = _frames(batch.positions, width) if remote else 0
    return batch.places * (FLOAT * width + passing) + frames


def _encoded(recommender: Recommender) -> int:
    """Places of the texts of items that go through the stages at once; 0 for hllm."""
    if isinstance(recommender, recformer.Recformer):
        return min(recformer.ENCODED_TOKENS, recommender.epoch_positions)
    if isinstance(recommender, bigrec.Bigrec):
        titles = int(recommender.prompts.bare.lengths().sum())
        return min(bigrec.ENCODED_TOKENS, titles)
    return 0


def _writing(recommender: Recommender, stages: Sequence[Stage], scored: Widest) -> int:
    """Keys and values of all beams while titles are written; 0 where none are.

    Beside the prompt there are as many columns as half of the titles need: what is longer is
    written when other prompts have finished and given their rows back.
    """
    if not isinstance(recommender, bigrec.Bigrec) or recommender.settings.decode == "retrieve":
        return 0
    rows = scored.rows * recommender.settings.beams
    usual = int(np.median(recommender.prompts.responses.lengths()))
    columns = scored.width + -(-usual // _PAGE_COLUMNS) * _PAGE_COLUMNS
    held = rows * columns * sum(stage.cache_bytes for stage in stages)
    passing = rows * columns * max(map(repeated, stages))
    if recommender.head not in stages:
        return held + passing
    logits = FLOAT * rows * int(recommender.head.body.config.vocab_size)
    return held + max(logits + passing, 3 * logits)


def _scores(config: RunConfig, recommender: Recommender, learned: Widest, items: int) -> int:
    """Logits of a micro-batch with their logarithms, and the table of items with its gradients."""
    match config.model.recommender:
        case "hllm":
            table, classes = 4 * items, items
        case "recformer":
            table, classes = items, items
        case "bigrec":
            table, classes = 0, int(recommender.head.body.config.vocab_size)
    return FLOAT * (table * recommender.head.width + 2 * learned.targets * classes)


def _ranking(recommender: Recommender, scored: Widest, items: int) -> int:
    """Scores of all items for a batch of users, and the vectors that they rest on."""
    return FLOAT * 2 * items * (scored.rows + recommender.head.width)


def _data(config: RunConfig, recommender: Recommender, dataset: Dataset) -> int:
    """Texts, interactions, and a tokenizer where the head has tokens."""
    texts = [dataset.catalogue.titles, *dataset.catalogue.attributes.values()]
    found = sum(_TEXT_BYTES + len(text) for column in texts for text in column)
    found += FLOAT * len(dataset.interactions)
    if config.model.recommender != "hllm":
        found += _TOKEN_BYTES * int(recommender.head.body.config.vocab_size)
    return found
