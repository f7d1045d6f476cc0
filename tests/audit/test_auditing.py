"""An audit of toy runs: a head that is known hides nothing, and what is private helps."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fellrec.audit import Audit, audit
from fellrec.audit.wiretap import histories_seen, tapped
from fellrec.cli import app
from fellrec.errors import ConfigError
from fellrec.federation.runs import train
from fellrec.federation.turns import turn
from fellrec.serving.rescore import rescore
from fellrec.serving.run import Run, load_run
from tests.federation.crashes import differences, outcome
from tests.toys import ITEMS, USERS, Toys

pytestmark = pytest.mark.usefixtures("own_cache")


def made(toys: Toys, out: Path, overrides: dict[str, object] | None = None) -> Run:
    return load_run(train(toys.recipe({"train.rounds": 1, **(overrides or {})}), out).path)


@pytest.fixture(scope="module")
def kept(toys: Toys, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FELLREC_CACHE", str(toys.cache))
        return made(toys, tmp_path_factory.mktemp("kept") / "run").path


@pytest.fixture
def plain(kept: Path, tmp_path: Path) -> Run:
    """A run of one plain round, of which no audit is there yet."""
    return load_run(shutil.copytree(kept, tmp_path / "run"))


def attacked(
    run: Run, users: int = 9, most: int = 0, lessons: int = 1, *, uploads: bool = False
) -> Audit:
    """Audit some users, without much of an inverter: that takes most of a toy's time."""
    return audit(run, users=users, most=most, lessons=lessons, uploads=uploads)


def found(done: Audit) -> dict[tuple[str, str], float]:
    return {(each.attack, each.knows): each.recovered.mean for each in done.inversion}


@pytest.mark.parametrize("k_in", [0, 1, 2])
def test_a_causal_head_that_is_known_hides_nothing(toys: Toys, tmp_path: Path, k_in: int) -> None:
    run = made(toys, tmp_path / "run", {"model.k_in": k_in, "model.k_out": 0})
    done = attacked(run, users=0)
    assert done.users == USERS and done.k_in == k_in
    shares = found(done)
    assert shares["search", "adapters"] == 1
    (exact,) = [e for e in done.inversion if (e.attack, e.knows) == ("search", "adapters")]
    assert exact.placed == 1
    # Who knows less finds no more, and who doesn't search finds no more than who does.
    assert shares["search", "base"] <= 1
    assert shares["nearest", "adapters"] <= shares["search", "adapters"]
    assert 0 < done.chance.mean < 1


def test_untrained_tensors_are_known_to_everybody(toys: Toys, tmp_path: Path) -> None:
    """With a learning rate of next to nothing, base and adapters are one, private or not."""
    overrides: dict[str, object] = {"train.learning_rate": 1e-12, "model.item_residual": "local"}
    shares = found(attacked(made(toys, tmp_path / "run", overrides)))
    assert shares["search", "base"] == shares["search", "adapters"] == 1
    assert shares["nearest", "base"] == shares["nearest", "adapters"]


def test_a_private_residual_hides_something(toys: Toys, tmp_path: Path) -> None:
    """What the server does not know and is large makes guesses wrong."""
    overrides: dict[str, object] = {"model.item_residual": "local", "train.learning_rate": 0.3}
    run = made(toys, tmp_path / "run", overrides)
    done = attacked(run)
    assert done.item_residual == "local"
    assert found(done)["search", "adapters"] < 0.9


def test_more_candidates_find_more(plain: Run) -> None:
    few, some, every = (
        found(attacked(plain, most=most))["search", "adapters"] for most in (1, 9, ITEMS + 5)
    )
    assert few < some < every == 1


def test_a_text_of_which_a_causal_head_is_known_is_read_and_so_is_its_response(
    toys: Toys, tmp_path: Path
) -> None:
    """BIGRec's prompt at any depth; the response that is learned is an input as well."""
    for k_in in (0, 2):
        own = _texts(toys, "bigrec", k_in) | {"model.k_out": 0}
        run = made(toys, tmp_path / f"run{k_in}", own)
        done = attacked(run, users=3)
        (known,) = [e for e in done.inversion if (e.attack, e.knows) == ("search", "adapters")]
        assert known.recovered.mean == known.placed == known.token_accuracy == known.rouge_l == 1
        (reading,) = [e for e in done.labels if e.knows == "adapters"]
        # Behind two blocks the masks of LoRA's dropout, which the search leaves out, blur the fit.
        assert reading.attack == "reading" and reading.ten.mean > 0.5 + 0.5 * (k_in == 0) - 1e-9
        assert not done.touched and not done.membership


