"""`fellrec trunk` as a process of its own: a client that trains over it ends as in a simulation."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from fellrec.cli import app
from fellrec.config import RunConfig
from fellrec.data.client_file import read_client_file, write_client_file
from fellrec.data.sources import fetch_model
from fellrec.errors import WireError
from fellrec.federation.client import Client
from fellrec.federation.deployment.agreement import agreed
from fellrec.federation.deployment.certificates import Pair
from fellrec.federation.deployment.credentials import Credentials, make_credentials
from fellrec.federation.shares import Shares, share_data
from fellrec.federation.turns import ClientModel, turn
from fellrec.federation.workspace import Workspace
from fellrec.models import manifest
from fellrec.models.recommender import Kind
from fellrec.split.ledger import Ledger
from fellrec.split.service.channel import Link
from fellrec.split.service.control import TrunkControl
from fellrec.split.service.messages import Greeting, Kept
from fellrec.split.service.settings import TlsFiles
from fellrec.split.service.transport import GrpcTransport, greet
from tests.toys import Toys

pytestmark = pytest.mark.integration

PROGRAM = [sys.executable, "-c", "from fellrec.cli import app; app(prog_name='fellrec')"]
CLIENT = "north"


@dataclass
class Deployment:
    """A trunk process, its recipe, and what the parties need to reach it."""

    process: subprocess.Popen[str]
    address: str
    config: RunConfig
    keys: Credentials
    digest: str

    def link(self, pair: Pair) -> Link:
        return Link(self.address, TlsFiles(pair.certificate, pair.key, self.keys.authority))

    def transport(self, greeting: Greeting) -> GrpcTransport:
        return GrpcTransport(self.link(self.keys.clients[CLIENT]), greeting, retry_seconds=5)


def command(recipe: Path, keys: Credentials, *more: str) -> list[str]:
    options = {
        "--config": recipe,
        "--listen": "127.0.0.1:0",
        "--tls-cert": keys.trunk.certificate,
        "--tls-key": keys.trunk.key,
        "--client-ca": keys.authority,
        "--folder": recipe.with_name("trunk"),
    }
    return [*PROGRAM, "trunk", *(str(word) for pair in options.items() for word in pair), *more]


@pytest.fixture(scope="module")
def deployed(toys: Toys, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Lend a trunk to all tests here; at the end it is told to stop, and does as it should.

    A guest's session is open then: it waits a second for that, in the place of half a minute.
    """
    tmp_path = tmp_path_factory.mktemp("deployed")
    config = toys.recipe({"train.micro_batches": 3, "train.in_flight": 2, "split.codec": "int8"})
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(config.to_toml())
    keys = make_credentials(tmp_path / "keys", [CLIENT, "south"], days=1)
    with subprocess.Popen(
        command(recipe, keys, "--grace-seconds", "1"),
        env=toys.environment(),
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            found = re.search(r" on (127\.0\.0\.1:[0-9]+)", process.stdout.readline())
            assert found, "the trunk did not say where it listens"
            base = fetch_model(config.model.base)
            yield Deployment(process, found[1], config, keys, manifest.digest(base))
            process.send_signal(signal.SIGTERM)
            out, _ = process.communicate(timeout=60)
            assert process.returncode == 0 and out.strip().endswith("stopped")
        finally:
            process.kill()


def model(workspace: Workspace, trunk: dict[str, Tensor]) -> ClientModel:
    return ClientModel(
        workspace.initial(Kind.LORA, Kind.DENSE), workspace.initial(Kind.PRIVATE), trunk
    )


def member(workspace: Workspace, shares: Shares) -> Client:
    number = shares.partition.names.index(CLIENT)
    return workspace.client(CLIENT, shares.of(number), shares.quotas[number])


def crossed(ledger: Ledger) -> dict[str, int]:
    return {f"{row.direction}/{row.kind}": row.bytes for row in ledger.rows()}


def test_a_round_over_the_wire_is_the_simulations(deployed: Deployment, tmp_path: Path) -> None:
    config = deployed.config
    shares = share_data(config)
    here = Workspace(config, shares.dataset)
    alone = member(here, shares)
    with turn(here, alone, 0, model(here, here.initial_trunk())) as expected:
        report = alone.train(0)
    trained = expected.finished()

    number = shares.partition.names.index(CLIENT)
    file = tmp_path / "north.fellrec"
    write_client_file(
        file, shares.dataset.name, shares.dataset.catalogue, shares.of(number), config.data.split
    )
    own = read_client_file(file)

    control = TrunkControl(deployed.link(deployed.keys.coordinator), here.initial_trunk())
    control.begin("first", manifest=deployed.digest, settings=agreed(config))
    assert control.prepare(CLIENT, 0, 0)
    greeting = greet(
        manifest=deployed.digest,
        settings=agreed(config),
        token=control.token(CLIENT, 0, "train", 60),
    )
    transport = deployed.transport(greeting)
    there = Workspace(config, own.public(), transport=transport)
    client = there.client(CLIENT, own.split, shares.quotas[number])
    with turn(there, client, 0, model(there, {})) as it:
        told = client.train(0)
    transport.finish()
    counted, trunk = control.collect(CLIENT, 0)

    assert told.loss == pytest.approx(report.loss, abs=1e-6)
    assert told.examples == report.examples
    torch.testing.assert_close(dict(it.finished().exchanged), dict(trained.exchanged))
    torch.testing.assert_close(dict(it.finished().private), dict(trained.private))
    torch.testing.assert_close(trunk, dict(trained.trunk))
    assert any(not torch.equal(trunk[name], start) for name, start in here.initial_trunk().items())
    assert (counted.steps, counted.positions) == (report.steps, report.tokens)
    assert crossed(there.ledger) == crossed(here.ledger) == counted.bytes

    # Committed, it serves the client that its certificate names, without a coordinator.
    control.install(CLIENT, 1, trunk)
    control.commit({CLIENT: Kept(label=1, improved=True)})
    control.close()
    guest = deployed.transport(
        greet(manifest=deployed.digest, settings=agreed(config), run="first")
    )
    served = Workspace(config, own.public(), transport=guest)
    asking = served.client(CLIENT, own.split, shares.quotas[number])
    asking.install(guest.open(), it.finished().exchanged, it.finished().private)
    with turn(here, alone, 0, trained):
        assert asking.validate("ndcg@10") == pytest.approx(alone.validate("ndcg@10"), abs=1e-9)
    guest.close()


def test_another_base_is_refused(deployed: Deployment, toys: Toys) -> None:
    other = manifest.digest(toys.llama)
    greeting = greet(manifest=other, settings=agreed(deployed.config), run="first")
    with pytest.raises(WireError, match=r"base|weights|manifest"):
        deployed.transport(greeting).open()
    changed = toys.recipe({"lora.rank": 3})
    greeting = greet(manifest=deployed.digest, settings=agreed(changed), run="first")
    with pytest.raises(WireError, match="settings"):
        deployed.transport(greeting).open()


def test_certificates_by_command(deployed: Deployment, tmp_path: Path) -> None:
    """What the command makes serves a trunk; another authority's clients are strangers to it."""
    other = tmp_path / "other"
    words = ["certificates", CLIENT, "south", "--out", str(other), "--days", "1"]
    done = subprocess.run([*PROGRAM, *words], capture_output=True, text=True, check=True)
    assert f"client {CLIENT}: {other / 'clients' / CLIENT}.crt, {CLIENT}.key" in done.stdout
    keys = Credentials.at(other, [CLIENT, "south"])
    for pair in (keys.trunk, keys.coordinator, *keys.clients.values()):
        TlsFiles(pair.certificate, pair.key, keys.authority).read()
    stranger = TlsFiles(
        keys.clients[CLIENT].certificate, keys.clients[CLIENT].key, deployed.keys.authority
    )
    greeting = greet(manifest=deployed.digest, settings=agreed(deployed.config), run="first")
    with pytest.raises(WireError, match="certificate"):
        GrpcTransport(Link(deployed.address, stranger), greeting, retry_seconds=1).open()
    again = subprocess.run([*PROGRAM, *words], capture_output=True, text=True)
    assert again.returncode == 2 and again.stderr.startswith("error: ")


@pytest.mark.usefixtures("own_cache")
def test_bad_input_is_one_line(toys: Toys, tmp_path: Path) -> None:
    keys = make_credentials(tmp_path / "keys", [CLIENT], days=1)
    for given, said in {
        ("--set", f"model.base={toys.bert}", "--tls-key", str(keys.coordinator.key)): "and its key",
        ("--set", f"model.base={toys.bert}", "--listen", "nowhere"): "HOST:PORT",
        ("--set", f"model.base={toys.bert}", "--set", "model.k_out=2"): "clients hold all blocks",
        ("--set", f"model.base={toys.bert}", "--client-ca", "/none.crt"): "can't be read",
    }.items():
        recipe = tmp_path / "recipe.toml"
        recipe.write_text(toys.recipe().to_toml())
        done = CliRunner().invoke(app, command(recipe, keys, *given)[len(PROGRAM) :])
        assert done.exit_code == 2, done.stderr
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
        assert said in done.stderr
