"""What a comparison's file asks for: cells by what they compute, and mistakes in one line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fellrec.comparison.plan import Comparison, Planned, comparisons
from fellrec.config import RunConfig
from fellrec.errors import ConfigError
from tests.comparison.made import description

BEGUN = 'name = "mine"\nrecipe = "smoke"\n'
PLAIN = BEGUN + "[strategies.fellrec]\n"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
KEY = re.compile(r"[0-9a-f]{12}")


def planned(changes: dict[str, object] | None = None, peer: str | None = None) -> Planned:
    return Planned("x", (), RunConfig.from_toml("demo", changes), peer)


@pytest.mark.parametrize("name", comparisons())
def test_shipped_comparisons_ask_for_runs_that_can_be(name: str) -> None:
    comparison = Comparison.read(name)
    file = comparison.file
    assert file.name == name and file.about and file.title != "Comparison"
    points = 1
    for values in file.axes.values():
        points *= len(values)
    rows = len(file.strategies) + len(file.peers)
    assert len(comparison.cells) == points * rows * len(file.seeds)
    for cell in comparison.cells:
        assert NAME.fullmatch(cell.name) and cell.name.endswith(f"-{cell.key}")
    by_point = {(cell.label, cell.axes, cell.seed) for cell in comparison.cells}
    assert len(by_point) == len(comparison.cells)


@pytest.mark.parametrize("name", comparisons())
def test_rows_of_a_shipped_comparison_are_different_runs(name: str) -> None:
    cells = Comparison.read(name).cells
    for axes in {cell.axes for cell in cells}:
        keys = [cell.key for cell in cells if cell.axes == axes]
        assert len(set(keys)) == len(keys)


def test_both_screenings_have_the_same_rows() -> None:
    one, other = (Comparison.read(f"compare-ml100k{split}") for split in ("", "-last-5"))
    assert list(one.file.strategies.items()) == list(other.file.strategies.items())
    for first, second in zip(one.cells, other.cells, strict=True):
        data = first.config.data.model_copy(update={"split": "last-5"})
        assert first.config.model_copy(update={"data": data}) == second.config


def test_cells_come_by_axes_then_seeds_then_peers_and_strategies(tmp_path: Path) -> None:
    text = (
        BEGUN + 'seeds = [3, 1]\npeers = ["popularity"]\n[set]\n"train.rounds" = 1\n'
        '[strategies.a]\n"train.rounds" = 2\n[strategies.b]\n[axes]\n"clients.count" = [2, 3]\n'
        '[axes.data]\nall = {}\n"a few" = { "data.max_users" = 30 }\n'
    )
    cells = description(tmp_path, text).cells
    rows = [(s, label) for s in (3, 1) for label in ("popularity", "a", "b")]
    points = [(count, name) for count in (2, 3) for name in ("all", "a few")]
    assert [(dict(c.axes)["clients.count"], dict(c.axes)["data"]) for c in cells[::6]] == points
    assert [(cell.seed, cell.label) for cell in cells[:6]] == rows
    assert [cell.config.train.rounds for cell in cells[:3]] == [1, 2, 1]
    assert {cell.config.data.max_users for cell in cells[6:12]} == {30}
    assert [cell.config.clients.count for cell in cells[::6]] == [2, 2, 3, 3]
    assert [cell.peer for cell in cells[:3]] == ["popularity", None, None]
    assert cells[6].name.startswith("popularity-count-2-data-a-few-s3-")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name = ", "not valid TOML"),
        (PLAIN + f"[set]\nx = {5000 * '1'}\n", "a number of thousands of digits"),
        (PLAIN + f"[set]\nx = {5000 * '['}{5000 * ']'}\n", "lists or tables within each other"),
        (PLAIN + "[strategie]\n", "strategie: unknown key; did you mean strategies?"),
        ('recipe = "smoke"\n[strategies.a]\n', "name: "),
        (PLAIN.replace("mine", "my/own"), "name: must be a text such as 'shops'"),
        (PLAIN.replace("smoke", "smok"), "no recipe is named 'smok'"),
        ("seeds = []\n" + PLAIN, "seeds: must be a list, not empty"),
        ("seeds = [-1]\n" + PLAIN, "seeds.0: must be a whole number of at least 0"),
        ("seeds = [1, 2, 1]\n" + PLAIN, "seeds: must name each once, got [1, 2, 1]"),
        ("seeds = 3\n" + PLAIN, "seeds: must be a list"),
        ('peers = ["bert4rec"]\n' + PLAIN, "peers.0: must be one of popularity, item-knn"),
        ('peers = ["als", "als"]\n' + PLAIN, "peers: must name each once"),
        (BEGUN, "strategies: name at least one, or a peer"),
        ('reference = "fedavg"\n' + PLAIN, "reference: must be one of fellrec, got 'fedavg'"),
        ('floor = "fedavg"\n' + PLAIN, "floor: must be one of fellrec, got 'fedavg'"),
        ('ceiling = "fedavg"\n' + PLAIN, "ceiling: must be one of fellrec, got 'fedavg'"),
        ("shown = 7\n" + PLAIN, "shown: must be one of evaluation.ks, "),
        ("shown = 0\n" + PLAIN, "shown: must be a whole number of at least 1"),
        (PLAIN + "[strategies.Big]\n", "strategies.Big: take another label"),
        (PLAIN + "[strategies.als]\n", "strategies.als: take another label"),
        (PLAIN + f"[strategies.{41 * 'a'}]\n", "take another label"),
        (PLAIN + '"seed" = 1\n', "strategies.fellrec.seed: name seeds under seeds"),
        (PLAIN + "[set]\nseed = 1\n", "set.seed: name seeds under seeds"),
        (PLAIN + "[axes]\nseed = [1, 2]\n", "axes.seed: name seeds under seeds"),
        (PLAIN + "[axes.x]\na = { seed = 1 }\n", "axes.x.a.seed: name seeds under seeds"),
        (PLAIN + '"train.round" = 1\n', "[strategies.fellrec]: train.round: unknown key"),
        (PLAIN + '[set]\n"train.round" = 1\n', "[set]: train.round: unknown key"),
        (PLAIN + '[axes]\n"train.round" = [1]\n', "[axes]: train.round: unknown key"),
        (PLAIN + '[axes.x]\na = { "train.round" = 1 }\n', "[axes.x.a]: train.round: unknown key"),
        (PLAIN + '[set]\n"train.rounds" = "x"\n', "[set]: train.rounds: must be a whole number"),
        (PLAIN + '[set]\n"train.clip" = nan\n', "set.train.clip: must be a finite number, got nan"),
        (PLAIN + '"train.clip" = inf\n', "strategies.fellrec.train.clip: must be a finite number"),
        (PLAIN + '[axes]\n"train.clip" = [1.0, nan]\n', "axes.train.clip: must be a finite"),
        (PLAIN + '[axes]\n"bigrec.popularity" = [[nan]]\n', "axes.bigrec.popularity: must be a f"),
        (PLAIN + '[axes.x]\na = { "train.clip" = nan }\n', "axes.x.a.train.clip: must be a finite"),
        ('name = "mine"\n[strategies.a]\n', "recipe: is missing; it must be a text that is not"),
        (PLAIN + "[axes]\ntrain = [1]\n", "[axes]: train: "),
        (PLAIN + "[set]\ntrain.rounds = 1\n", "set.train: must be a text, a number, true or"),
        (PLAIN + "train.rounds = 1\n", "strategies.fellrec.train: must be a text, a number"),
        (PLAIN + "[set]\nwhen = 2026-01-01\n", "set.when: must be a text, a number"),
        (PLAIN + '[axes]\n"train.rounds" = []\n', "axes.train.rounds: must be a list of values"),
        (PLAIN + '[axes]\n"train.rounds" = 3\n', "axes.train.rounds: must be a list of values"),
        (PLAIN + "[axes.x]\n", "axes.x: must be a list of values"),
        (PLAIN + "[axes.x]\na = 1\n", "axes.x: must be a list of values"),
        (PLAIN + "[axes]\nx = [{ a = 1 }]\n", "axes.x: must be a list of values"),
        (BEGUN + "strategies = 3\n", "strategies: must be a table"),
        (BEGUN + "set = 3\n[strategies.a]\n", "set: must be a table"),
        (BEGUN + "axes = 3\n[strategies.a]\n", "axes: must be a table"),
        (BEGUN + "[strategies]\na = 3\n", "strategies.a: must be a table"),
        (PLAIN + '"data.max_users" = 9\n', "[strategies.fellrec]: changes [data], so that"),
        (PLAIN + '"evaluation.ks" = [10]\n', "[strategies.fellrec]: changes [evaluation], so"),
    ],
)
def test_a_mistake_is_one_line_that_says_where(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        description(tmp_path, text)
    line = str(error.value)
    assert said in line and "comparison.toml" in line and "\n" not in line


def test_a_comparison_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"no comparison is named 'nope'; there are .*ml100k"):
        Comparison.read("nope")
    for source in ("nope.toml", tmp_path, tmp_path / "nope.toml"):
        with pytest.raises(ConfigError, match="can't be read as a comparison"):
            Comparison.read(source)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="can't be read as a comparison"):
        Comparison.read("binary.toml")


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "comparison.toml").write_text(PLAIN, "utf-8-sig")
    assert Comparison.read(tmp_path).file.name == "mine"


def test_a_folder_that_compare_left_is_a_comparison(tmp_path: Path) -> None:
    written = description(tmp_path, PLAIN)
    assert Comparison.read(tmp_path) == Comparison.read(str(tmp_path)) == written


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "other"},
        {"train.threads": 3},
        {"evaluation.keep_rounds": 7},
        {"balance.alpha": 0.7, "train.weight_decay": 0.01},  # the defaults, said aloud
    ],
)
def test_what_changes_no_score_changes_no_key(changes: dict[str, object]) -> None:
    assert planned(changes).key == planned().key


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"data.max_users": 9},
        {"clients.count": 3},
        {"model.history": 49},
        {"lora.rank": 8},
        {"split.codec": "int8"},
        {"train.rounds": 1},
        {"balance.strategy": "fedavg"},
        {"evaluation.test_users": 9},
        {"model.recommender": "recformer"},
    ],
)
def test_all_else_changes_the_key(changes: dict[str, object]) -> None:
    assert planned(changes).key != planned().key


DEFAULTS = {
    f"{section}.{key}": value
    for section, settings in RunConfig().model_dump(mode="json").items()
    if isinstance(settings, dict)
    for key, value in settings.items()
}


@given(st.sets(st.sampled_from(sorted(DEFAULTS))))
def test_a_default_said_aloud_is_not_another_cell(keys: set[str]) -> None:
    """So that a setting which a later version adds leaves all keys as they are."""
    plain = Planned("x", (), RunConfig())
    said = RunConfig.from_text("", "test", None, {key: DEFAULTS[key] for key in keys})
    assert Planned("x", (), said).key == plain.key


def test_a_recommenders_own_defaults_are_none_of_anothers() -> None:
    """bigrec reads 10 items where nobody says otherwise, hllm 50: both are defaults."""
    own = {"model.recommender": "bigrec", "model.base": "smollm2"}
    key = Planned("x", (), RunConfig.from_text("", "t", None, own)).key
    for history, same in ((10, True), (50, False)):
        said = RunConfig.from_text("", "t", None, {**own, "model.history": history})
        assert (Planned("x", (), said).key == key) is same


def test_a_peer_depends_on_data_evaluation_and_seed_alone() -> None:
    changes: tuple[dict[str, object], ...] = (
        {"train.rounds": 1},
        {"balance.alpha": 0.1},
        {"model.recommender": "recformer"},
        {"lora.rank": 2},
    )
    for peer in ("popularity", "sasrec", "sasrec-federated"):
        key = planned(None, peer).key
        assert all(planned(each, peer).key == key for each in changes)
        others: tuple[dict[str, object], ...] = (
            {"data.max_users": 9},
            {"evaluation.batch_size": 9},
            {"seed": 4},
        )
        assert all(planned(each, peer).key != key for each in others)
        federated = peer == "sasrec-federated"
        assert (planned({"clients.count": 9}, peer).key != key) is federated
    keys = {planned(None, peer).key for peer in (None, "popularity", "sasrec", "als")}
    assert len(keys) == 4


def test_comparisons_share_the_cells_that_ask_for_the_same(tmp_path: Path) -> None:
    one = description(
        tmp_path, BEGUN + '[set]\n"train.rounds" = 1\n"train.threads" = 1\n[strategies.plain]\n'
    )
    (tmp_path / "other").mkdir()
    other = description(
        tmp_path / "other",
        BEGUN.replace("mine", "other") + '[strategies.own]\n[axes]\n"train.rounds" = [2, 1]\n',
    )
    (first,), (second, third) = one.cells, other.cells
    assert first.key == third.key != second.key
    assert first.name.startswith("plain-s0-") and third.name.startswith("own-rounds-1-s0-")


@given(
    label=st.from_regex(r"[a-z0-9][a-z0-9.+-]{0,39}", fullmatch=True),
    values=st.lists(st.one_of(st.text(), st.integers(), st.floats(), st.booleans()), max_size=4),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_cell_has_a_name_for_a_folder_that_ends_with_its_key(
    label: str, values: list[object], seed: int
) -> None:
    axes = tuple((f"section.key{number}", value) for number, value in enumerate(values))
    cell = Planned(label, axes, RunConfig(seed=seed))
    assert NAME.fullmatch(cell.name)
    assert KEY.fullmatch(cell.key) and cell.name.endswith(f"-{cell.key}")


@given(st.sampled_from(sorted(DEFAULTS)))
def test_the_key_of_a_changed_setting_comes_back_with_it(key: str) -> None:
    value = DEFAULTS[key]
    if isinstance(value, bool):
        changed: object = not value
    elif isinstance(value, int | float):
        changed = value + 1
    else:
        return
    try:
        config = RunConfig.from_text("", "test", None, {key: changed})
    except ConfigError:  # goes with other settings only
        return
    aside = key in ("train.threads", "evaluation.keep_rounds")
    assert (Planned("x", (), config).key == Planned("x", (), RunConfig()).key) is aside
    again = RunConfig.from_text(config.to_toml(), "again")
    assert Planned("x", (), again).key == Planned("x", (), config).key
