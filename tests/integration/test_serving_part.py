"""A client's part of a run, served by the trunk process that it was trained with."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from fellrec.cli import app
from fellrec.config import RunConfig
from fellrec.errors import ConfigError, DataError, FellrecError, RunError, WireError
from fellrec.federation.deployment.grounds import Grounds
from fellrec.federation.deployment.processes import Processes, free_ports
from fellrec.federation.deployment.trunk import check_trunk
from fellrec.federation.shares import share_data
from fellrec.federation.workspace import trunk_server
from fellrec.files import write_json
from fellrec.serving.part import open_part
from fellrec.serving.ranking import Recommendation
from fellrec.serving.run import load_run
from fellrec.split.service.server import TrunkService
from fellrec.split.service.settings import ServiceSettings, TlsFiles
from tests.integration.conducted import (
    CLIENT,
    OTHER,
    RUN,
    Coordinator,
    Deployment,
    assert_same,
    train,
    write_whole,
)
from tests.toys import Toys, titles

pytestmark = pytest.mark.integration

PROGRAM = [sys.executable, "-c", "from fellrec.cli import app; app(prog_name='fellrec')"]


@pytest.fixture(scope="module", autouse=True)
def own_cache_of_all(toys: Toys) -> Iterator[None]:
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FELLREC_CACHE", str(toys.cache))
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def deployed(
    toys: Toys, own_cache_of_all: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("deployed")
    config = toys.recipe({"split.codec": "int8", "model.item_residual": "local"})
    grounds = Grounds.prepare(folder / "grounds", config, share_data(config))
    keys = grounds.keys
    with Processes(folder / "logs", toys.environment()) as processes:
        process = processes.start(
            "trunk",
            [
                *(*PROGRAM, "trunk", "--config", str(grounds.recipe), "--listen", "127.0.0.1:0"),
                *("--tls-cert", str(keys.trunk.certificate), "--tls-key", str(keys.trunk.key)),
                *("--client-ca", str(keys.authority), "--folder", str(grounds.trunk)),
            ],
        )
        said = process.wait_for(" on 127.0.0.1:", 60)
        it = train(grounds, config, said.rpartition(" on ")[2])
        yield it
        it.control.close()


def test_a_part_recommends_as_the_simulation(deployed: Deployment) -> None:
    expected = deployed.expected()
    history = [*titles()[:3], titles()[-1]]  # two items have the last one's title
    with deployed.open() as part:
        assert (part.name, part.users) == (CLIENT, expected.users)
        found = part.recommend(history, k=1000)
        assert_same(found, expected.recommend(history, k=1000))
        assert len(found) == len(titles()) - 5
        user = part.users[0]
        assert_same(part.recommend(user=user), expected.recommend(user=user))
        assert_same(part.recommend_items([4, 2], k=7), expected.recommend_items([4, 2], k=7))
        with pytest.raises(DataError, match="near: 'space story 0'"):
            part.recommend(["Space stroy 0"])
        with pytest.raises(DataError, match="client north has no user 'u1'"):
            part.recommend(user="u1")  # who is another client's
        with pytest.raises(ConfigError, match="not both"):
            part.recommend()


def test_it_is_the_best_label_and_not_the_last(deployed: Deployment, tmp_path: Path) -> None:
    """The comparison above could tell: the last label's tensors give other scores."""
    last = deployed.part / "rounds" / "2"
    whole = shutil.copytree(deployed.whole, tmp_path / "whole")
    for name in ("adapter", "private"):
        target = whole / "clients" / CLIENT / f"best_{name}.safetensors"
        shutil.copy(last / f"{name}.safetensors", target)
    history = titles()[:3]
    other = load_run(whole).client(CLIENT).recommend(history)
    best = deployed.expected().recommend(history)
    assert max(abs(o.score - b.score) for o, b in zip(other, best, strict=True)) > 1e-4


def test_a_session_that_was_lost_is_followed_by_another(deployed: Deployment) -> None:
    history = titles()[:3]
    with deployed.open() as first:
        expected = first.recommend(history)
        with deployed.open() as second:  # the trunk gives the client's seat to the newcomer
            assert_same(second.recommend(history), expected)
            assert_same(first.recommend(history), expected)
            assert_same(second.recommend(history), expected)
        first.close()
        assert_same(first.recommend(history), expected)


