"""Who takes part, who is best, who stops; and the store that remembers it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fellrec.balance import FedAvg, FellRec, Local
from fellrec.config import BalanceConfig
from fellrec.errors import RunError
from fellrec.federation.decisions import draw, judge, strategy_of
from fellrec.federation.store import CLIENT, SERVER, RunState, RunStore, Standing
from fellrec.files import link_or_copy, read_json, write_bytes, write_json

NAMES = [f"c{i}" for i in range(6)]


@given(
    stopped=st.sets(st.sampled_from(NAMES)),
    per_round=st.integers(0, 7),
    seed=st.integers(0, 99),
)
def test_draw(stopped: set[str], per_round: int, seed: int) -> None:
    standings = {name: Standing(0.1, 1, 2, True) for name in stopped}
    chosen = draw(NAMES, standings, per_round, np.random.default_rng(seed))
    going = [name for name in NAMES if name not in stopped]
    assert len(chosen) == (min(per_round, len(going)) if per_round else len(going))
    assert chosen == [name for name in going if name in set(chosen)]  # usual order, no stopped one
    again = draw(NAMES, standings, per_round, np.random.default_rng(seed))
    assert chosen == again


def test_draw_reaches_everybody() -> None:
    seen = [draw(NAMES, {}, 2, np.random.default_rng(seed)) for seed in range(60)]
    assert {name for names in seen for name in names} == set(NAMES)
    assert len({tuple(names) for names in seen}) > 10


def judged(scores: list[float], patience: int) -> tuple[Standing, list[bool]]:
    standing, improved = Standing(), []
    for number, score in enumerate(scores, start=1):
        standing, better = judge(standing, score, number, patience)
        improved.append(better)
    return standing, improved


@pytest.mark.parametrize(
    ("scores", "patience", "wanted", "improved"),
    [
        ([0.0], 1, Standing(0.0, 1, 0, False), [True]),
        ([0.2, 0.3], 1, Standing(0.3, 2, 0, False), [True, True]),
        ([0.3, 0.2], 0, Standing(0.3, 1, 1, False), [True, False]),
        ([0.3, 0.2], 1, Standing(0.3, 1, 1, True), [True, False]),
        ([0.3, 0.3], 1, Standing(0.3, 1, 1, True), [True, False]),  # equal is no better
        ([0.3, 0.2, 0.4, 0.1], 2, Standing(0.4, 3, 1, False), [True, False, True, False]),
        ([0.3, 0.2, 0.1], 2, Standing(0.3, 1, 2, True), [True, False, False]),
        # without validation targets the newest model is the best there is
        ([math.nan, math.nan], 1, Standing(None, 2, 0, False), [True, True]),
    ],
)
def test_judge(scores: list[float], patience: int, wanted: Standing, improved: list[bool]) -> None:
    assert judged(scores, patience) == (replace(wanted, label=len(scores)), improved)


def test_strategy_of() -> None:
    assert strategy_of(BalanceConfig(strategy="local")) == Local()
    assert strategy_of(BalanceConfig(strategy="fedavg", weighting="examples")) == FedAvg("examples")
    balance = BalanceConfig(
        alpha=0.5, beta=3.0, heating="reference", tau=0.1, space="change", merge="product"
    )
    assert strategy_of(balance) == FellRec(0.5, 3.0, "reference", 0.1, "change", "product")
    assert strategy_of(BalanceConfig(weighting="examples")) == FellRec(weighting="examples")
    # 0 stands for the default temperature of the kind of heating
    assert strategy_of(BalanceConfig(tau=0.0)) == FellRec(tau=None)


def put_all(store: RunStore, t: int, client: str, value: float) -> None:
    for side, names in (
        (CLIENT, ("adapter", "private", "optimiser")),
        (SERVER, ("adapter", "optimiser")),
    ):
        for name in names:
            store.put(t, side, client, name, {"x": torch.tensor([value])})


def one_round(store: RunStore, t: int, *, improved: bool = True) -> RunState:
    store.begin(t)
    put_all(store, t, "c0", float(t))
    store.keep_best(t, "c0", improved=improved)
    state = RunState(t, {"c0": Standing(0.1 * t, t, 0, False)})
    store.commit(state)
    return state


def value(store: RunStore, t: int, side: str, name: str) -> float:
    tensors = store.tensors(t, side, "c0", name)
    assert tensors is not None
    return float(tensors["x"])


def test_a_state_comes_back(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    assert store.state() == RunState()
    assert store.resume() == RunState()
    (tmp_path / "metrics.jsonl").write_text("one\n")
    state = one_round(store, 1)
    assert RunStore(tmp_path).state() == state
    assert state.logs == {"metrics.jsonl": 4}
    assert store.tensors(1, CLIENT, "c9", "adapter") is None


def test_only_the_last_rounds_are_kept(tmp_path: Path) -> None:
    store = RunStore(tmp_path, keep_rounds=2)
    for t in range(1, 6):
        one_round(store, t)
        names = {path.name for path in (tmp_path / "rounds").iterdir()}
        assert names == {"current", *(str(n) for n in range(max(1, t - 1), t + 1))}


def test_best_is_another_name_of_the_same_file(tmp_path: Path) -> None:
    store = RunStore(tmp_path, keep_rounds=1)
    for t, improved in ((1, True), (2, True), (3, False), (4, False)):
        one_round(store, t, improved=improved)
        best = 1.0 if t == 1 else 2.0
        for side, name in ((CLIENT, "adapter"), (CLIENT, "private"), (SERVER, "adapter")):
            assert value(store, t, side, name) == t
            assert value(store, t, side, f"best_{name}") == best
    folder = tmp_path / "rounds" / "4" / CLIENT / "c0"
    assert not (folder / "adapter.safetensors").samefile(folder / "best_adapter.safetensors")
    assert store.publish(4, "c0") and not store.publish(4, "c9")
    published = tmp_path / CLIENT / "c0"
    for label, file in (("best", "best_adapter"), ("last", "adapter")):
        source = folder / f"{file}.safetensors"
        assert (published / f"{label}_adapter.safetensors").samefile(source)


def test_carry_links_and_replaces_what_was_prepared(tmp_path: Path) -> None:
    store = RunStore(tmp_path, keep_rounds=3)
    one_round(store, 1)
    store.begin(2)
    put_all(store, 2, "c0", 9.0)
    store.put(2, CLIENT, "c0", "odd", {})
    put_all(store, 2, "new", 9.0)
    for client in ("c0", "new"):
        store.carry(2, client)
    store.commit(RunState(2, {}))
    first, second = (tmp_path / "rounds" / n / CLIENT / "c0" for n in ("1", "2"))
    assert {p.name for p in first.iterdir()} == {p.name for p in second.iterdir()}
    assert all((second / path.name).samefile(path) for path in first.iterdir())
    assert store.tensors(2, CLIENT, "new", "adapter") is None


def test_resume_drops_what_is_not_current(tmp_path: Path) -> None:
    store = RunStore(tmp_path, keep_rounds=1)
    for log in ("metrics.jsonl", "ledger.csv"):
        (tmp_path / log).write_text("a\n")
    state = one_round(store, 1)
    for log in ("metrics.jsonl", "ledger.csv"):
        with (tmp_path / log).open("a") as handle:
            handle.write("b\n")
    (tmp_path / "ledger.csvabcd_123").write_text("left by a killed write")
    store.begin(2)
    (tmp_path / "rounds" / "2").mkdir()  # renamed, but the pointer was not
    (tmp_path / "rounds" / "0").mkdir()  # older than what is kept
    assert store.resume() == state
    assert {path.name for path in (tmp_path / "rounds").iterdir()} == {"current", "1"}
    assert (tmp_path / "metrics.jsonl").read_text() == "a\n"
    assert (tmp_path / "ledger.csv").read_text() == "a\n"
    assert not list(tmp_path.glob("ledger.csv?*"))


def test_resume_before_the_first_round_forgets_its_logs(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    (tmp_path / "ledger.csv").write_text("round,client\n")
    store.begin(1)
    store.resume()
    assert not (tmp_path / "ledger.csv").exists()
    assert not list((tmp_path / "rounds").iterdir())


def test_files(tmp_path: Path) -> None:
    write_json(tmp_path / "deep" / "a.json", {"x": 1})
    assert read_json(tmp_path / "deep" / "a.json") == {"x": 1}
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "deep" / "a.json", math.nan)
    assert read_json(tmp_path / "deep" / "a.json") == {"x": 1}
    link_or_copy(tmp_path / "deep" / "a.json", tmp_path / "other" / "b.json")
    write_bytes(tmp_path / "deep" / "a.json", b"{}")  # a new file: the second name keeps the old
    assert read_json(tmp_path / "other" / "b.json") == {"x": 1}
    with pytest.raises(RunError, match="none"):
        read_json(tmp_path / "none.json")
