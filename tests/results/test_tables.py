"""The page of results: by hand from made-up cells, and the one that is committed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from fellrec.comparison.writing import parts_of_page
from fellrec.config import RunConfig, parse_override
from fellrec.federation.runs import difference
from fellrec.results.cells import Cell, read_all
from fellrec.results.keeping import keep
from fellrec.results.tables import page

ROOT = Path(__file__).parents[2]


def made_up(
    name: str, rows: range, scores: np.ndarray, rounds: int | None, digest: str = "abc"
) -> Cell:
    """Return a cell whose Recall@10 and NDCG@10 are `scores`; rounds None is the baseline."""
    config = (
        None if rounds is None else RunConfig.from_text("", name, None, {"train.rounds": rounds})
    )
    data = {"dataset": "shop", "split": "last-5", "users": 40, "items": 9, "digest": digest}
    summary = {
        "recommender": "popularity" if config is None else "hllm",
        "clients": [{"tokens": 1200 * (rounds or 0)}, {"tokens": 34 * (rounds or 0)}],
        "cost": {"client_parameter_share": 0.25, "train_seconds": 60.4 * (rounds or 0)},
    }
    made = {"command": f"fellrec train {name}", "seed": 0, "date": None, "seconds": None}
    origin = {**made, "data": data}
    both = {"recall@10": scores, "ndcg@10": scores}
    return Cell(name, config, summary, origin, np.array(rows), both)


def lines_of(text: str, name: str) -> list[list[str]]:
    """Return the cells of each table line about one model."""
    lines = [line for line in text.splitlines() if line.startswith(f"| `{name}` |")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.fixture
def cells() -> list[Cell]:
    """A model that gains 0.25 for everyone and is level with popularity on average; a sample."""
    base = np.tile([0.0, 0.5], 20)
    popular = np.tile([0.5, 0.5], 20)  # the trained model's mean, at other users
    trained = base + 0.25
    return [
        made_up("popularity", range(40), popular, None),
        made_up("base", range(40), base, 0),
        made_up("trained", range(40), trained, 2),
        made_up("sampled", range(10), trained[:10] * 0 + 1, 3),
    ]


def test_the_main_table_by_hand(cells: list[Cell]) -> None:
    text = page(cells)
    main, _, on_sample, _ = lines_of(text, "trained")
    assert main[1] == "40" and on_sample[1] == "10"
    assert main[2].startswith("0.5000 [")
    # For every user the same gain: no doubt is left, and the figure is bold.
    assert main[4] == main[5] == "**+0.2500 [+0.2500, +0.2500]**"
    # +-0.25 against popularity, half of the users each: not told apart, and not bold.
    assert re.fullmatch(r"\+0\.0000 \[-0\.0\d+, \+0\.0\d+\]", main[6])
    assert main[8:] == ["2,468", "121", "25.0%"]
    said = next(line for line in text.splitlines() if line.startswith("- `trained`"))
    assert said.endswith(
        "above its untrained base's (2.00 times) and not told apart from popularity's."
    )
    base = lines_of(text, "base")[0]
    assert base[4:6] == ["–", "–"] and base[6].startswith("**-0.2500 [")
    assert lines_of(text, "popularity")[0][4:] == ["–"] * 7


def test_a_sample_is_compared_on_its_own_users(cells: list[Cell]) -> None:
    text = page(cells)
    whole, sample = text.split("### 10 users")
    assert "`sampled`" not in whole.partition("### 40 users")[2]
    assert "The sample of users that scored `sampled`, drawn by the seed" in sample
    (first, _) = lines_of(sample, "sampled")
    assert first[4] == "**+0.7500 [" + first[4].removeprefix("**+0.7500 [")
    assert first[1] == "10" and first[2] == "1.0000 [1.0000, 1.0000]"
    # Others are read on these ten alone: 0, 0.5, 0, ... and a quarter more.
    assert lines_of(sample, "trained")[0][2].startswith("0.5000 [")
    assert lines_of(sample, "base")[0][2].startswith("0.2500 [")


def test_nothing_is_bold_that_may_be_chance(cells: list[Cell]) -> None:
    found = re.findall(r"\*\*[+-]\d\.\d{4} \[([+-]\d\.\d{4}), ([+-]\d\.\d{4})\]\*\*", page(cells))
    assert found
    for low, high in found:
        assert float(low) * float(high) > 0


def test_unlike_data_never_meet_in_a_table(cells: list[Cell]) -> None:
    other = made_up("elsewhere", range(40), np.ones(40), 2, digest="xyz")
    text = page([*cells, other])
    first, second = text.split("## shop, last-5")[1:]
    assert "elsewhere" not in first and "`trained`" not in second
    assert page([*cells, other]) == page([other, *reversed(cells)])  # the order means nothing


def test_a_page_of_real_runs(finished_runs: dict[str, Path], tmp_path: Path) -> None:
    for name, path in finished_runs.items():
        keep(path, tmp_path / "results", name)
    text = page(read_all(tmp_path / "results"))
    assert text == page(read_all(tmp_path / "results"))
    assert "### 27 users" in text and "### 12 users" in text
    assert [len(lines_of(text, name)) for name in finished_runs] == [4, 4, 2, 2]
    made = r"fellrec train results/toys/config\.toml --out runs/toys  # seed 0, 20\S+, \d+ s with"
    assert re.search(made, text)
    assert "\n\n\n" not in text
    assert max(map(len, text.partition("## toys")[0].splitlines())) <= 100


def test_the_committed_page_is_of_the_committed_cells() -> None:
    """`make results` was run after the last cell came, and nobody wrote into the page."""
    there, written = ROOT / "results", ROOT / "docs" / "results.md"
    assert there.exists() is written.exists()
    if there.exists():
        assert written.read_text() == page(read_all(there), parts_of_page(there))


def test_the_committed_commands_give_the_committed_recipes() -> None:
    """A shipped recipe that was changed after its cell came would claim what it did not give."""
    there = ROOT / "results"
    for cell in read_all(there) if there.exists() else []:
        if cell.config is None:
            continue
        words = shlex.split(cell.origin["command"])
        changes = dict(map(parse_override, words[4:-2:2]))
        source = words[2] if not words[2].endswith(".toml") else ROOT / words[2]
        assert not difference(RunConfig.from_toml(source, changes), cell.config), cell.name
