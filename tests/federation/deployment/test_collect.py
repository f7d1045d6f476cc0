"""One run directory from all parties' folders: as the simulation's, of the clients with a score."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fellrec.errors import RunError
from fellrec.federation.deployment.collect import Part, collect
from fellrec.federation.runs import train
from fellrec.files import read_json
from tests.federation.deployment.comparing import summary_of, sums
from tests.federation.deployment.town import Town, town
from tests.federation.flower.test_faults import Script
from tests.toys import Toys


def parts(it: Town, run: Path) -> list[Part]:
    number = str(read_json(run / "deployment.json")["run"])
    return [Part(name, it.grounds.place(name).run(number)) for name in it.names]


def test_what_is_promised_of_activations_is_in_the_summary(toys: Toys, tmp_path: Path) -> None:
    config = toys.recipe({"train.rounds": 1, "privacy.noise": 0.5})
    with town(config, tmp_path) as it:
        run = it.conduct()
        summary = collect(tmp_path / "out", run, parts(it, run))
    simulated = train(config, tmp_path / "simulated").summary
    assert summary["privacy"]["activations"]["crossings"] > 0
    assert summary["privacy"] == read_json(run / "summary.json")["privacy"] == simulated["privacy"]


def test_clients_without_a_score_are_left_out(toys: Toys, tmp_path: Path) -> None:
    """South misses the whole run; north is tested, but nobody hears of it."""
    with town(toys.recipe({"train.rounds": 1}), tmp_path) as it:
        Script(it).lose("north", "evaluate.test", 0)
        it.grid.remove(it.node("south"))
        run = it.conduct()
        given = parts(it, run)
    by_name = {part.name: part.path for part in given}
    assert (by_name["north"] / "clients" / "north" / "scores.parquet").is_file()
    summary = collect(tmp_path / "out", run, given)
    assert [line["id"] for line in summary["clients"]] == ["east"]
    assert summary_of(tmp_path / "out") == summary_of(run)
    for side in ("clients", "server"):
        assert [path.name for path in (tmp_path / "out" / side).iterdir()] == ["east"]
    # What crossed to the trunk for north did cross.
    ledgers = [path / "ledger.csv" for path in (run, by_name["east"], by_name["north"])]
    assert sums([tmp_path / "out" / "ledger.csv"]) == sums(ledgers) != sums(ledgers[:2])
    with pytest.raises(RunError, match=r"run: has scores of east; bring their parts, too$"):
        collect(tmp_path / "other", run, [part for part in given if part.name != "east"])
    shutil.rmtree(by_name["east"] / "clients")
    with pytest.raises(RunError, match="client east has not finished its run"):
        collect(tmp_path / "other", run, given)
    assert not (tmp_path / "other").exists()
