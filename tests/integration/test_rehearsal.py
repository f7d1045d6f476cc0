"""A whole deployment on this machine, by the command: it ends as the simulation does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from fellrec.data.client_file import read_client_file
from fellrec.split.ledger import Ledger
from tests.federation.deployment.recordings import check_recording, histories, texts
from tests.integration.deployed import (
    same,
    simulated,
)
from tests.toys import Toys, titles

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("own_cache")]

# Tells, of every process that imports it, which files it opens, and what it is.
WATCH = """
import os, sys
_file = open(os.path.join(os.environ["WATCH_FOLDER"], f"{os.getpid()}.txt"), "a", buffering=1)
print(" ".join(map(str, sys.orig_argv)), file=_file)
def _hook(event, args):
    if event == "open" and isinstance(args[0], str) and not _file.closed:
        print(os.path.abspath(args[0]), file=_file)
sys.addaudithook(_hook)
"""


def test_a_rehearsal_is_the_simulation(toys: Toys, tmp_path: Path) -> None:
    """Two clients, one round, int8 on the wire. What the servers see is all declared; they are
    watched: they open no data.

    Each message is a process of its own, so even in one round what a client learned, mixed and
    scores comes from its disk; several rounds of the same messages are in `test_whole_runs.py`.
    """
    wire = {"split.codec": "int8", "train.micro_batches": 2, "train.in_flight": 2}
    few = {"clients.partition": "random", "clients.count": 2, "train.rounds": 1}
    config = toys.recipe({**few, **wire})
    recipe, out = tmp_path / "toys.toml", tmp_path / "run"
    recipe.write_text(config.to_toml())
    watch, site = tmp_path / "watch", tmp_path / "site"
    watch.mkdir()
    site.mkdir()
    (site / "sitecustomize.py").write_text(WATCH)
    paths = [str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
    watched = {"PYTHONPATH": os.pathsep.join(paths), "WATCH_FOLDER": str(watch)}
    environment = {**toys.environment(), **watched}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "fellrec", "rehearse", str(recipe)),
            *("--out", str(out), "--record", "--json"),
        ],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads((out / "summary.json").read_text())
    reference = simulated(config, tmp_path / "simulation")
    same(out, reference)
    crossed = (Ledger.read(path / "ledger.csv").rows() for path in (out, reference))
    assert next(crossed) == next(crossed)
    left = [p for p in psutil.process_iter(["environ"]) if _is_of(p, watch)]
    assert not left, left

    parties = out.with_name("run.parties")
    clients, planted = parties / "clients", texts(titles())
    for name in ("c0", "c1"):
        planted |= histories(read_client_file(clients / name / "data.fellrec"))
    ledger = Ledger.read(out / "ledger.csv")
    assert check_recording(parties / "recording", ledger=ledger, planted=planted)

    opened = {path: path.read_text().splitlines() for path in watch.iterdir()}
    kinds = {
        "trunk": " fellrec trunk ",
        "coordinator": "flwr-serverapp",
        "client": "flwr-clientapp",
    }
    for kind, word in kinds.items():
        files = [line for lines in opened.values() if word in lines[0] for line in lines[1:]]
        assert files, f"no process of the {kind} was watched"
        private = [f for f in files if f.startswith((str(clients), str(toys.data)))]
        assert bool(private) == (kind == "client"), (kind, private[:3])


def _is_of(process: psutil.Process, watch: Path) -> bool:
    environ = process.info["environ"] or {}
    return process.pid != os.getpid() and environ.get("WATCH_FOLDER") == str(watch)