def test_nothing_is_left_at_the_trunk(deployed: Deployment) -> None:
    """Serving is read-only: no file of trunk or client changes, and no session stays open."""
    folders = (deployed.grounds.trunk, deployed.part)

    def files() -> dict[Path, bytes]:
        return {p: p.read_bytes() for folder in folders for p in folder.rglob("*") if p.is_file()}

    before = files()
    with deployed.open() as part:
        part.recommend(titles()[:3])
        (session,) = deployed.control.status().sessions
        assert (session.client, session.mode, session.state) == (CLIENT, "serve", "open")
        assert session.round == 2
    with pytest.raises(DataError), deployed.open() as part:
        part.recommend(["no such story"])
    standing = deployed.control.status()
    assert [session.state for session in standing.sessions] == ["finished"]
    assert standing.held_bytes == 0
    assert files() == before


def test_by_command(deployed: Deployment, toys: Toys) -> None:
    history = titles()[:3]
    words = [str(deployed.part), "--trunk", deployed.trunk, "--json", "-k", "6"]
    words += [word for title in history for word in ("--history", title)]
    done = subprocess.run(
        [*PROGRAM, "recommend", *words], env=toys.environment(), capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    rows = json.loads(done.stdout)
    assert [row["rank"] for row in rows] == [1, 2, 3, 4, 5, 6]
    found = [Recommendation(row["item"], row["title"], row["score"]) for row in rows]
    assert_same(found, deployed.expected().recommend(history, k=6))


def test_files_that_were_moved(deployed: Deployment, tmp_path: Path) -> None:
    place = deployed.grounds.place(CLIENT)
    files = {
        "data": place.data,
        "certificate": place.tls.certificate,
        "key": place.tls.key,
        "authority": place.tls.authority,
    }
    moved = {name: Path(shutil.copy(path, tmp_path / name)) for name, path in files.items()}
    path = shutil.copytree(deployed.part, tmp_path / "part")
    card = json.loads((path / "client.json").read_text())
    write_json(path / "client.json", card | {name: str(tmp_path / "none") for name in files})
    history = ("--history", titles()[0])
    for name in files:
        given = [(f"--{n}", p) for n, p in moved.items() if n != name]
        line = refused(call(path, "--trunk", deployed.trunk, *history, *sum(given, ())))
        assert "no such file" in line.lower(), line
    given = [(f"--{n}", p) for n, p in moved.items()]
    result = call(path, "--trunk", deployed.trunk, *history, *sum(given, ()))
    assert result.exit_code == 0 and "rank" in result.stdout


def call(*words: object) -> Result:
    return CliRunner().invoke(app, ["recommend", *(str(word) for word in words)])


def refused(result: Result) -> str:
    assert result.exit_code == 2, (result.output, result.exception)
    assert result.stderr.count("\n") == 1 and result.stderr.startswith("error: ")
    return result.stderr


def test_wrong_usage_is_one_line(deployed: Deployment) -> None:
    history = ("--history", titles()[0])
    at = ("--trunk", deployed.trunk)
    assert "say where: --trunk HOST:PORT" in refused(call(deployed.part, *history))
    assert "not 'south'" in refused(call(deployed.part, *at, *history, "--client", OTHER))
    assert "HOST:PORT" in refused(call(deployed.part, *history, "--trunk", "here"))
    assert "leave out --trunk" in refused(call(deployed.whole, *at, *history, "--client", CLIENT))
    assert "leave out --key" in refused(call(deployed.whole, *history, "--key", "none"))
    assert "choose one, --client" in refused(call(deployed.whole, *history))
    assert call(deployed.part, *at, *history, "--client", CLIENT).exit_code == 0


def case(
    name: str, deployed: Deployment, path: Path
) -> tuple[dict[str, Any], type[FellrecError], str]:
    """Return arguments that are refused, the error, and what its line says. path: a copied part."""
    other = deployed.grounds.place(OTHER)
    match name:
        case "wrong port":
            port = free_ports(1)[0]
            return {"trunk": f"127.0.0.1:{port}"}, WireError, "nothing answers"
        case "another client's certificate":
            tls = {"certificate": other.tls.certificate, "key": other.tls.key}
            return tls, ConfigError, "client 'south''s, this is client 'north''s part"
        case "a certificate and another key":
            return {"key": other.tls.key}, ConfigError, "not a certificate and its key"
        case "another authority":
            return {"authority": other.tls.certificate}, WireError, "not signed by"
        case "a client that the trunk has nothing of":
            recipe = RunConfig.from_toml(path / "config.toml")
            Coordinator(deployed.grounds, recipe, OTHER, None, "").hello()
            return {"path": other.run(RUN)}, WireError, "no best adapter of client 'south'"
        case "a run that the trunk does not know":
            rewrite(path, run="second")
            return {}, WireError, "knows no run 'second'"
        case "no run at all":
            rewrite(path, run="../first")
            return {}, RunError, "no run's id; bring back this client's client.json"
        case "a label that was lost":
            shutil.rmtree(path / "rounds" / "2")
            return {}, RunError, r"after 2 rounds.*\(rounds here: 1\); bring rounds/2 back"
        case "settings that changed":
            text = (path / "config.toml").read_text()
            (path / "config.toml").write_text(text.replace('codec = "int8"', 'codec = "fp32"'))
            return {}, WireError, "settings differs"
        case "another split":
            text = (path / "config.toml").read_text()
            (path / "config.toml").write_text(text.replace('"leave-one-out"', '"last-5"'))
            return {}, DataError, "name the file that this client was trained with"
        case "a whole run":
            return {"path": deployed.whole}, RunError, "not a client's part"
    raise ValueError(name)


def rewrite(path: Path, **changed: str) -> None:
    card = json.loads((path / "client.json").read_text())
    write_json(path / "client.json", card | changed)


@pytest.mark.parametrize(
    "name",
    [
        "wrong port",
        "another client's certificate",
        "a certificate and another key",
        "another authority",
        "a client that the trunk has nothing of",
        "a run that the trunk does not know",
        "no run at all",
        "a label that was lost",
        "settings that changed",
        "another split",
        "a whole run",
    ],
)
def test_bad_input_is_one_line(name: str, deployed: Deployment, tmp_path: Path) -> None:
    path = shutil.copytree(deployed.part, tmp_path / "part")
    given, error, said = case(name, deployed, path)
    with pytest.raises(error, match=said) as caught:
        deployed.open(**{"path": path, **given})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("recommender", ["bigrec", "recformer"])
def test_other_recommenders_a_newer_label_and_a_trunk_that_restarts(
    recommender: str, toys: Toys, tmp_path: Path
) -> None:
    base = toys.lm if recommender == "bigrec" else toys.bert
    config = toys.recipe({"model.recommender": recommender, "model.base": str(base)})
    grounds = Grounds.prepare(tmp_path / "grounds", config, share_data(config))
    pair = grounds.keys.trunk
    tls = TlsFiles(pair.certificate, pair.key, grounds.keys.authority)
    digests = check_trunk(config)

    def start(port: int = 0) -> TrunkService:
        server = trunk_server(config)
        assert server is not None
        settings = ServiceSettings(f"127.0.0.1:{port}", tls, grounds.trunk, *digests)
        return TrunkService(server, settings)

    service, history = start(), titles()[:3]
    try:
        it = train(grounds, config, f"127.0.0.1:{service.port}")
        expected = it.expected().recommend(history, k=20)
        with it.open() as part:
            assert_same(part.recommend(history, k=20), expected)
            assert_same(part.recommend(history, k=20), expected)
            best, trunk = it.coordinator.round(2, improves=True)
            assert_same(part.recommend(history, k=20), expected)  # by what the session began with
            write_whole(tmp_path / "newer", config, best, trunk)
            newer = load_run(tmp_path / "newer").client(CLIENT).recommend(history, k=20)
            assert newer != expected
            part.close()
            assert_same(part.recommend(history, k=20), newer)
            it.control.close()
            service.stop(0.0)
            with pytest.raises(WireError, match="nothing answers"):
                part.recommend(history)
            service = start(service.port)  # no coordinator has begun anything since
            assert_same(part.recommend(history, k=20), newer)
    finally:
        service.stop(0.0)


def test_a_run_without_a_trunk(toys: Toys, tmp_path: Path) -> None:
    config = toys.recipe({"model.k_out": 2})
    grounds = Grounds.prepare(tmp_path / "grounds", config, share_data(config))
    it = Coordinator(grounds, config, CLIENT, None, "")
    it.hello()
    path = grounds.place(CLIENT).run(RUN)
    with pytest.raises(RunError, match="no round has ended here yet"):
        open_part(path)
    with pytest.raises(ConfigError, match="leave out --trunk"):
        open_part(path, "127.0.0.1:9")
    best, _ = it.round(0, improves=True)
    write_whole(tmp_path / "whole", config, best, {})
    expected = load_run(tmp_path / "whole").client(CLIENT).recommend(titles()[:3])
    with open_part(path) as part:
        drawn = []
        for _ in range(2):  # nothing is ever sent under the noise of another history
            assert_same(part.recommend(titles()[:3]), expected)
            drawn.append(part.client.secretly.uniform((4,)))
        assert not drawn[0].equal(drawn[1])
    it.round(1, improves=False)
    it.test(2)
    shutil.rmtree(path / "rounds")  # what the run ended with stays
    result = call(path, "--history", titles()[0], "--json")
    assert result.exit_code == 0
    with open_part(path) as part:
        assert_same(part.recommend(titles()[:3]), expected)
