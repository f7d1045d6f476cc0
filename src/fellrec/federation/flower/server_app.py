"""The coordinator as a Flower ServerApp."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from fellrec.config import RunConfig
from fellrec.errors import ConfigError, FellrecError, RunError
from fellrec.federation.coordinator import Coordinator
from fellrec.federation.decisions import check_deployable
from fellrec.federation.deployment.agreement import agreed
from fellrec.federation.deployment.dispatch import Dispatch, Terms, trunk_outline
from fellrec.federation.deployment.orders import Introduction, TestScores
from fellrec.federation.deployment.roll import Roll, call_roll
from fellrec.federation.deployment.trunks import Trunks
from fellrec.federation.flower import engine
from fellrec.federation.flower.events import Events
from fellrec.federation.flower.recording import RecordedGrid
from fellrec.federation.flower.roster import Introduced, Roster
from fellrec.federation.flower.settings import ServerSettings
from fellrec.federation.flower.strategy import FellrecStrategy
from fellrec.federation.origin import begin_session, end_session
from fellrec.federation.rounds import Books
from fellrec.federation.runs import claim
from fellrec.federation.sizes import server_sizes, shares
from fellrec.federation.store import CLIENT, COORDINATOR_FILES, SERVER, RunState, RunStore
from fellrec.federation.summary import About, ClientResult, summarise
from fellrec.federation.workspace import start_of
from fellrec.files import alone_in, read_json, write_json
from fellrec.models.adapters import start
from fellrec.models.stages import Stage
from fellrec.split.ledger import Ledger
from fellrec.split.service.channel import Link
from fellrec.split.service.recorder import Recorder

Tensors = Mapping[str, Tensor]
_FILE = "deployment.json"  # the run's id, and what clients said of themselves
_PATIENCE = 30.0  # seconds, for a coordinator that was killed to be gone

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run a recipe over the nodes that are connected."""
    events = Events()
    try:
        settings = ServerSettings.of(context.run_config)
        events.to(settings.events)
        if engine.simulates(grid) and not settings.trunks:
            with engine.parties(settings) as prepared:
                conduct(grid, prepared, events)
        else:
            conduct(grid, settings, events)
    except FellrecError as error:
        events.failed(str(error))
        raise


def conduct(grid: Grid, settings: ServerSettings, events: Events) -> None:
    """Wait for the clients, run the rounds that are left, and leave a run directory."""
    begun, path = time.perf_counter(), settings.out
    check_deployable(settings.config)
    config = claim(path, settings.config, resume=settings.resume)
    with ExitStack() as closing:
        busy = "another process works on this run; let it end"
        closing.enter_context(alone_in(path, busy, _PATIENCE))
        if settings.record is not None:
            recorder = closing.enter_context(Recorder(settings.record, "coordinator"))
            grid = RecordedGrid(grid, recorder)
        begin_session(path, config.model.recommender)
        store = RunStore(path, config.evaluation.keep_rounds, COORDINATOR_FILES)
        state = store.resume()
        run, known = _recall(path)
        terms = Terms.of(run, config)
        seconds = min(settings.answer_seconds, settings.wait_seconds)
        roster = Roster(terms, seconds, events.note)
        events.note("waiting for clients")
        names = settings.clients or tuple(known)
        came = roster.gather(grid, names, config.clients.count, settings.wait_seconds)
        roll = _roll(config, came, known, names, events.note)
        write_json(
            path / _FILE, {"run": run, "clients": [roll.told[n].model_dump() for n in roll.names]}
        )
        stage = trunk_outline(config)
        trunk = start(stage, config.seed)
        trunks = _trunks(settings, run, roll, trunk, events) if stage.blocks else None
        if trunks is not None:
            closing.callback(trunks.close)
        dispatch = Dispatch(
            config, terms, roll, start_of(config, roll.exchanged, trunk), trunks, store
        )
        ledger = Ledger()
        coordinator = Coordinator(config, Books(store, ledger, events))
        strategy = FellrecStrategy(coordinator, dispatch, roster, state)
        events.clients(roll.rows(), sum(told.dropped for told in roll.told.values()))
        strategy.start(grid, timeout=settings.answer_seconds)
        scores = strategy.test(grid, settings.answer_seconds)
        if not scores:
            raise RunError("no client answered to the test; resume the run when they are there")
        _publish(store, dispatch, strategy.state)
        _finish(config, path, roll, stage, strategy.state, scores, ledger)
        end_session(path, time.perf_counter() - begun)
    events.finished()


