"""Commands for machines apart: rehearse, certificates, trunk."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from fellrec import console as show
from fellrec.cli.run_commands import report
from fellrec.cli.shared import (
    AsJson,
    Recipe,
    RunFolder,
    Settings,
    print_json,
    quiet,
    resumable,
    waiting,
)
from fellrec.errors import ConfigError

DEPLOY = ("cryptography", "flwr", "grpc", "grpc_health", "prometheus_client", "psutil")


def rehearse(
    recipe: Recipe,
    settings: Settings = None,
    out: RunFolder = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted rehearsal of that folder.")
    ] = False,
    trunks: Annotated[
        int, typer.Option("--trunks", min=1, help="How many trunk servers share the clients.")
    ] = 1,
    record: Annotated[
        bool,
        typer.Option(
            "--record", help="Keep all that the servers see, in DIR.parties/recording: large."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train a recipe over real processes on this machine: a deployment in small.

    Starts a SuperLink, a SuperNode for each client and a trunk server, over TLS with certificates
    of its own, and stops them in the end. Leaves what `fellrec train` leaves, and beside it, in
    DIR.parties, what each party was left with.
    """
    from fellrec.config import RunConfig, parse_override
    from fellrec.extras import need

    need("deploy", DEPLOY, "to rehearse a deployment")
    changes = settings or []
    config = RunConfig.from_toml(recipe, dict(map(parse_override, changes)))
    console = show.make_console(stderr=as_json)
    path = out if out is not None else Path("runs") / config.name
    sets = [word for change in changes for word in ("--set", change)]
    again = ["fellrec", "rehearse", recipe, *sets, "--out", str(path), "--resume"]
    again += ["--trunks", str(trunks)] if trunks > 1 else []
    again += ["--record"] if record else []
    marker = path.with_name(f"{path.name}.parties") / "clients.json"
    with resumable(marker, shlex.join(again)):
        with waiting(console, "starting"):
            from fellrec.federation.flower.rehearse import rehearse as run
            from fellrec.progress import LineProgress

            quiet()
        observer = LineProgress(console, config.evaluation.metric)
        result = run(config, path, resume=resume, trunks=trunks, record=record, observer=observer)
    if as_json:
        print_json(result.summary)
    else:
        report(console, result.path)


def certificates(
    clients: Annotated[list[str], typer.Argument(metavar="CLIENT...", help="The clients' names.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to make.")],
    host: Annotated[
        list[str] | None,
        typer.Option(
            "--host",
            metavar="HOST",
            help="Name or address by which clients reach the servers. Repeatable. Default: "
            "this machine alone.",
        ),
    ] = None,
    days: Annotated[int, typer.Option("--days", min=1, help="How long they are good.")] = 90,
) -> None:
    """Make a certificate authority, and what servers and clients need to know each other by.

    Give each party its own files and ca.crt; ca.key stays with whoever admits clients.
    """
    from fellrec.federation.deployment.credentials import LOOPBACK, make_credentials

    made = make_credentials(out, clients, days=days, hosts=host or LOOPBACK)
    console = show.make_console()
    console.print(f"wrote {out}: good for {days} days", soft_wrap=True)
    for who, pair in {
        "trunk server": made.trunk,
        "coordinator": made.coordinator,
        **{f"client {show.plain(name)}": pair for name, pair in made.clients.items()},
    }.items():
        console.print(f"  {who}: {pair.certificate}, {pair.key.name}", soft_wrap=True)


def trunk(
    recipe: Annotated[
        str,
        typer.Option(
            "--config", metavar="RECIPE", help="A shipped recipe or a TOML file, as the clients'."
        ),
    ],
    listen: Annotated[
        str, typer.Option("--listen", metavar="HOST:PORT", help="Where clients reach it.")
    ],
    certificate: Annotated[
        Path, typer.Option("--tls-cert", metavar="FILE", help="This server's certificate, PEM.")
    ],
    key: Annotated[Path, typer.Option("--tls-key", metavar="FILE", help="Its private key, PEM.")],
    authority: Annotated[
        Path,
        typer.Option("--client-ca", metavar="FILE", help="Who signs clients' certificates, PEM."),
    ],
    folder: Annotated[
        Path, typer.Option("--folder", metavar="DIR", help="Where it keeps clients' adapters.")
    ] = Path("trunk"),
    coordinator: Annotated[
        str,
        typer.Option(
            "--coordinator", metavar="NAME", help="Common name of the coordinator's certificate."
        ),
    ] = "coordinator",
    metrics: Annotated[
        str,
        typer.Option(
            "--metrics", metavar="HOST:PORT", help="Serve Prometheus metrics there, over HTTP."
        ),
    ] = "",
    sessions: Annotated[
        int, typer.Option("--sessions", min=1, help="Most clients at the same time.")
    ] = 32,
    workers: Annotated[
        int, typer.Option("--workers", min=1, help="Steps computed at the same time.")
    ] = 1,
    idle: Annotated[
        float,
        typer.Option("--idle-seconds", min=1, help="How long a silent session is kept."),
    ] = 600.0,
    grace: Annotated[
        float,
        typer.Option("--grace-seconds", min=0, help="How long rounds may go on when it stops."),
    ] = 30.0,
    record: Annotated[
        Path | None,
        typer.Option(
            "--record", metavar="DIR", help="Keep every message it receives or sends there: large."
        ),
    ] = None,
    settings: Settings = None,
) -> None:
    """Serve the middle blocks of a recipe's base to its clients, over mutual TLS.

    It needs the base's weights and no data. Ctrl-C or SIGTERM lets running rounds end; a second
    one does not wait for them.
    """
    from fellrec.config import RunConfig, parse_override
    from fellrec.extras import need

    need("deploy", DEPLOY, "to serve a trunk")
    config = RunConfig.from_toml(recipe, dict(map(parse_override, settings or [])))
    console = show.make_console()
    with waiting(console, "checking the weights"):
        from fellrec.federation.deployment.trunk import check_trunk, run_trunk
        from fellrec.split.service.server import TrunkService
        from fellrec.split.service.settings import Limits, ServiceSettings, TlsFiles

        quiet()
        tls = TlsFiles(certificate, key, authority)
        tls.read()  # what is wrong with them shows before the weights are read
        _make(folder)
        weights, shared = check_trunk(config)
        chosen = ServiceSettings(
            listen=listen,
            tls=tls,
            folder=folder,
            manifest=weights,
            agreed=shared,
            coordinator=coordinator,
            metrics=metrics,
            record=record,
            limits=Limits(
                sessions=sessions, workers=workers, idle_seconds=idle, grace_seconds=grace
            ),
        )

    def ready(running: TrunkService) -> None:
        host = listen.rpartition(":")[0]
        console.print(f"trunk of {config.model.base} on {host}:{running.port}", soft_wrap=True)
        if metrics:
            there = f"{metrics.rpartition(':')[0]}:{running.metrics_port}"
            console.print(f"metrics on http://{there}/metrics", soft_wrap=True)
        console.print("stop it with Ctrl-C or SIGTERM", soft_wrap=True)

    run_trunk(config, chosen, ready)
    console.print("stopped", soft_wrap=True)


def _make(folder: Path) -> None:
    """Make the trunk's folder if it is not there; ConfigError where that can't be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"--folder {folder}: can't be made ({error.strerror}); name a folder that can"
        ) from None
