"""Configurations: defaults, recipes, round trips, and one helpful line for every mistake."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from fellrec.config import RunConfig, parse_override, recipes
from fellrec.errors import ConfigError

PAPER = ("bigrec", "recformer")


def fields(model: type[BaseModel], prefix: str = "") -> list[tuple[str, Any]]:
    found = []
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            found += fields(inner, f"{prefix}{name}.")
        else:
            found.append((prefix + name, field))
    return found


def test_shipped_recipes_are_valid_and_named_after_themselves() -> None:
    assert recipes() == [
        "bigrec-ml100k",
        "demo",
        "ml100k",
        "paper/bigrec-games",
        "paper/recformer-games",
        "recformer-ml100k",
        "smoke",
    ]
    for name in recipes():
        assert RunConfig.from_toml(name).name == name.replace("/", "-")


def test_shipped_recipes_are_packed() -> None:
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
    packed = project["tool"]["setuptools"]["package-data"]["fellrec"]
    for name in recipes():
        assert any(Path(f"recipes/{name}.toml").match(pattern) for pattern in packed), name


def test_the_papers_recipes_are_the_references_settings() -> None:
    """METHOD, section 1 and 2."""
    bigrec, recformer = (RunConfig.from_toml(f"paper/{name}-games") for name in PAPER)
    for config, beta, rate, cut in (
        (bigrec, 1.0, 1e-4, (20, 1)),
        (recformer, 5.0, 5e-5, (10, 1)),
    ):
        assert (config.model.k_in, config.model.k_out) == cut
        assert (config.balance.alpha, config.balance.beta) == (0.7, beta)
        assert config.balance.heating == "reference"
        assert config.train.learning_rate == rate
        assert config.clients.count == 5
        lora = config.lora
        assert (lora.rank, lora.alpha, lora.dropout) == (8, 16, 0.05)
        assert lora.targets == ("query-value",)
        assert config.model.history == 10


@pytest.mark.parametrize("name", recipes())
def test_a_recipe_written_out_reads_as_itself(name: str, tmp_path: Path) -> None:
    config = RunConfig.from_toml(name)
    path = tmp_path / "config.toml"
    path.write_text(config.to_toml())
    assert RunConfig.from_toml(path) == config
    assert RunConfig.from_toml(str(path)).to_toml() == config.to_toml()


@pytest.mark.parametrize(
    ("recommender", "base", "history"),
    [("hllm", "minilm", 50), ("bigrec", "smollm2", 10), ("recformer", "minilm", 50)],
)
@pytest.mark.parametrize("name", ["demo", "ml100k", "bigrec-ml100k"])
def test_another_recommender_is_the_only_change(
    name: str, recommender: str, base: str, history: int
) -> None:
    config = RunConfig.from_toml(name, {"model.recommender": recommender})
    assert (config.model.base, config.model.history) == (base, history)


def test_every_key_is_written_out() -> None:
    text = RunConfig().to_toml()
    for key, _ in fields(RunConfig):
        assert f"{key.rpartition('.')[2]} = " in text


def test_every_key_is_explained() -> None:
    assert [key for key, field in fields(RunConfig) if not field.description] == []


@given(
    rounds=st.integers(1, 10**6),
    rate=st.floats(1e-300, 1e300),
    ks=st.lists(st.integers(1, 1000), min_size=1),
    source=st.text(min_size=1),
    freeze=st.booleans(),
)
def test_values_survive_the_file(
    rounds: int, rate: float, ks: list[int], source: str, freeze: bool
) -> None:
    overrides = {
        "train.rounds": rounds,
        "train.learning_rate": rate,
        "evaluation.ks": ks,
        "evaluation.metric": f"recall@{ks[-1]}",
        "data.source": source,
        "lora.freeze_a": freeze,
    }
    config = RunConfig.from_text("", "test.toml", overrides=overrides)
    assert config.train.rounds == rounds
    assert config.train.learning_rate == rate
    assert config.evaluation.ks == tuple(ks)
    assert RunConfig.from_text(config.to_toml(), "again.toml") == config


def test_overrides_replace_the_files_values_and_leave_the_rest() -> None:
    plain = RunConfig.from_toml("demo")
    changed = RunConfig.from_toml("demo", {"train.rounds": 9, "name": "mine"})
    assert (changed.train.rounds, changed.name) == (9, "mine")
    assert changed.train.model_copy(update={"rounds": plain.train.rounds}) == plain.train


def test_a_file_without_a_name_lends_its_own(tmp_path: Path) -> None:
    path = tmp_path / "my shops.toml"
    path.write_text("seed = 4")
    assert RunConfig.from_toml(path).name == "my-shops"


def test_configurations_do_not_change() -> None:
    config = RunConfig()
    with pytest.raises(ValidationError):
        config.train.rounds = 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[train]\nrounds = 'x'",
            "train.rounds: must be a whole number of at least 0, got 'x' (my.toml)",
        ),
        ("[train]\nrounds = 2.0", "train.rounds: must be a whole number of at least 0, got 2.0"),
        ("[train]\nrounds = true", "train.rounds: must be a whole number of at least 0, got True"),
        ("[train]\nlearning_rate = 0", "train.learning_rate: must be a number above 0, got 0"),
        ("[train]\nclip = nan", "train.clip: must be a number of at least 0, got nan"),
        ("[lora]\ndropout = 1.0", "must be a number of at least 0 and below 1, got 1.0"),
        ("[lora]\nfreeze_a = 1", "lora.freeze_a: must be true or false, got 1"),
        ("seed = -1", "seed: must be a whole number of at least 0 and at most 4294967295, got -1"),
        (
            "[balance]\nstrategy = 'avg'",
            "balance.strategy: must be one of fellrec, fedavg, fedprox, ditto, fedamp, local, "
            "got 'avg'",
        ),
        ("[model]\nbase = ''", "model.base: must be a text that is not empty, got ''"),
        ("[evaluation]\nks = 10", "ks: must be a list, not empty, each a whole number"),
        ("[evaluation]\nks = []", "ks: must be a list, not empty"),
        ("[evaluation]\nks = [10, 0]", "evaluation.ks.1: must be a whole number of at least 1"),
        ("[evaluation]\nmetric = 'mrr'", "must be a text such as 'ndcg@10' or 'recall@5'"),
        ("name = '../up'", "name: must be a text such as"),
        ("train = 3", "train: must be a table, got 3 (my.toml)"),
        ("[train]\nround = 2", "train.round: unknown key; did you mean train.rounds? (my.toml)"),
        ("[train]\ncodec = 'fp32'", "train.codec: unknown key; did you mean split.codec?"),
        ("[lora]\nlocal_epoch = 1", "lora.local_epoch: unknown key; did you mean train.local_epoc"),
        ("[balance]\nrank = 8", "balance.rank: unknown key; did you mean lora.rank?"),
        ("[train]\nlr = 1.0", "train.lr: unknown key; there are rounds, local_epochs, "),
        ("[lora]\ndrop_out = 0.1", "lora.drop_out: unknown key; did you mean lora.dropout?"),
        ("[trian]\nrounds = 2", "trian: unknown key; did you mean train?"),
        ("[split]\nzzz = 2", "split.zzz: unknown key; there are codec, max_frame_mib"),
        ("[split\n", "my.toml: not valid TOML: "),
        ("[train]\nthreads = 3000000000", "of at least 0 and at most 1024, got 3000000000 (my"),
        ("[lora]\nrank = 1000000000000", "lora.rank: must be a whole number of at least 1 and at"),
        (f"[evaluation]\nks = [10, 1{20 * '0'}]", "ks.1: must be a whole number of at least 1 and"),
        (f"[evaluation]\nmetric = 'ndcg@{5000 * '1'}'", "metric: must be a text such as"),
        # What no setting may pass is said to who passes it alone.
        (
            f"[train]\nrounds = 1{30 * '0'}",
            "train.rounds: must be a whole number of at least 0 and",
        ),
        (f"[train]\nrounds = {5000 * '1'}", "my.toml: a number of thousands of digits"),
        (f"[train]\nrounds = 0x{5000 * 'f'}", "my.toml: a number of thousands of digits"),
        (f"[evaluation]\nks = {5000 * '['}{5000 * ']'}", "my.toml: lists or tables within each"),
        (f"[train]\nrounds.{5000 * 'a.'}a = 1", "my.toml: lists or tables within each other, too"),
    ],
)
def test_each_mistake_is_one_line_that_names_it(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RunConfig.from_text(text, "my.toml")
    assert message in str(caught.value)
    assert "my.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"evaluation.metric": "ndcg@7"}, "must be one of evaluation.ks [5, 10, 20], got 'ndcg@7'"),
        ({"clients.partition": "column"}, 'must name a column for the partition "column"'),
        ({"clients.per_round": 6}, "must be at most clients.count, 5, got 6"),
        ({"balance.merge": "product", "lora.freeze_a": True}, "lora.freeze_a forbids"),
        ({"train.micro_batches": 17}, "must be at most train.batch_size, 16, got 17"),
        ({"robust.clip": 0.5}, "robust.clip: must be 0 or at least 1, got 0.5"),
        ({"robust.refuse": 2.0}, "robust.refuse: must be 0 or above 3.0, got 2.0"),
        ({"robust.refuse": 0.5, "robust.clip": 0.0}, "robust.refuse: must be 0 or above 1"),
        (
            {"robust.rule": "krum", "clients.count": 4},
            'robust.rule: "krum" needs 5 clients in a round, got 4; take more clients',
        ),
        ({"robust.rule": "trimmed-mean", "robust.malicious": 3}, "needs 7 clients in a round, got"),
        ({"robust.rule": "median", "clients.per_round": 2}, "needs 3 clients in a round, got 2"),
        (
            {"robust.rule": "median", "balance.merge": "product"},
            'balance.merge = "product" does not mix; use "krum"',
        ),
    ],
)
def test_values_that_do_not_go_together_are_refused(
    overrides: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        RunConfig.from_toml("demo", overrides)
    assert message in str(caught.value)


def test_values_that_do_go_together_are_not() -> None:
    RunConfig.from_toml("demo", {"clients.partition": "user", "clients.per_round": 50})
    RunConfig.from_toml("demo", {"clients.partition": "column", "clients.column": "age"})
    RunConfig.from_toml("demo", {"clients.per_round": 5, "lora.freeze_a": True})
    RunConfig.from_toml("demo", {"balance.merge": "product", "train.micro_batches": 16})
    RunConfig.from_toml("demo", {"balance.merge": "product", "robust.rule": "krum"})
    RunConfig.from_toml("demo", {"robust.clip": 0.0, "robust.refuse": 0.0})
    RunConfig.from_toml("demo", {"robust.clip": 1.0, "robust.refuse": 2.0})
    # How many clients there are is known with the data.
    RunConfig.from_toml("demo", {"clients.partition": "user", "robust.rule": "krum"})


@pytest.mark.parametrize("key", ["train.round", "a.b.c", "rounds", "evaluation.ks.0"])
def test_a_wrong_override_is_called_one(key: str) -> None:
    with pytest.raises(ConfigError, match=r"\(override\)$"):
        RunConfig.from_toml("demo", {key: -1})


def test_unknown_recipes_and_files() -> None:
    with pytest.raises(
        ConfigError, match=r"no recipe is named 'dmo'; there are .*, demo, ml100k, "
    ):
        RunConfig.from_toml("dmo")
    with pytest.raises(ConfigError, match=r"nowhere\.toml: can't be read \(No such file"):
        RunConfig.from_toml("nowhere.toml")
    with pytest.raises(ConfigError, match="can't be read"):
        RunConfig.from_toml(Path("demo"))


def test_a_wrong_file_is_named_with_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "run" / "config.toml"
    path.parent.mkdir()
    for text in ("[train", "[train]\nrounds = -1"):
        path.write_text(text)
        with pytest.raises(ConfigError, match=re.escape(str(path))):
            RunConfig.from_toml(path)


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "marked.toml"
    path.write_text("seed = 4", "utf-8-sig")
    assert RunConfig.from_toml(path).seed == 4


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(b"name = '\xff'")
    with pytest.raises(ConfigError, match="not UTF-8"):
        RunConfig.from_toml(path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train.rounds=2", ("train.rounds", 2)),
        (" train.clip = 0.5 ", ("train.clip", 0.5)),
        ("lora.freeze_a=true", ("lora.freeze_a", True)),
        ("evaluation.ks=[1, 2]", ("evaluation.ks", [1, 2])),
        ("data.source=ml-100k", ("data.source", "ml-100k")),
        ("data.source='42'", ("data.source", "42")),
        ("data.source=a=b", ("data.source", "a=b")),
        ("data.source=1\nseed = 2", ("data.source", "1\nseed = 2")),
        ("model.base=/some/folder", ("model.base", "/some/folder")),
    ],
)
def test_overrides_are_written_as_in_toml(text: str, expected: tuple[str, object]) -> None:
    assert parse_override(text) == expected


@pytest.mark.parametrize("text", ["train.rounds", "=2", "train.rounds=", ""])
def test_overrides_without_a_key_or_a_value(text: str) -> None:
    with pytest.raises(ConfigError, match=r"write section\.key=value"):
        parse_override(text)


@pytest.mark.parametrize("value", [5000 * "1", 5000 * "[" + 5000 * "]"], ids=["digits", "brackets"])
def test_overrides_that_cannot_be_handled(value: str) -> None:
    with pytest.raises(ConfigError, match=r"^train\.rounds: .*; write "):
        parse_override(f"train.rounds={value}")