def _recall(path: Path) -> tuple[str, dict[str, Introduction]]:
    """Return the run's id and what its clients once said; a new id at the first time."""
    if not (path / _FILE).exists():
        # The folder's name without what a run's id may not have.
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.resolve().name).lstrip("._-")[:80] or "run"
        return f"{name}-{secrets.token_hex(3)}", {}
    kept = read_json(path / _FILE)
    try:
        told = TypeAdapter(list[Introduction]).validate_python(kept["clients"])
        return str(kept["run"]), {each.client: each for each in told}
    except (KeyError, TypeError, ValidationError):
        raise RunError(f"{path / _FILE}: is damaged; the run can't be resumed") from None


def _roll(
    config: RunConfig,
    came: Sequence[Introduced],
    known: Mapping[str, Introduction],
    names: Sequence[str],
    note: Callable[[str], None],
) -> Roll:
    """Call the roll: those who came now, and those of before who have not come again yet.

    Who was not there when the run began is left out: the others' samples were drawn without.
    """
    late = {told.client for told, _ in came} - known.keys() if known else set()
    for name in sorted(late):
        note(f"client {name} was not there when the run began; take it along in a new run")
    here = [each for each in came if each[0].client not in late]
    common = next((tensors for _, tensors in here), {})
    present = {told.client for told, _ in here}
    absent = [(told, common) for name, told in known.items() if name not in present]
    roll = call_roll(config, [*here, *absent], names)
    if config.clients.per_round > len(roll.names):
        raise ConfigError(
            f"clients.per_round = {config.clients.per_round}, but there are {len(roll.names)} "
            "clients"
        )
    return roll


def _trunks(
    settings: ServerSettings, run: str, roll: Roll, like: Tensors, events: Events
) -> Trunks:
    config, tls = settings.config, settings.tls
    if tls is None:
        raise ConfigError(
            "run configuration: this recipe leaves blocks to a trunk; say where it listens "
            "(trunk = HOST:PORT), or let clients hold all blocks (model.k_in, model.k_out)"
        )
    return Trunks(
        [Link(address, tls, config.split.max_frame_mib << 20) for address in settings.trunks],
        like,
        run=run,
        manifest=roll.manifest,
        settings=agreed(config),
        token_seconds=settings.token_seconds,
        note=events.note,
    )


def _publish(store: RunStore, dispatch: Dispatch, state: RunState) -> None:
    """Put the coordinator's copies where they stay; the start for who never completed a round."""
    for name in dispatch.names:
        if not store.publish(state.round, name):
            store.publish_start(
                name,
                {
                    CLIENT: {"adapter": dispatch.begun.exchanged},
                    SERVER: {"adapter": dispatch.begun.trunk},
                },
            )


def _finish(
    config: RunConfig,
    path: Path,
    roll: Roll,
    trunk: Stage,
    state: RunState,
    scores: Mapping[str, TestScores],
    ledger: Ledger,
) -> None:
    """Write ledger and summary from what clients told; their users' scores stay with them."""
    for name, tested in scores.items():
        ledger.record(name, state.round, "up", "metrics", 8 * (len(tested.metrics) + 1))
    ledger.append_csv(path / "ledger.csv")
    first = roll.told[roll.names[0]]
    about = About(
        first.dataset,
        sum(told.users for told in roll.told.values()),
        first.dropped,
        first.items,
        shares(first.sizes, server_sizes(trunk if trunk.blocks else None)),
        trunk.width if trunk.blocks else 0,
    )
    results = [
        ClientResult(
            name,
            roll.told[name].users,
            roll.quotas[name].samples or roll.told[name].examples,
            roll.quotas[name].valid_users or roll.told[name].valid_users,
            scores[name].scored,
            scores[name].metrics,
        )
        for name in roll.names
        if name in scores
    ]
    write_json(path / "summary.json", summarise(config, path, about, state, results))
