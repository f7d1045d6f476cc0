"""Flower's processes on one machine: a SuperLink, a SuperNode per client, and runs on them."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

import fellrec
from fellrec.errors import ConfigError, RunError
from fellrec.federation.deployment.grounds import Grounds
from fellrec.federation.deployment.processes import Process, Processes, free_ports
from fellrec.federation.flower.settings import DEFAULTS
from fellrec.files import write_bytes

LINK = "rehearsal"
"""What Flower's configuration calls the SuperLink."""
_READY_SECONDS = 120.0
_HOST = "127.0.0.1"


def environment(home: Path) -> dict[str, str]:
    """Return this process's environment for Flower's: its own home, no telemetry, no installing.

    Its executors are looked for on the path, beside this Python first.
    """
    beside = str(Path(sys.executable).parent)
    return {
        **os.environ,
        "PATH": os.pathsep.join([beside, os.environ.get("PATH", "")]),
        "PYTHONUNBUFFERED": "1",
        "FLWR_HOME": str(home.resolve()),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    }


def tool(name: str) -> str:
    """Return the path of one of Flower's commands; ConfigError where it is not installed."""
    beside = Path(sys.executable).parent
    found = shutil.which(name, path=os.pathsep.join([str(beside), os.environ.get("PATH", "")]))
    if found is None:
        raise ConfigError(f"{name} is not installed; pip install 'fellrec[deploy]'")
    return found


def write_app(folder: Path) -> None:
    """Write a Flower app that is nothing but a pointer to the installed fellrec."""
    project = {
        "project": {
            "name": "fellrec-app",
            "version": fellrec.__version__,
            "description": "FELLRec's client and coordinator",
            "license": "Apache-2.0",
            "dependencies": [f"fellrec[deploy]=={fellrec.__version__}"],
        },
        "build-system": {"requires": ["hatchling"], "build-backend": "hatchling.build"},
        "tool": {
            "flwr": {
                "app": {
                    "publisher": "fellrec",
                    "components": {
                        "serverapp": "fellrec.federation.flower.server_app:app",
                        "clientapp": "fellrec.federation.flower.client_app:app",
                    },
                    "config": dict(DEFAULTS),
                }
            }
        },
    }
    write_bytes(folder / "pyproject.toml", tomli_w.dumps(project).encode())


class Network:
    """A SuperLink and the clients' SuperNodes, over TLS, each node known by its key."""

    def __init__(self, grounds: Grounds, processes: Processes) -> None:
        self._grounds = grounds
        self._processes = processes
        self._home = grounds.folder / "flwr"
        self._app = grounds.folder / "app"
        self._ports = dict(
            zip(("superlink", *grounds.names), free_ports(1 + len(grounds.names)), strict=True)
        )
        write_app(self._app)
        connection = {
            "address": f"{_HOST}:{self._ports['superlink']}",
            "root-certificates": str(grounds.keys.authority.resolve()),
        }
        config = {"superlink": {"default": LINK, LINK: connection}}
        write_bytes(self._home / "config.toml", tomli_w.dumps(config).encode())

    def start_link(self) -> Process:
        """Start the SuperLink and make the clients' nodes known to it."""
        pair, flwr = self._grounds.keys.superlink, tool("flwr")
        link = self._processes.start(
            "superlink",
            [
                tool("flower-superlink"),
                *("--ssl-certfile", str(pair.certificate)),
                *("--ssl-keyfile", str(pair.key)),
                *("--ssl-ca-certfile", str(self._grounds.keys.authority)),
                *("--host", _HOST, "--port", str(self._ports["superlink"])),
                "--enable-supernode-auth",
                "--disable-runtime-dependency-installation",
            ],
        )
        link.wait_for("Uvicorn running", _READY_SECONDS)
        for name, key in self._grounds.keys.nodes.items():
            self._processes.call(
                "flwr supernode register",
                [flwr, "supernode", "register", str(key.public), LINK, "--name", name],
            )
        return link

    def start_node(self, name: str) -> Process:
        """Start a client's SuperNode."""
        told = self._grounds.node_config(name)
        return self._processes.start(
            f"client-{name}",
            [
                tool("flower-supernode"),
                *("--superlink", f"{_HOST}:{self._ports['superlink']}"),
                *("--root-certificates", str(self._grounds.keys.authority)),
                *("--auth-supernode-private-key", str(self._grounds.keys.nodes[name].private)),
                *("--host", _HOST, "--port", str(self._ports[name])),
                *("--node-config", _words(told)),
            ],
        )

    def run(self, settings: Mapping[str, str | int | float | bool]) -> int:
        """Submit a run with these keys of its configuration; return its number."""
        said = self._processes.call(
            "flwr run",
            [
                tool("flwr"),
                *("run", str(self._app), LINK),
                *("--run-config", _words({**self._grounds.run_config(), **settings})),
                *("--format", "json"),
            ],
        )
        return int(_json(said)["run-id"])

    def status(self, run: int) -> tuple[str, str]:
        """Return how a run stands, such as "running" or "finished:failed", and why."""
        said = self._processes.call(
            "flwr ls", [tool("flwr"), "ls", LINK, "--run-id", str(run), "--format", "json"]
        )
        told = _json(said)["runs"][0]
        return str(told["status"]), " ".join(str(told["status-details"]).split())


def _words(values: Mapping[str, str | int | float | bool]) -> str:
    """Write values as Flower reads them on a command line: TOML, on one line."""
    pairs = (tomli_w.dumps({key: value}).strip() for key, value in values.items())
    return " ".join(pair.replace(" = ", "=", 1) for pair in pairs)


def _json(text: str) -> Any:
    try:
        return json.loads(text[text.index("{") :])
    except ValueError:
        raise RunError(f"flwr answered with something else than JSON: {text[:200]!r}") from None
