"""What fits: every number by another way, limits and what stands in the way where nothing does."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from typer.testing import CliRunner

from fellrec.cli import app
from fellrec.cli.plan_commands import verdict
from fellrec.errors import ConfigError
from fellrec.federation.dryrun import dry_run
from fellrec.planning import Choice, Limits, Plan, bytes_of, plan
from tests.toys import BLOCKS, WIDTH, Toys

pytestmark = pytest.mark.usefixtures("own_cache")

LIMITS = Limits(uplink=1_000_000, downlink=500_000, latency=0.1, max_recovery=1.0)


@pytest.fixture(scope="module")
def found(toys: Toys) -> Plan:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FELLREC_CACHE", str(toys.cache))
        return plan(toys.recipe(), LIMITS, histories=3)


def only(found: Plan, **wanted: object) -> Choice:
    wanted = {"noise": 0.0, **wanted}
    (choice,) = (
        each
        for each in found.choices
        if all(getattr(each, name) == value for name, value in wanted.items())
    )
    return choice


def test_every_cut_batch_and_codec_is_there_once(found: Plan) -> None:
    seen = {(each.k_in, each.batch, each.codec, each.noise) for each in found.choices}
    assert len(seen) == len(found.choices) == 2 * 7 * 3 * 3
    assert {each.noise for each in found.choices} == {0, 1, 3}
    assert {each.k_in for each in found.choices} == set(range(BLOCKS - 1))
    assert {each.k_out for each in found.choices} == {1}


def test_memory_and_bytes_are_those_of_a_dry_run(toys: Toys, found: Plan) -> None:
    for codec in ("fp32", "int8"):
        config = toys.recipe({"model.k_in": 1, "train.batch_size": 8, "split.codec": codec})
        told, choice = dry_run(config), only(found, k_in=1, batch=8, codec=codec)
        assert choice.memory == told["memory"]["client"]["total"]
        assert choice.server_memory == told["memory"]["server"]["total"]
        crossed = sum(c["activation_bytes"] + c["gradient_bytes"] for c in told["clients"])
        steps = sum(c["steps"] for c in told["clients"])
        assert choice.bytes_up == choice.bytes_down == int(crossed / steps)
        # There and back once each way at 1 MB/s and 0.5 MB/s, and three times 0.1 s.
        assert choice.wire_seconds == pytest.approx(0.3 + choice.bytes_up * 3e-6)


def test_int8_is_a_quarter_and_its_scales(found: Plan) -> None:
    whole, small = (only(found, k_in=0, batch=4, codec=codec) for codec in ("fp32", "int8"))
    assert small.bytes_up == pytest.approx(whole.bytes_up * (WIDTH + 2) / (4 * WIDTH), abs=1)
    assert small.memory == whole.memory


def test_more_blocks_take_from_the_server_what_they_give_the_client(found: Plan) -> None:
    few, many = (only(found, k_in=k_in, batch=8, codec="fp32") for k_in in (0, 1))
    assert many.memory > few.memory and many.server_memory < few.server_memory
    both = few.client_seconds + few.server_seconds
    assert many.client_seconds + many.server_seconds == pytest.approx(both)
    assert many.client_seconds > few.client_seconds > 0


def test_a_known_head_hides_nothing_but_by_noise(found: Plan) -> None:
    bare = [each for each in found.choices if not each.noise]
    assert {(each.recovered, each.attack) for each in bare} == {(1.0, "search")}
    for k_in in (0, 1):
        blurred = [only(found, k_in=k_in, batch=1, codec="int8", noise=noise) for noise in (1, 3)]
        # Bare, this small head hides nothing; either noise leaves about what guessing finds.
        assert all(each.recovered < 0.5 for each in blurred)
        assert blurred[0].memory == only(found, k_in=k_in, batch=1, codec="int8").memory


def test_without_limits_the_fastest_for_each_example_is_chosen(found: Plan) -> None:
    assert found.chosen is not None and found.hindrances() == {} and not found.chosen.noise
    assert all(not each.misses for each in found.choices)
    paces = [each.seconds / each.batch for each in found.choices]
    assert found.chosen.seconds / found.chosen.batch == min(paces)
    assert [each.k_in for each in found.best] == [0, 1]


def made(**values: object) -> Choice:
    usual = Choice(0, 1, "fp32", 0.0, 8, 100, 100, 10, 10, 1.0, 1.0, 1.0, 0.5, "search")
    return replace(usual, **values)  # type: ignore[arg-type]  # fields of many types


def test_noise_is_taken_where_nothing_else_fits_and_no_more_than_it_takes() -> None:
    plain = made(recovered=0.9, client_seconds=0.1, misses=("max_recovery",))
    little, much = (made(noise=n, recovered=0.5 / n, batch=b) for n, b in ((1.0, 1), (3.0, 64)))
    assert Plan(Limits(), (plain, much, little)).chosen == little
    assert Plan(Limits(), (plain, much)).chosen == much
    assert Plan(Limits(), (much, little, replace(plain, misses=()))).chosen is not None


def test_what_stands_in_the_way_is_named_with_what_comes_nearest() -> None:
    small = made(memory=50, recovered=0.9, misses=("max_recovery",))
    smaller = made(memory=40, recovered=0.8, misses=("max_recovery",))
    large = made(k_in=1, memory=500, recovered=0.1, misses=("client_memory",))
    both = made(k_in=2, memory=400, recovered=0.4, misses=("client_memory", "max_recovery"))
    hindered = Plan(Limits(), (small, smaller, large, both))
    assert hindered.chosen is None
    assert hindered.hindrances() == {"client_memory": large, "max_recovery": smaller}
    assert hindered.best == [small, large, both] or hindered.best == [smaller, large, both]
    # Where every choice breaks two limits, both are in the way.
    slow = replace(both, misses=("client_memory", "max_seconds"))
    assert list(Plan(Limits(), (slow,)).hindrances()) == ["client_memory", "max_seconds"]


@pytest.mark.parametrize(
    ("text", "bytes_"), [("2GB", 2_000_000_000), ("512MiB", 512 << 20), ("20Mbit", 2_500_000)]
)
def test_sizes_are_read_as_people_write_them(text: str, bytes_: int) -> None:
    assert bytes_of(text, "--uplink") == bytes_


@pytest.mark.parametrize(
    "text", ["", "much", "-2GB", "0", "2 parsecs", "2,5GB", "1,000MB", "2GB or so", "20Mbit -- 5"]
)
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--uplink .*: give a size such as 2GB"):
        bytes_of(text, "--uplink")


@pytest.mark.parametrize("name", ["latency", "max_recovery", "max_seconds"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_limit_that_is_no_number_is_refused(name: str, value: float) -> None:
    given: dict[str, Any] = {name: value}
    with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')} .*: give a number"):
        Limits(**given)


def test_a_base_with_no_block_to_spare_is_refused(toys: Toys) -> None:
    with pytest.raises(ConfigError, match="keeps them all"):
        plan(toys.recipe({"model.k_out": BLOCKS, "model.k_in": 0}), LIMITS)


def test_the_verdict_names_what_stands_in_the_way() -> None:
    near = made(memory=2000, misses=("client_memory",))
    said = verdict(Plan(Limits(client_memory=1000), (near, replace(near, k_in=1, memory=3000))))
    assert said == (
        "nothing fits: --client-memory 1.0 kB stands in the way, the nearest is 2.0 kB at k_in 0, "
        "fp32, noise 0, batch 8"
    )


def by_command(toys: Toys, *words: str) -> str:
    own = {
        "data.source": toys.data,
        "clients.partition": "random",
        "clients.count": 2,
        "model.item_encoder": toys.encoder,
        "train.samples": 0,
        "evaluation.valid_users": 0,
        "evaluation.test_users": 0,
    }
    changes = [word for key, value in own.items() for word in ("--set", f"{key}={value}")]
    done = CliRunner().invoke(app, ["plan", *words, *changes])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_by_command(toys: Toys) -> None:
    words = ("--base", str(toys.bert), "--uplink", "20Mbit")
    said = by_command(toys, *words)
    assert "take --set model.k_in=" in said and "100% (search)" in said
    assert "--set privacy.noise=0 " in said
    told = json.loads(by_command(toys, *words, "--client-memory", "1KB", "--json"))
    assert told["chosen"] is None and len(told["choices"]) == 42
    assert told["hindrances"].keys() == {"client_memory"}
