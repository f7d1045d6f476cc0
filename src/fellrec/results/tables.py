"""The page of results in Markdown: a function of the cells and of nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fellrec.errors import RunError
from fellrec.evaluation.bootstrap import Interval
from fellrec.files import write_bytes
from fellrec.results.cells import POPULARITY, Cell
from fellrec.results.markdown import NOTHING, metric_name, table_text
from fellrec.results.pairing import gain, level, untrained_base

Rows = NDArray[np.int64]

_SHOWN = ("recall@10", "ndcg@10")
_PREFACE = """\
# Results

`make results` writes this page from the folder `results/`; nothing here is written by hand.

Every user is ranked against the whole catalogue, without what is in the history, and scored on the
held-out items (`docs/data.md` has the splits). Each model is the best by validation. *Untrained* is
the same base, cut and scored the same way before any training; *popularity* ranks by how often all
clients' users together took an item in training, which no party of a federation could.

In brackets are 95 % intervals, from 2,000 bootstrap samples of the users, for differences paired by
user. They say what other users would have changed, not what another seed would. **Bold** is a
difference whose interval leaves out zero (in a comparison: in all seeds, and for scores judged
together with its column, `docs/comparisons.md`); all others may be chance. *Tokens* are positions
of training batches, over all clients and rounds (for HLLM a position is an item); *seconds* are
those of training alone, on whatever machine it was; the *client's share* is what one client holds
of all parameters of client and server.
"""


def write_page(
    cells: Sequence[Cell], out: Path | None = None, comparisons: Sequence[str] = ()
) -> str:
    """Return the page, and write it to a file if one is given; see `page`.

    Raises RunError when the file can't be written.
    """
    text = page(cells, comparisons)
    if out is not None:
        try:
            write_bytes(out, text.encode())
        except OSError as error:
            raise RunError(f"{out}: can't be written ({error.strerror or error})") from error
    return text


def page(cells: Sequence[Cell], comparisons: Sequence[str] = ()) -> str:
    """Write the page: for each data set, and each set of users that a run scored, a comparison.

    comparisons: parts in Markdown that come before these.
    """
    parts = [_PREFACE, *comparisons]
    by_data = sorted(cells, key=_data)
    for _, group in groupby(by_data, key=_data):
        parts += _data_set(list(group))
    return "\n".join(parts)


def _data(cell: Cell) -> tuple[str, str, str]:
    data = cell.origin["data"]
    return data["dataset"], data["split"], data["digest"]


def _data_set(cells: Sequence[Cell]) -> list[str]:
    data = cells[0].origin["data"]
    parts = [f"## {data['dataset']}, {data['split']}\n"]
    parts.append(f"{data['users']:,} users, {data['items']:,} items (digest `{data['digest']}`).\n")
    trained = [cell for cell in cells if cell.config is not None]
    groups = {cell.rows.tobytes(): cell.rows for cell in trained or cells}
    for rows in sorted(groups.values(), key=lambda rows: (-len(rows), rows.tolist())):
        # A model that scored more users is read on these.
        parts += _comparison([cell for cell in cells if np.isin(rows, cell.rows).all()], rows)
    return parts


def _comparison(cells: Sequence[Cell], rows: Rows) -> list[str]:
    cells = sorted(cells, key=_order)
    baseline = next((cell for cell in cells if cell.config is None), None)
    parts = [f"### {len(rows):,} users\n"]
    if len(rows) < cells[0].origin["data"]["users"]:
        sampled = [f"`{cell.name}`" for cell in cells if np.array_equal(cell.rows, rows)]
        parts.append(
            f"The sample of users that scored {', '.join(sampled)}, drawn by the seed; every model "
            "here is read on these users alone.\n"
        )
    parts.append(_main_table(cells, rows, baseline))
    words = [_words(cell, untrained_base(cell, cells), baseline, rows) for cell in cells]
    if any(words):
        parts.append("".join(words))
    parts += ["All lengths of the list:\n", _all_lengths(cells, rows)]
    parts += ["The command that made each:\n"]
    return [*parts, "".join(_made(cell) for cell in cells if cell.config is not None)]


def _order(cell: Cell) -> tuple[bool, str, bool, str]:
    """Popularity first, then by recommender, of each the untrained base first."""
    rounds = cell.config.train.rounds if cell.config else 0
    recommender = str(cell.summary["recommender"])
    return recommender != POPULARITY, recommender, rounds > 0, cell.name


def _main_table(cells: Sequence[Cell], rows: Rows, baseline: Cell | None) -> str:
    names = [metric_name(metric) for metric in _SHOWN]
    header = ["model", "users", *names]
    header += [f"{name} over untrained" for name in names]
    header += [f"{name} over popularity" for name in names]
    header += ["tokens", "seconds", "client's share"]
    lines = []
    for cell in cells:
        line = [f"`{cell.name}`", f"{len(rows):,}"]
        line += [_plain(level(cell, rows, metric, _rng())) for metric in _SHOWN]
        for other in (untrained_base(cell, cells), baseline):
            line += [_signed(_gain(cell, other, rows, metric)) for metric in _SHOWN]
        lines.append([*line, *_cost(cell)])
    return table_text(header, lines)


def _all_lengths(cells: Sequence[Cell], rows: Rows) -> str:
    metrics = sorted(
        {metric for cell in cells for metric in cell.scores},
        key=lambda name: (not name.startswith("recall"), int(name.partition("@")[2])),
    )
    lines = [
        [f"`{cell.name}`", *(_plain(level(cell, rows, metric, _rng())) for metric in metrics)]
        for cell in cells
    ]
    return table_text(["model", *map(metric_name, metrics)], lines)


def _words(cell: Cell, base: Cell | None, baseline: Cell | None, rows: Rows) -> str:
    """Say in a sentence what training brought; nothing of a base as it comes."""
    metric = _SHOWN[1]
    gained = _gain(cell, base, rows, metric)
    now = level(cell, rows, metric, _rng())
    if gained is None or now is None:
        return ""
    before = now.mean - gained.mean
    times = f" ({now.mean / before:.2f} times)" if before > 0 else ""
    text = (
        f"- `{cell.name}`: {metric_name(metric)} is {_verdict(gained)} its untrained base's{times}"
    )
    over = _gain(cell, baseline, rows, metric)
    return text + ("" if over is None else f" and {_verdict(over)} popularity's") + ".\n"


def _verdict(difference: Interval) -> str:
    if not difference.clear:
        return "not told apart from"
    return "above" if difference.mean > 0 else "below"


def _made(cell: Cell) -> str:
    origin = cell.origin
    notes = [f"seed {origin['seed']}"]
    if origin["date"] is not None:
        notes.append(origin["date"])
    if origin["seconds"] is not None:
        notes.append(f"{origin['seconds']:,.0f} s with scoring")
    return f"    {origin['command']}  # {', '.join(notes)}\n"


def _cost(cell: Cell) -> list[str]:
    """What training read and took, and what a client holds of the parameters."""
    if cell.config is None:
        return [NOTHING] * 3
    tokens = sum(client["tokens"] for client in cell.summary["clients"])
    cost = cell.summary["cost"]
    share = f"{cost['client_parameter_share']:.1%}"
    return [f"{tokens:,}", f"{cost['train_seconds']:,.0f}", share]


def _gain(cell: Cell, other: Cell | None, rows: Rows, metric: str) -> Interval | None:
    return None if other is None or other is cell else gain(cell, other, rows, metric, _rng())


def _rng() -> np.random.Generator:
    """Every interval is of the same draws of users, whatever else is on the page."""
    return np.random.default_rng(0)


def _plain(value: Interval | None) -> str:
    if value is None:
        return NOTHING
    return f"{value.mean:.4f} [{value.low:.4f}, {value.high:.4f}]"


def _signed(value: Interval | None) -> str:
    if value is None:
        return NOTHING
    text = f"{value.mean:+.4f} [{value.low:+.4f}, {value.high:+.4f}]"
    return f"**{text}**" if value.clear else text