@pytest.mark.parametrize("k_in", [0, 1])
def test_a_text_that_is_read_both_ways_is_found_as_a_whole(
    toys: Toys, tmp_path: Path, k_in: int
) -> None:
    run = made(toys, tmp_path / "run", _texts(toys, "recformer", k_in))
    done = attacked(run, uploads=True)
    shares = found(done)
    assert shares["search", "adapters"] > 0.99
    assert shares["nearest", "adapters"] <= shares["search", "adapters"]
    assert told(done)["gradient", "adapters"] == 1
    assert done.item_residual == "none"
    assert [each.attack for each in done.touched] == ["leaning"]


def _texts(toys: Toys, recommender: str, k_in: int) -> dict[str, object]:
    base = toys.lm if recommender == "bigrec" else toys.bert
    return {"model.recommender": recommender, "model.k_in": k_in, "model.base": str(base)}


def test_an_inverter_learns_to_read(plain: Run) -> None:
    """Taught on histories that it made up itself, it reads others' better than the nearest item."""
    before, after = (found(attacked(plain, most=1, lessons=count)) for count in (1, 60))
    taught = after["inverter", "base"]
    assert max(before["inverter", "base"], after["nearest", "base"], 0.3) < taught


def told(done: Audit) -> dict[tuple[str, str], float]:
    return {(each.attack, each.knows): each.first.mean for each in done.labels}


@pytest.mark.parametrize("overrides", [{}, {"train.micro_batches": 3}, {"split.codec": "bf16"}])
def test_gradients_tell_the_last_target(
    toys: Toys, tmp_path: Path, overrides: dict[str, object]
) -> None:
    """Of the first step the server knows all: tail, table, masks of dropout. k_out is 1."""
    run = made(toys, tmp_path / "run", {"train.batch_size": 9, **overrides})
    done = attacked(run, users=9, most=8)
    assert done.learners == 9 and done.k_out == 1
    assert told(done)["gradient", "adapters"] == 1
    assert told(done)["prediction", "adapters"] < 1
    assert all(each.first.mean <= each.ten.mean for each in done.labels)


def test_without_a_block_behind_it_the_second_cut_hides_nothing(toys: Toys, tmp_path: Path) -> None:
    run = made(toys, tmp_path / "run", {"model.k_out": 0, "train.batch_size": 9})
    assert told(attacked(run, users=9, most=8))["gradient", "adapters"] == 1


def test_an_upload_tells_what_was_touched_with_a_table_or_without(
    toys: Toys, tmp_path: Path
) -> None:
    longer: dict[str, object] = {"train.local_epochs": 4}
    run = made(toys, tmp_path / "shared", longer)
    shared = attacked(run, users=3, most=8, uploads=True).touched
    assert [each.attack for each in shared] == ["table", "leaning"]
    assert all(each.least <= each.auc <= each.most for each in shared)
    assert all(each.auc > max(0.75, each.popularity) for each in shared)
    local = made(toys, tmp_path / "local", {**longer, "model.item_residual": "local"})
    (leaning,) = attacked(local, users=3, most=8, uploads=True).touched
    assert leaning.attack == "leaning" and leaning.auc < shared[1].auc


def test_an_audit_leaves_the_run_as_it_was(plain: Run) -> None:
    before = outcome(plain.path)
    attacked(plain, users=3, most=8, uploads=True)
    after = outcome(plain.path)
    assert differences(before, after) == ["audit.json"]
    assert rescore(plain).differences == ()


def test_what_the_tap_hears_is_what_crossed(toys: Toys, tmp_path: Path) -> None:
    run = made(toys, tmp_path / "run", {"split.codec": "int8"})
    client, server = run.client("north"), run.workspace.server
    assert server is not None
    histories = client.client.data.history("test")
    with (
        turn(run.workspace, client.client, 0, client.model),
        tapped(client.client, server, run.config, run.workspace.cover) as tap,
    ):
        seen = histories_seen(client.client, tap, histories)
        recommender = client.client.recommender
        for row, each in enumerate(seen):
            items = histories[row][-run.config.model.history :]
            assert np.array_equal(each.inputs.numpy(), items)
            with torch.no_grad():
                batch = next(recommender.serving_batches(histories.take(np.array([row])), 1))
                exact = recommender.enter(batch).hidden[0]
            # int8: half a step of a block's largest value in 127.
            assert (each.activations - exact).abs().max() <= exact.abs().max() / 127
            assert not torch.equal(each.activations, exact)
    assert client.client.trunk is run.workspace.trunk


