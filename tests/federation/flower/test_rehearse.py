"""What a rehearsal says of a run that ends before its time."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import pytest

from fellrec.errors import RunError
from fellrec.federation.deployment.grounds import Grounds
from fellrec.federation.deployment.processes import Processes
from fellrec.federation.flower.network import environment
from fellrec.federation.flower.rehearse import Rehearsal
from fellrec.federation.observer import Observer
from fellrec.federation.shares import share_data
from tests.toys import Toys

SECONDS = 300.0


@pytest.mark.integration
@pytest.mark.usefixtures("own_cache")
def test_a_coordinator_that_ends_before_it_says_anything(toys: Toys, tmp_path: Path) -> None:
    """A real SuperLink, and a real ServerApp that has nowhere to write what happens."""
    few = {"clients.partition": "random", "clients.count": 2, "model.k_out": 2}
    config = toys.recipe(few)
    grounds = Grounds.prepare(tmp_path / "parties", config, share_data(config))
    with Processes(grounds.folder / "logs", environment(grounds.folder / "flwr")) as processes:
        rehearsal = Rehearsal(config, grounds, processes)
        # Who would wait for ever is told so in the end.
        patience = threading.Timer(SECONDS, rehearsal.network.start_link().popen.kill)
        patience.start()
        rehearsal.events = tmp_path / "none" / "events.jsonl"
        rehearsal.run(resume=False)
        with pytest.raises(RunError) as caught:
            rehearsal.follow(Observer())
        patience.cancel()
    assert re.fullmatch(
        r"the coordinator ended before it began \(finished:failed\): .*run configuration: events: "
        rf"{re.escape(str(rehearsal.events))} can't be written .*",
        str(caught.value),
    )
