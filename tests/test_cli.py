"""The commands as a person runs them: what they print, leave, refuse, and how they end."""

from __future__ import annotations

import csv
import gzip
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

import fellrec
from fellrec.cli import app
from fellrec.cli.run_commands import suggestion
from fellrec.cli.shared import resumable
from fellrec.config import recipes
from fellrec.federation.deployment.credentials import make_credentials
from tests.commands import FELLREC, HEARING
from tests.toys import SHOPS, Toys

CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def recipe(toys: Toys) -> Path:
    path = toys.data.parent / "toys.toml"
    path.write_text(toys.recipe().to_toml())
    return path


@pytest.fixture(scope="module")
def trained(recipe: Path, toys: Toys, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return a finished run, and what training it printed into a pipe."""
    path = tmp_path_factory.mktemp("runs") / "run"
    command = [*FELLREC, "train", str(recipe), "--out", str(path)]
    done = subprocess.run(command, env=toys.environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return path, done.stdout


def call(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def refused(result: Result) -> str:
    """Return the one line that a refused command printed on standard error."""
    assert result.exit_code == 2, (result.output, result.exception)
    assert result.stderr.count("\n") == 1 and result.stderr.startswith("error: ")
    return result.stderr.removeprefix("error: ").strip()


def no_longer_there(folder: Path) -> bool:
    """Return whether a folder has nothing in it, hidden or not."""
    return not folder.exists() or not any(folder.iterdir())


def test_training_into_a_pipe_prints_plain_lines(trained: tuple[Path, str]) -> None:
    path, output = trained
    assert not CONTROL.search(output)
    lines = output.splitlines()
    assert [line[:9] for line in lines if line.startswith("round ")] == ["round 1/2", "round 2/2"]
    for line in lines:
        if line.startswith("round "):
            assert " -> " in line and "attention" in line and line.count("0.") >= 6
            assert all(f"{name} " in line.partition("warmth")[2] for name in ("north", "south"))
    summary = json.loads((path / "summary.json").read_text())
    overall = next(line for line in lines if line.startswith("overall"))
    assert f"{summary['overall']['ndcg@10']:.4f}" in overall.split()
    for client in summary["clients"]:
        row = next(line for line in lines if re.match(rf"{client['id']} .*0\.", line))
        assert f"{client['recall@3']:.4f}" in row.split()


def test_training_ends_with_users_of_different_clients(trained: tuple[Path, str]) -> None:
    _, output = trained
    users = re.findall(r"^(u\d+) \((\w+)\)", output, re.MULTILINE)
    assert len(users) == 3 and {client for _, client in users} == {"north", "south", "east"}
    assert output.count("held out: ") == 3 and output.count("rank ") == 3
    # A hit is marked where, and only where, the rank is one of the five that are shown.
    ranks = [int(rank) for rank in re.findall(r"rank (\d+) of 36", output)]
    assert output.count("<- hit") == sum(rank <= 5 for rank in ranks)


def test_the_command_that_training_suggests_works(trained: tuple[Path, str]) -> None:
    words = shlex.split(trained[1].rpartition("go on: ")[2])
    result = call(*words[1:], "-k", 3)
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()[2:]] == ["1", "2", "3"]
    assert words[-1] not in result.stdout  # what is in the history is never recommended


def test_no_control_code_of_a_title_is_suggested() -> None:
    odd, usual = ("c0", "Thing \x1b[31m"), ("c1", "It's a Thing")
    path = Path("a run")
    command = suggestion(path, [odd, usual])
    assert command is not None and "\x1b" not in command
    assert shlex.split(command)[-4:] == ["--client", "c1", "--history", "It's a Thing"]
    assert suggestion(path, [odd]) is None and suggestion(path, []) is None


def test_json_leaves_standard_output_to_the_summary(recipe: Path, tmp_path: Path) -> None:
    result = call("train", recipe, "--set", "train.rounds=1", "--out", tmp_path / "run", "--json")
    assert result.exit_code == 0
    assert result.stdout == (tmp_path / "run" / "summary.json").read_text()
    assert json.loads(result.stdout)["rounds"] == 1
    assert "round 1/1" in result.stderr and not CONTROL.search(result.stderr)


def test_a_dry_run_says_what_it_would_take_and_leaves_nothing(
    recipe: Path, trained: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = call("train", recipe, "--dry-run")
    assert result.exit_code == 0 and not result.stderr and not CONTROL.search(result.stdout)
    assert "27 users and 36 items; 2 rounds" in result.stdout
    cost = json.loads((trained[0] / "summary.json").read_text())["cost"]
    rows = {line[:22].strip(): line.split() for line in result.stdout.splitlines()}
    assert rows["blocks"][1:] == ["2", "1"]
    assert rows["parameters"][1:] == [
        f"{cost[f'{side}_parameters']:,}" for side in ("client", "server")
    ]
    assert all(re.search(rf"^{name} .* kB", result.stdout, re.MULTILINE) for name in SHOPS)
    assert "lengths of texts are exact" in result.stdout
    found = json.loads(call("train", recipe, "--dry-run", "--json").stdout)
    assert {key: cost[key] for key in found["cost"] if "trained" not in key}.items() <= (
        found["cost"].items()
    )
    assert no_longer_there(tmp_path)
    assert "no data set 'nowhere'" in refused(
        call("train", recipe, "--dry-run", "--set", "data.source=nowhere")
    )


def test_a_dry_run_of_a_base_that_nobody_has_here(recipe: Path) -> None:
    changes = ("model.recommender=bigrec", "model.base=llama-7b", "model.k_in=20")
    sets = [word for change in changes for word in ("--set", change)]
    output = call("train", recipe, "--dry-run", *sets).stdout
    assert re.search(r"^blocks +21 +11$", output, re.MULTILINE)
    assert "the base's tokenizer is not here" in " ".join(output.split())


def test_an_accelerator_that_is_not_there_is_one_line(recipe: Path, tmp_path: Path) -> None:
    """Which line depends on the machine: where there is one, quantising still needs a device."""
    changes = ("--set", "model.device=cpu", "--set", "model.quantize=8bit")
    line = refused(call("train", recipe, *changes, "--out", tmp_path / "run"))
    assert line.startswith('model.quantize: "8bit" needs an accelerator')
    assert no_longer_there(tmp_path)


def test_a_run_goes_by_default_into_runs(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("train", recipe, "--set", "train.rounds=1", "--set", "name=mine").exit_code == 0
    assert (tmp_path / "runs" / "mine" / "summary.json").is_file()


def test_evaluate_finds_the_scores_of_the_summary(trained: tuple[Path, str]) -> None:
    path, output = trained
    result = call("evaluate", path)
    assert result.exit_code == 0
    assert "the same as in summary.json" in result.stdout
    start = output.index("test scores")
    table = output[start : output.index("balance", start)].split()
    assert result.stdout[result.stdout.index("test scores") :].split()[: len(table)] == table


def test_evaluate_says_which_score_differs(trained: tuple[Path, str], tmp_path: Path) -> None:
    path = tmp_path / "run"
    shutil.copytree(trained[0], path)
    summary = json.loads((path / "summary.json").read_text())
    summary["clients"][1]["ndcg@10"] = 0.5
    (path / "summary.json").write_text(json.dumps(summary))
    name = summary["clients"][1]["id"]
    lines = call("evaluate", path).stdout.splitlines()
    assert [line for line in lines if "summary.json" in line] == [lines[-1]]
    assert lines[-1].startswith(f"{name}: ndcg@10 is ")
    assert lines[-1].endswith("summary.json says 0.500000")
    found = json.loads(call("evaluate", path, "--json").stdout)
    assert found["differences"] == [lines[-1]]
    assert found["overall"] == summary["overall"]


def test_recommend_for_a_user_and_for_a_history(trained: tuple[Path, str]) -> None:
    run = ("recommend", trained[0], "--client", "north", "--json", "-k", 4)
    for words in (("--user", "u0"), ("--history", "space story 0", "--history", "love story 1")):
        ranked = json.loads(call(*run, *words).stdout)
        assert [entry["rank"] for entry in ranked] == [1, 2, 3, 4]
        scores = [entry["score"] for entry in ranked]
        assert scores == sorted(scores, reverse=True)
        assert all(set(entry) == {"rank", "item", "title", "score"} for entry in ranked)
        assert not {"space story 0", "love story 1"} & {entry["title"] for entry in ranked}


def test_export_writes_an_adapter(trained: tuple[Path, str], tmp_path: Path) -> None:
    result = call("export", trained[0], "--client", "south", "--out", tmp_path / "new" / "adapter")
    assert result.exit_code == 0 and str(tmp_path / "new" / "adapter") in result.stdout
    assert (tmp_path / "new" / "adapter" / "adapter_model.safetensors").is_file()
    assert "exists already" in refused(
        call("export", trained[0], "--client", "south", "--out", tmp_path / "new" / "adapter")
    )


def write_tables(folder: Path) -> list[object]:
    (folder / "log.csv").write_text("who,what,when\na,x,1\na,y,2\nb,x,3\n")
    (folder / "things.csv").write_text("what,name,kind\nx,One,k\ny,Two,k\n")
    files = ["--interactions", folder / "log.csv", "--items", folder / "things.csv"]
    columns = ["--user", "who", "--item", "what", "--time", "when", "--title", "name"]
    return ["data", "import", *files, *columns]


def test_import_writes_what_a_recipe_can_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "new" / "shop"
    result = call(*write_tables(tmp_path), "--attribute", "kind", "--out", out)
    assert result.exit_code == 0
    assert "2 users, 2 items, 3 interactions" in result.stdout
    assert f"--set data.source={out}" in result.stdout
    monkeypatch.chdir(tmp_path)  # a data set of that name is known, too, and this is the folder
    result = call(*write_tables(tmp_path), "--out", "ml-100k")
    source = result.stdout.rpartition("data.source=")[2].strip()
    assert len(fellrec.load_dataset(source).users) == 2
    dataset = fellrec.load_dataset(out)
    assert dataset.users == ("a", "b") and dataset.catalogue.attributes["kind"] == ("k", "k")
    assert "exists already" in refused(call(*write_tables(tmp_path), "--out", out))


def test_a_refused_import_leaves_nothing(tmp_path: Path) -> None:
    words = write_tables(tmp_path)
    (tmp_path / "log.csv").write_text("who,what,when\na,x,1\na,unknown,2\n")
    before = set(tmp_path.iterdir())
    assert "line 3" in refused(call(*words, "--out", tmp_path / "new" / "shop"))
    assert set(tmp_path.iterdir()) == before


def test_import_of_a_known_form_then_load(tmp_path: Path) -> None:
    taken = [(f"u{u}", f"i{i}", 10 * u + i) for u in range(3) for i in range(3)] + [("u9", "i9", 1)]
    reviews = [{"reviewerID": u, "asin": i, "unixReviewTime": t} for u, i, t in [*taken, taken[0]]]
    products = [{"asin": f"i{i}", "title": f"Game {i}", "brand": "b"} for i in range(3)]
    files = []
    for name, records in (("interactions", reviews), ("items", products)):
        path = tmp_path / f"{name}.json.gz"
        path.write_bytes(gzip.compress("\n".join(map(json.dumps, records)).encode()))
        files += [f"--{name}", path]
    command = ["data", "import", *files, "--form", "amazon-2018", "--out", tmp_path / "games"]
    result = call(*command, "--k-core", 2)
    assert result.exit_code == 0, result.output
    assert (
        "left out repeats of what the user took earlier: 1" in result.stdout
        and "title" not in result.stdout
    )
    assert "3 users, 3 items, 9 interactions" in result.stdout
    dataset = fellrec.load_dataset(tmp_path / "games")
    assert dataset.catalogue.titles == ("Game 0", "Game 1", "Game 2")
    assert dataset.histories()[2].tolist() == [0, 1, 2]

    shutil.rmtree(tmp_path / "games")
    result = call(*command)
    assert "items that have no title: 1 (items: 1)" in result.stdout
    assert "3 users, 3 items, 9 interactions" in result.stdout
    (tmp_path / "interactions.json.gz").write_bytes(b"cut")
    shutil.rmtree(tmp_path / "games")
    assert "is not a whole gzip file" in refused(call(*command))
    assert not (tmp_path / "games").exists()


def test_import_takes_columns_for_a_table_only(tmp_path: Path) -> None:
    words = [*write_tables(tmp_path), "--out", tmp_path / "shop"]
    line = refused(call(*words, "--form", "microlens"))
    assert line == "form 'microlens' has columns of its own; leave out user, item, time, title"
    line = refused(call(*words[:6], *words[-2:], "--form", "amazon-2018", "--attribute", "kind"))
    assert line == "form 'amazon-2018' has columns of its own; leave out attribute"
    line = refused(call(*words[:8], *words[-2:]))
    assert line == "form 'table' needs the columns' names: item, time, title"
    assert "unknown form 'amazon'; choose table, amazon-2018" in refused(
        call(*words, "--form", "amazon")
    )
    assert "no user and item have 4 interactions" in refused(call(*words, "--k-core", 4))
    assert not (tmp_path / "shop").exists()
    assert call(*words, "--k-core", 1).exit_code == 0


def test_lists(toys: Toys) -> None:
    listed = call("data", "list").stdout
    assert all(name in listed for name in ("ml-100k", "minilm", "91.6 MB", "GroupLens", "https://"))
    assert re.search(r"ml-100k +data set +2\.1 MB +no", listed)
    shown = call("recipes").stdout
    assert all(re.search(rf"^{name} +\w", shown, re.MULTILINE) for name in recipes())
    assert call("--version").stdout == f"fellrec {fellrec.__version__}\n"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["train.round=2"], "train.round: unknown key; did you mean train.rounds?"),
        (["train.rounds=x"], "train.rounds: must be a whole number"),
        (["oops"], "section.key=value"),
        (["model.k_in=2", "model.k_out=2"], "need 4 blocks, the base has 3"),
        (["clients.partition=random", "clients.count=99"], "99 clients for 27 users"),
        (["clients.column=age"], "no user column 'age'"),
        (["data.source=nowhere"], "no data set 'nowhere'"),
        (["model.base=nowhere"], "no model 'nowhere'"),
        (["model.recommender=oracle"], "oracle"),
    ],
)
def test_a_recipe_that_cannot_run_is_one_line_and_leaves_nothing(
    recipe: Path, tmp_path: Path, changes: list[str], said: str
) -> None:
    sets = [word for change in changes for word in ("--set", change)]
    assert said in refused(call("train", recipe, *sets, "--out", tmp_path / "run"))
    assert no_longer_there(tmp_path)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", "{}"),
        ("config.json", '{"model_type": "gpt2"}'),
        ("model.safetensors", "short"),
        ("tokenizer.json", "{}"),
        ("tokenizer.json", '{"version": "1.0"}'),
    ],
)
def test_a_damaged_model_is_one_line_and_leaves_nothing(
    recipe: Path, toys: Toys, tmp_path: Path, file: str, content: str
) -> None:
    shutil.copytree(toys.encoder, tmp_path / "encoder")
    (tmp_path / "encoder" / file).write_text(content)
    changes = ("--set", f"model.item_encoder={tmp_path / 'encoder'}")
    line = refused(call("train", recipe, *changes, "--out", tmp_path / "runs" / "run"))
    assert "encoder" in line or "gpt2" in line
    assert no_longer_there(tmp_path / "runs")


def test_a_damaged_cache_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cache" / "datasets" / "ml-100k"
    folder.mkdir(parents=True)
    for ending in ("inter", "item", "user"):
        (folder / f"ml-100k.{ending}").write_text("not it\n")
    monkeypatch.setenv("FELLREC_CACHE", str(tmp_path / "cache"))
    line = refused(call("train", "smoke", "--out", tmp_path / "runs" / "run"))
    assert "ml-100k.inter" in line and "damaged" in line
    assert no_longer_there(tmp_path / "runs")


@pytest.mark.integration
def test_no_network_and_no_cache_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "wheels").mkdir()
    # A proxy that nothing listens at, and a pip that may look into an empty folder only.
    proxies = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    pip = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path / "wheels")}
    cache = {"FELLREC_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [*FELLREC, "train", "smoke", "--out", str(tmp_path / "runs" / "run")],
        env={**os.environ, **proxies, **pip, **cache, "no_proxy": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ml-100k: no source could be used: ")
    assert done.stderr.count("\n") == 1
    assert no_longer_there(tmp_path / "runs")
    assert no_longer_there(tmp_path / "cache" / "datasets")


def test_run_folders_that_cannot_be_used(
    recipe: Path, trained: tuple[Path, str], tmp_path: Path
) -> None:
    path = trained[0]
    before = (path / "summary.json").read_bytes()
    assert "exists already" in refused(call("train", recipe, "--out", path))
    assert (path / "summary.json").read_bytes() == before
    changed = ("--set", "train.rounds=3", "--out", path, "--resume")
    assert "train.rounds differs" in refused(call("train", recipe, *changed))
    assert "no run to resume" in refused(call("train", recipe, "--out", tmp_path / "a", "--resume"))
    assert not (tmp_path / "a").exists()
    assert "not a run directory" in refused(call("evaluate", tmp_path))
    assert "a: no such folder" in refused(call("evaluate", tmp_path / "a"))
    shutil.copytree(path, tmp_path / "run")
    (tmp_path / "run" / "clients" / "north" / "best_adapter.safetensors").write_text("short")
    assert "best_adapter.safetensors" in refused(call("evaluate", tmp_path / "run"))
    out = ("--client", "north", "--out", tmp_path / "new" / "adapter")
    assert "best_adapter.safetensors" in refused(call("export", tmp_path / "run", *out))
    assert not (tmp_path / "new").exists()
    for summary in ("{}", "[]"):
        (tmp_path / "run" / "summary.json").write_text(summary)
        assert "summary.json: not a run's summary" in refused(call("evaluate", tmp_path / "run"))
    (tmp_path / "run" / "summary.json").unlink()
    assert "not finished" in refused(call("evaluate", tmp_path / "run"))
    (tmp_path / "run" / "config.toml").write_text("[train")
    (tmp_path / "run" / "summary.json").write_text("{}")
    assert str(tmp_path / "run" / "config.toml") in refused(call("evaluate", tmp_path / "run"))


@pytest.mark.parametrize("end", ["", ".toml"])
def test_names_that_are_too_long_are_one_line(recipe: Path, tmp_path: Path, end: str) -> None:
    long = tmp_path / (300 * "a" + end)
    commands = [
        ("train", recipe, "--out", long),
        ("train", long),
        ("report", long),
        ("evaluate", long),
        ("compare", long),
        ("data", "divide", recipe, "--out", long),
    ]
    for words in commands:
        assert "too long" in refused(call(*words))
    assert no_longer_there(tmp_path)


def test_recommend_refuses_what_it_does_not_know(trained: tuple[Path, str]) -> None:
    run = ("recommend", trained[0], "--client", "north")
    assert "'space story 9'" in refused(call(*run, "--history", "space story nine"))
    assert "no user 'u1'" in refused(call(*run, "--user", "u1"))  # who is another client's
    assert "north" in refused(call("recommend", trained[0], "--client", "west", "--user", "u0"))
    assert "either" in refused(call(*run))
    assert "either" in refused(call(*run, "--user", "u0", "--history", "space story 0"))


def test_an_untrained_run_reports_and_resumes(recipe: Path, tmp_path: Path) -> None:
    words = ("train", recipe, "--set", "train.rounds=0", "--out", tmp_path / "run")
    result = call(*words)
    assert result.exit_code == 0, result.output
    assert "overall" in result.stdout and "round " not in result.stdout
    assert call(*words, "--resume", "--json").exit_code == 0


def test_results_are_kept_and_written_down(trained: tuple[Path, str], tmp_path: Path) -> None:
    folder = ("--results", tmp_path / "results")
    assert "no results yet" in refused(call("results", "table", *folder))
    result = call("results", "add", trained[0], "--name", "mine", *folder)
    assert result.exit_code == 0, result.output
    assert re.fullmatch(r"kept \S*/mine, beside popularity-toys-[0-9a-f]{6}\n", result.stdout)
    assert "exists already" in refused(
        call("results", "add", trained[0], "--name", "mine", *folder)
    )
    assert call("results", "add", trained[0], *folder).exit_code == 0  # by the run's own name
    assert call("results", "add", trained[0], "--replace", *folder).exit_code == 0
    shown = call("results", "table", *folder)
    assert (
        shown.exit_code == 0 and "| `mine` | 27 |" in shown.stdout and "| `run` |" in shown.stdout
    )
    page = tmp_path / "new" / "results.md"
    assert f"wrote {page}" in call("results", "table", "--out", page, *folder).stdout
    assert page.read_text() == shown.stdout
    assert "can't be written" in refused(call("results", "table", "--out", tmp_path, *folder))
    (tmp_path / "results" / "mine" / "scores.csv").write_text("")
    assert "was changed" in refused(call("results", "table", *folder))


def test_results_that_are_missing_are_made(recipe: Path, tmp_path: Path) -> None:
    folders = ("--runs", tmp_path / "runs", "--results", tmp_path / "results")
    result = call("results", "run", recipe, *folders)
    assert result.exit_code == 0, result.output
    assert [line for line in result.stdout.splitlines() if line.startswith("kept ")] == [
        f"kept {tmp_path}/results/toys-untrained",
        f"kept {tmp_path}/results/toys",
    ]
    again = call("results", "run", recipe, *folders)
    assert again.stdout.splitlines() == [
        f"{tmp_path}/results/toys-untrained stands",
        f"{tmp_path}/results/toys stands",
    ]
    # A run that stopped half-way goes on, and one that ended is only kept.
    shutil.rmtree(tmp_path / "results" / "toys")
    (tmp_path / "runs" / "toys" / "summary.json").unlink()
    result = call("results", "run", recipe, *folders)
    assert "round " not in result.stdout and result.stdout.endswith("results/toys\n")
    shutil.rmtree(tmp_path / "results" / "toys")
    result = call("results", "run", recipe, *folders)
    assert result.stdout.splitlines()[-1] == f"kept {tmp_path}/results/toys"
    assert "| `toys` |" in call("results", "table", *folders[2:]).stdout


def test_vouching_says_what_came_out(trained: tuple[Path, str], tmp_path: Path) -> None:
    results, runs = tmp_path / "results", tmp_path / "runs"
    folders = ("--runs", runs, "--results", results)
    assert call("results", "add", trained[0], "--name", "mine", *folders[2:]).exit_code == 0
    assert "was made by today's code" in refused(call("results", "vouch", "mine", *folders))
    origin = json.loads((results / "mine" / "origin.json").read_text())
    (today,), origin["code"] = origin["code"], [16 * "0"]
    (results / "mine" / "origin.json").write_text(json.dumps(origin))
    shutil.copytree(trained[0], runs / "vouching" / f"mine-{today}")
    result = call("results", "vouch", "mine", *folders)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"mine comes out the same\nwrote {results}/same.json\n"
    (results / "same.json").write_text("[]")
    (runs / "vouching" / f"mine-{today}" / "metrics.jsonl").write_text("")
    said = refused(call("results", "vouch", "mine", *folders))
    assert f"{results}/mine: rounds.jsonl, round 0, client " in said
    assert (results / "same.json").read_text() == "[]"


@pytest.mark.integration
def test_compare_makes_cells_shows_them_and_says_what_failed(recipe: Path, tmp_path: Path) -> None:
    """Two real workers at a time: a peer, and a strategy that the data refuse."""
    comparison = tmp_path / "mine.toml"
    comparison.write_text(
        f'name = "mine"\nrecipe = "{recipe}"\npeers = ["popularity"]\n'
        '[strategies.many]\n"clients.partition" = "random"\n"clients.count" = 99\n'
    )
    folders = ("--runs", tmp_path / "runs", "--results", tmp_path / "results")
    command = ("compare", comparison, *folders)
    result = call(*command, "--jobs", 2)
    assert result.exit_code == 0, (result.output, result.exception)
    assert not result.stderr and not CONTROL.search(result.stdout)
    ended = sorted(line[8:] for line in result.stdout.splitlines()[:2])
    assert ended[0].startswith("many seed 0 failed: ") and "99 clients for 27 users" in ended[0]
    assert ended[1] == "popularity seed 0 is done"
    assert re.search(
        r"^popularity +1 +0\.\d{4} +0\.\d{4} +0\.\d{3} … ", result.stdout, re.MULTILINE
    )
    assert re.search(r"^many +0 of 1 +– +–", result.stdout, re.MULTILINE)
    assert "many, seed 0, failed: 99 clients" in result.stdout
    # Nothing is made a second time, and the figures are those of the file.
    again = call(*command, "--json")
    assert again.exit_code == 0 and " of " not in again.stderr
    rows = json.loads(again.stdout)
    with (tmp_path / "runs" / "mine" / "comparison.csv").open() as file:
        assert rows == list(csv.DictReader(file))
    assert {row["strategy"] for row in rows if row["figure"] == "score"} == {"popularity"}


def test_a_comparison_that_cannot_be_made_is_one_line(recipe: Path, tmp_path: Path) -> None:
    comparison = tmp_path / "mine.toml"
    comparison.write_text(f'name = "mine"\nrecipe = "{recipe}"\n[strategies.plain]\n')
    folders = ("--runs", tmp_path / "runs", "--results", tmp_path / "results")
    assert "no comparison is named 'nope'" in refused(call("compare", "nope", *folders))
    line = refused(call("compare", comparison, *folders, "--only", "other"))
    assert line == "--only other: there is no such row; there are plain"
    shown = call("compare", comparison, *folders, "--only", "other", "--as-they-are")
    assert refused(shown) == line
    with comparison.open("a") as file:
        file.write('"train.round" = 1\n')
    line = refused(call("compare", comparison, *folders))
    assert line.startswith("mine.toml: [strategies.plain]: train.round: unknown key")
    assert not (tmp_path / "runs").exists() and not (tmp_path / "results").exists()


def test_a_trunks_folder_is_looked_at_before_the_weights(recipe: Path, tmp_path: Path) -> None:
    keys = make_credentials(tmp_path / "keys", ["north"], days=1)
    pair, authority = keys.trunk, keys.authority
    files = ("--client-ca", authority, "--tls-cert", pair.certificate, "--tls-key", pair.key)
    command = ("trunk", "--config", recipe, "--listen", "127.0.0.1:0", *files)
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "trunk"):
        line = refused(call(*command, "--set", "model.base=nowhere", "--folder", folder))
        assert line.startswith(f"--folder {folder}: can't be made (")


@pytest.mark.parametrize(
    "words",
    [["train"], ["nosuch"], ["train", "smoke", "--nosuch"], ["recommend", "r", "--user", "u"]],
)
def test_wrong_usage_ends_with_2(words: list[str]) -> None:
    assert call(*words).exit_code == 2


def interrupted(toys: Toys, *words: object) -> list[str]:
    """Press Ctrl-C once a command has ended a round; return the words that it goes on with."""
    process = subprocess.Popen(
        [*HEARING, *map(str, words)],
        env=toys.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stderr is not None
    for line in process.stdout:
        if line.startswith("round 1/"):
            process.send_signal(signal.SIGINT)
            break
    process.stdout.read()
    said = process.stderr.read()
    assert process.wait() == 130, said
    assert said.count("\n") == 1 and said.startswith("interrupted; go on with: fellrec ")
    return shlex.split(said.partition("go on with: fellrec ")[2])


@pytest.mark.integration
def test_an_interrupted_run_says_how_it_goes_on(recipe: Path, toys: Toys, tmp_path: Path) -> None:
    path = tmp_path / "a run"  # the command has to quote this
    words = interrupted(toys, "train", recipe, "--set", "train.rounds=6", "--out", path)
    assert words[0] == "train"
    result = call(*words)
    assert result.exit_code == 0
    assert "round 1/6" not in result.stdout and "round 6/6" in result.stdout
    assert json.loads((path / "summary.json").read_text())["rounds"] == 6


@pytest.mark.integration
def test_interrupted_results_say_how_they_go_on(toys: Toys, tmp_path: Path) -> None:
    recipe = tmp_path / "six.toml"
    recipe.write_text(toys.recipe({"train.rounds": 6, "name": "six"}).to_toml())
    folders = ("--runs", tmp_path / "runs", "--results", tmp_path / "results")
    words = interrupted(toys, "results", "run", recipe, *folders)
    assert words == ["results", "run", *map(str, (recipe, *folders))]
    result = call(*words)
    assert result.exit_code == 0
    assert "round 1/6" not in result.stdout and "round 6/6" in result.stdout
    assert result.stdout.splitlines()[-1] == f"kept {tmp_path}/results/six"


def test_an_interrupt_that_a_library_makes_something_else_of_is_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As safetensors does, which asks a storage for its shape when it is interrupted."""
    for handler, ends in ((signal.default_int_handler, True), (signal.SIG_IGN, False)):
        usual = signal.signal(signal.SIGINT, handler)
        try:
            with (
                pytest.raises(typer.Exit if ends else ValueError),
                resumable(tmp_path / "none", "again"),
            ):
                try:
                    os.kill(os.getpid(), signal.SIGINT)
                    time.sleep(0.01)
                except KeyboardInterrupt:
                    pass
                raise ValueError("could not determine the shape")
            assert signal.getsignal(signal.SIGINT) is handler
        finally:
            signal.signal(signal.SIGINT, usual)
        assert bool(capsys.readouterr().err) == ends
    with pytest.raises(ValueError, match="its own"), resumable(tmp_path / "none", "again") as noted:
        noted.wait()
        noted.arrived = 1  # one that waits was raised nowhere yet
        raise ValueError("its own")


@pytest.mark.integration
@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a pseudo-terminal")
def test_training_in_a_terminal_draws_bars_that_fit(
    recipe: Path, toys: Toys, tmp_path: Path
) -> None:
    main, terminal = os.openpty()
    size = {"COLUMNS": "80", "LINES": "50", "TERM": "xterm-256color"}
    process = subprocess.Popen(
        [*FELLREC, "train", str(recipe), "--out", str(tmp_path / "run")],
        env={**toys.environment(), **size},
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)
    shown = b""
    try:
        while chunk := os.read(main, 65536):
            shown += chunk
    except OSError:  # Linux says so when the other end is closed
        pass
    os.close(main)
    assert process.wait() == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert "━" in text and "elapsed" in text and "north training" in text
    assert "overall" in text and "held out" in text
    # The command to copy is on one line whatever the width.
    lines = [line for line in re.split(r"[\r\n]+", text) if str(tmp_path) not in line]
    assert max(map(len, lines)) <= 80


def test_help_loads_nothing_heavy() -> None:
    heavy = ["torch", "transformers", "peft", "pandas", "pyarrow", "sklearn", "scipy", "numpy"]
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom fellrec.cli import app\n"
        "assert CliRunner().invoke(app, ['train', '--help']).exit_code == 0\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