def test_users_are_drawn_by_the_seed_and_over_all_clients(plain: Run) -> None:
    first = audit(plain, users=6, seed=1, lessons=3)
    assert first.users == 6
    assert audit(plain, users=6, seed=1, lessons=3) == first
    written = json.loads((plain.path / "audit.json").read_text())
    assert written["users"] == written["learners"] == 6
    read = [(each["attack"], each["knows"]) for each in written["inversion"]]
    base = ("nearest", "search", "inverter", "aligned", "acquainted", "lookup")
    assert len(read) == len(set(read)) == 8 and len(written["labels"]) == 4
    assert set(read) == {(n, "base") for n in base} | {(n, "adapters") for n in base[:2]}
    assert written["inversion"][0]["recovered"].keys() == {"mean", "low", "high"}


def test_by_command(plain: Run) -> None:
    done = CliRunner().invoke(app, ["audit", str(plain.path), "--users", "5", "--noise", "0.5"])
    assert done.exit_code == 0, done.output
    assert "5 users' histories" in done.stdout and "audit.json" in done.stdout
    assert "search" in done.stdout and "chance" in done.stdout
    words = ["audit", str(plain.path), "--users", "3", "--quick", "--json"]
    printed = CliRunner().invoke(app, words)
    assert json.loads(printed.stdout) == json.loads((plain.path / "audit.json").read_text())


def test_a_run_in_which_nothing_crosses_is_refused(toys: Toys, tmp_path: Path) -> None:
    whole = made(toys, tmp_path / "whole", {"model.k_in": 3, "model.k_out": 0})
    with pytest.raises(ConfigError, match="nothing crosses"):
        audit(whole)
    assert not (whole.path / "audit.json").exists()


def test_noise_hides_what_it_is_strong_enough_for_and_says_its_price(plain: Run) -> None:
    bare = attacked(plain, users=9)
    little, much = (audit(plain, users=9, most=0, lessons=1, noise=noise) for noise in (1e-6, 30.0))
    assert bare.veil is None and little.veil is not None and much.veil is not None
    # Of next to no noise only the bound is left, which half of all activations keep.
    assert found(little)["search", "adapters"] > 0.5
    assert found(much)["search", "adapters"] < 0.6 < found(bare)["search", "adapters"]
    assert told(much)["gradient", "adapters"] < 0.7
    assert much.veil.bound == little.veil.bound > 0
    assert much.veil.without == little.veil.without
    assert much.veil.difference.mean == pytest.approx(much.veil.score.mean - much.veil.without.mean)
    assert much.veil.epsilon is not None and much.veil.epsilon > 0 and little.veil.epsilon is None
    assert rescore(plain).differences == ()


def test_a_secret_start_hides_the_head_from_who_has_the_public_one(
    toys: Toys, tmp_path: Path
) -> None:
    """Next to nothing is learned, so only the start tells base from what the client has."""
    private: dict[str, object] = {
        "train.learning_rate": 1e-12,
        "model.item_residual": "none",
        "privacy.private_head": True,
    }
    known = found(attacked(made(toys, tmp_path / "known", private)))
    secret = found(
        attacked(made(toys, tmp_path / "secret", {**private, "privacy.secret_start": 2}))
    )
    assert known["search", "base"] == known["search", "adapters"] == 1
    assert secret["search", "base"] == secret["search", "adapters"] < 0.8


def test_a_shuffled_history_is_put_in_order_and_read(toys: Toys, tmp_path: Path) -> None:
    """Shuffled positions are told by what they hold; without being put in order, none is read."""
    overrides = {**_texts(toys, "recformer", 0), "privacy.shuffle": True}
    run = made(toys, tmp_path / "run", overrides)
    done = attacked(run)
    assert found(done)["search", "adapters"] > 0.99
    assert told(done)["gradient", "adapters"] == 1


def test_private_steps_are_seen_user_by_user(toys: Toys, tmp_path: Path) -> None:
    """Who is drawn comes from the client's secret; what crosses tells the target all the same."""
    overrides: dict[str, object] = {"privacy.user_noise": 1.0, "model.item_residual": "none"}
    run = made(toys, tmp_path / "run", overrides)
    done = attacked(run, users=9, most=8)
    assert 0 < done.learners <= 9
    assert told(done)["gradient", "adapters"] == 1


def test_a_runs_own_noise_is_what_is_attacked(toys: Toys, tmp_path: Path) -> None:
    run = made(toys, tmp_path / "run", {"privacy.noise": 3.0, "privacy.bound": 2.0})
    done = attacked(run)
    assert done.veil is not None and (done.veil.noise, done.veil.bound) == (3.0, 2.0)
    assert found(done)["search", "adapters"] < 0.8
    with pytest.raises(ConfigError, match="leave out --noise"):
        audit(run, users=2, noise=1.0)
