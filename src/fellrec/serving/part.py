"""A client's part of a deployment's run, ready to recommend over the trunk that it trained with.

The trunk knows the client by its certificate and lends it a read-only session on the best adapter
that the coordinator committed. It says which label that is, and the client brings its own tensors
of that label and no other.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from torch import Tensor

from fellrec.config import RunConfig
from fellrec.data.client_file import read_client_file
from fellrec.data.interactions import Ragged
from fellrec.data.sources import fetch_model
from fellrec.errors import ConfigError, DataError, RunError, WireError
from fellrec.federation.client import Client
from fellrec.federation.deployment.agreement import agreed
from fellrec.federation.deployment.certificates import name_in
from fellrec.federation.deployment.client_store import ClientStore
from fellrec.federation.deployment.party import check_client
from fellrec.federation.deployment.place import Place, noted
from fellrec.federation.recommenders import outline_part
from fellrec.federation.store import CLIENT
from fellrec.federation.turns import ClientModel, turn
from fellrec.federation.workspace import Workspace
from fellrec.files import read_tensors
from fellrec.models.bases import load_config
from fellrec.models.recommender import Kind
from fellrec.privacy import Secret
from fellrec.serving.ranking import Recommends, score
from fellrec.split.service.channel import Link
from fellrec.split.service.messages import Greeting
from fellrec.split.service.settings import TlsFiles
from fellrec.split.service.transport import GrpcTransport, greet


class Line:
    """The way to a trunk: a session that is opened when it is wanted, and anew after `close`.

    greeting: without a token, for the best adapter of a run. retry_seconds: how long the trunk may
    be out of reach before it is given up.
    """

    def __init__(self, link: Link, greeting: Greeting, retry_seconds: float) -> None:
        self._link = link
        self._greeting = greeting
        self._retry_seconds = retry_seconds
        self._session: GrpcTransport | None = None

    def open(self) -> int:
        """Return the label of the adapter that the session serves by; frames name it as a round.

        Raises WireError with the trunk's own line when it refuses, or why it can't be reached.
        """
        if self._session is None:
            self._session = GrpcTransport(
                self._link, self._greeting, retry_seconds=self._retry_seconds
            )
        try:
            return self._session.open()
        except BaseException:
            self.close(politely=False)
            raise

    def exchange(self, frame: bytes) -> bytes:
        """Send one frame of the open session and wait for its answer."""
        if self._session is None:
            raise WireError("no session is open at the trunk; ask again")
        return self._session.exchange(frame)

    def close(self, *, politely: bool = True) -> None:
        """Hang up; politely: let the trunk know, and wait until it has let go of the session."""
        session, self._session = self._session, None
        if session is None:
            return
        if politely:
            with suppress(WireError):  # a trunk that can't be told lets go when it is tired of us
                session.finish()
        session.close()


class Held:
    """What a client holds of a run, and where its trunk is; line: None where it needs none."""

    def __init__(self, store: ClientStore, line: Line | None) -> None:
        self.line = line
        self._store = store

    def best(self) -> tuple[int, ClientModel]:
        """Return the label that is served now, and the client's best tensors of it.

        Without a trunk these are what the run ended with, or while it lasts the newest ones, whose
        label is as good as any other. Raises RunError where they are not here.
        """
        if self.line is not None:
            label = self.line.open()
            return label, self._of(label)
        folder = self._store.path / CLIENT / self._store.client
        if (folder / "best_adapter.safetensors").is_file():
            adapter, private = (
                read_tensors(folder / f"best_{name}.safetensors") for name in ("adapter", "private")
            )
            return 0, ClientModel(adapter, private, {})
        labels = self._store.labels()
        if not labels:
            raise RunError(f"{self._store.path}: no round has ended here yet; let the run go on")
        return labels[-1], self._of(labels[-1])

    def _of(self, label: int) -> ClientModel:
        adapter = self._store.read(label, "best_adapter")
        if adapter is None:
            others = ", ".join(map(str, self._store.labels())) or "none"
            raise RunError(
                f"{self._store.path}: its best adapter after {label} rounds, which the trunk "
                f"serves, is not here (rounds here: {others}); bring rounds/{label} back, or let "
                "this client take part in another round"
            )
        private = self._store.read(label, "best_private")
        if private is None:
            # A client that got its adapter back from the coordinator has no private tensors yet.
            # The public start would be another head than the one that all of them started from.
            if RunConfig.from_toml(self._store.path / "config.toml").privacy.secret_start:
                raise RunError(
                    f"{self._store.path}: the private tensors of its best adapter after {label} "
                    "rounds are not here, and privacy.secret_start lets nothing stand for them; "
                    f"bring rounds/{label} back, or let this client take part in the run's test"
                )
            private = {}
        return ClientModel(adapter, private, {})


class Part(Recommends):
    """One client of a deployment's run, with its own data and adapter. Close it, or use `with`.

    A session that the trunk let go, because it was idle for long, because the trunk restarted or
    because another process of this client took over, is followed by another at the next call; that
    one serves by the adapter that is committed then. `close` leaves the model in memory; a later
    call connects again.
    """

    def __init__(
        self, client: Client, workspace: Workspace, held: Held, served: tuple[int, ClientModel]
    ) -> None:
        super().__init__(client, workspace.dataset.catalogue)
        self._workspace = workspace
        self._held = held
        self._served: tuple[int, ClientModel] | None = served
        self._ready = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end(politely=_calm(error))

    def close(self) -> None:
        """End the session at the trunk."""
        self._end(politely=True)

    def _end(self, *, politely: bool) -> None:
        self._served, self._ready = None, False
        if self._held.line is not None:
            self._held.line.close(politely=politely)

    def _scores(self, history: Ragged, k: int) -> Tensor:
        had_session = self._served is not None
        try:
            return self._score(history, k)
        except WireError:
            self._end(politely=False)
            if not had_session:
                raise
        return self._scores(history, k)

    def _score(self, history: Ragged, k: int) -> Tensor:
        if self._served is None:
            self._served = self._held.best()
        label, model = self._served
        private = {**self._workspace.initial(Kind.PRIVATE), **model.private}
        with turn(self._workspace, self.client, label, replace(model, private=private)):
            if not self._ready:
                self.client.begin_serving()
                self._ready = True
            return score(self.client, history, k)


def open_part(
    path: str | Path,
    trunk: str | None = None,
    *,
    client: str | None = None,
    data: Path | None = None,
    certificate: Path | None = None,
    key: Path | None = None,
    authority: Path | None = None,
    retry_seconds: float = 5.0,
) -> Part:
    """Open a client's part of a run, and its session at the trunk.

    path: the folder that the client kept of the run. trunk: "HOST:PORT"; None where the recipe
    leaves no block for one. client: whose part it has to be, None for anyone's. data, certificate,
    key, authority: where these files are now, if not where they were in training. retry_seconds:
    how long the trunk may be out of reach.

    Raises RunError for a folder that is no client's part or lacks what the trunk serves by,
    ConfigError for another client's part or certificate and for a trunk that is missing or not
    needed, DataError for the client's data, ModelError for weights that are not the base's,
    WireError for a trunk that refuses or can't be reached.
    """
    path = Path(path)
    place, run = noted(path)
    if client not in (None, place.name):
        raise ConfigError(f"{path}: is client {place.name!r}'s part of the run, not {client!r}'s")
    config = RunConfig.from_toml(path / "config.toml")
    own = read_client_file(data or place.data)
    if own.split_kind != config.data.split:
        raise DataError(
            f"{data or place.data}: is split {own.split_kind!r}, the run {config.data.split!r}; "
            "name the file that this client was trained with"
        )
    files = TlsFiles(
        certificate or place.tls.certificate, key or place.tls.key, authority or place.tls.authority
    )
    line = _line(config, trunk, replace(place, tls=files), run, retry_seconds)
    held = Held(ClientStore(path, place.name), line)
    try:
        served = held.best()  # a refusal comes before the weights are read
        workspace = Workspace(config, own.public(), transport=line, noise=Secret.drawn)
    except BaseException as error:
        if line is not None:
            line.close(politely=_calm(error))
        raise
    return Part(workspace.client(place.name, own.split), workspace, held, served)


def _line(
    config: RunConfig, trunk: str | None, place: Place, run: str, retry_seconds: float
) -> Line | None:
    """Prepare the way to the trunk; None where the recipe leaves no block for one."""
    architecture = load_config(fetch_model(config.model.base))
    if not outline_part(config, architecture, "trunk").blocks:
        if trunk is not None:
            raise ConfigError("clients of this run hold all blocks; leave out --trunk")
        return None
    if trunk is None:
        raise ConfigError("this run's middle blocks are on its trunk; say where: --trunk HOST:PORT")
    name = name_in(place.tls.certificate)
    if name != place.name:
        raise ConfigError(
            f"{place.tls.certificate}: is client {name!r}'s, this is client {place.name!r}'s part "
            "of the run; use its own"
        )
    place.tls.read()
    try:
        greeting = greet(manifest=check_client(config), settings=agreed(config), run=run)
    except ValueError:
        raise RunError(f"{run!r} is no run's id; bring back this client's client.json") from None
    link = Link(trunk, place.tls, config.split.max_frame_mib << 20)
    return Line(link, greeting, retry_seconds)


def _calm(error: BaseException | None) -> bool:
    """Whether there is time to wait for an answer: not after Ctrl-C."""
    return error is None or isinstance(error, Exception)
