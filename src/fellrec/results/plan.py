"""What a table of results needs: each recipe, its base as it comes, and the command for either.

A cell is not made again while its recipe, the code that matters and the data are what they were;
code that is vouched to give the same (`vouched.py`) counts as the same.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from fellrec.config import RunConfig, recipes
from fellrec.data.digest import data_digest
from fellrec.errors import RunError
from fellrec.federation.origin import code_digest, sessions
from fellrec.federation.runs import difference
from fellrec.federation.shares import load_split
from fellrec.results.cells import read
from fellrec.results.vouched import Vouched

Standing = Literal["kept", "finished", "begun", "missing"]

_MOST_CHANGES = 8  # in a command; a longer one reads worse than the recipe itself


def untrained(config: RunConfig) -> RunConfig:
    """Return the recipe that scores the same base on the same users without any training."""
    train = config.train.model_copy(update={"rounds": 0})
    return config.model_copy(update={"name": f"{config.name}-untrained", "train": train})


def command(config: RunConfig, name: str, folder: str = "results") -> str:
    """Return the command that makes the run of a cell: a shipped recipe, and what differs from it.

    A recipe far from all shipped ones is named by the cell's own copy, `<folder>/<name>`.
    """
    changes = {each: _changes(RunConfig.from_toml(each), config) for each in recipes()}
    nearest = min(changes, key=lambda each: (len(changes[each]), each))
    words = ["fellrec", "train", nearest]
    if len(changes[nearest]) > _MOST_CHANGES:
        words = ["fellrec", "train", f"{folder}/{name}/config.toml"]
    else:
        # What JSON writes of these types, TOML reads.
        for key, value in changes[nearest].items():
            words += ["--set", f"{key}={json.dumps(value, ensure_ascii=False)}"]
    return shlex.join([*words, "--out", f"runs/{name}"])


def standing(config: RunConfig, results: Path, runs: Path) -> Standing:
    """Say how far the result of a recipe is: cells in `results`, run folders in `runs`.

    kept: its cell stands, made by today's code, or what that is vouched to match, from today's
    data. finished, begun: its run is in `runs/<name>`. The data set is loaded where there is a
    cell.

    Raises RunError when the run there is of another recipe or was made by other code, or the file
    of what is vouched for is damaged.
    """
    vouched = Vouched.read(results)

    def same(made_by: Iterable[str]) -> bool:
        recommender = config.model.recommender
        return vouched.shown_by(recommender, code_digest(recommender), made_by) is not None

    if (results / config.name).exists():
        cell = read(results / config.name)
        if (
            cell.config is not None
            and not difference(cell.config, config)
            and same(cell.origin["code"])
            and cell.origin["data"]["digest"] == data_digest(*load_split(config))
        ):
            return "kept"
    run = runs / config.name
    if not (run / "config.toml").is_file():
        return "missing"
    changed = difference(RunConfig.from_toml(run / "config.toml"), config)
    if changed:
        raise RunError(f"{run} is of another recipe: {changed} differs; remove it to train anew")
    codes = {session.code for session in sessions(run)}
    if codes and not same(codes):
        raise RunError(f"{run} was made by other code; remove it to train anew, or add it as it is")
    return "finished" if (run / "summary.json").is_file() else "begun"


def _changes(recipe: RunConfig, config: RunConfig) -> dict[str, Any]:
    """Return what differs from a recipe, by dotted key; the names of the two do not count."""
    before, after = recipe.model_dump(mode="json"), config.model_dump(mode="json")
    found: dict[str, Any] = {}
    for key, value in after.items():
        if isinstance(value, dict):
            keys = [name for name in value if value[name] != before[key][name]]
            found.update({f"{key}.{name}": value[name] for name in keys})
        elif key != "name" and value != before[key]:
            found[key] = value
    return found
