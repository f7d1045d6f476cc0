"""A deployment's files, all on one machine: each party's own in a folder of its own.

recipe.toml            what all parties read
keys/                  certificates and keys, see `credentials`
clients/NAME/          a client's: data.fellrec, the clients' secret where the recipe asks for one,
                       and below `runs` what it keeps
trunk/                 the trunk server's adapters
app/                   the Flower app, flwr/ Flower's own home, logs/ what processes print
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from fellrec.config import RunConfig
from fellrec.data.sources import fetch_model
from fellrec.errors import ConfigError, RunError
from fellrec.federation.deployment.certificates import Pair
from fellrec.federation.deployment.credentials import Credentials, make_credentials
from fellrec.federation.deployment.dividing import hand_out
from fellrec.federation.deployment.place import Place
from fellrec.federation.runs import difference
from fellrec.federation.shares import Shares, share_data
from fellrec.files import read_json, write_bytes, write_json
from fellrec.models import manifest
from fellrec.privacy import Secret
from fellrec.split.service.settings import TlsFiles

_DAYS = 7


@dataclass(frozen=True)
class Grounds:
    """folder: of all of it. names: the clients, largest first."""

    folder: Path
    names: tuple[str, ...]

    @classmethod
    def prepare(cls, folder: Path, config: RunConfig, shares: Shares) -> Grounds:
        """Write everything that parties need to begin, or nothing.

        Raises RunError when the folder is a file or has something else in it, DataError and
        ConfigError for clients whose names can't name files.
        """
        if folder.exists() and not folder.is_dir():
            raise RunError(f"{folder}: is no folder; move it away or choose another folder")
        if folder.exists() and any(folder.iterdir()):
            raise RunError(f"{folder}: is not empty; choose another folder")
        for name in shares.partition.names:
            if "," in name or name != name.strip():  # the coordinator is told all in one line
                raise ConfigError(f"{name!r} can't name a client: it has a comma, or odd spaces")
        grounds = cls(folder, shares.partition.names)
        with _cleared_unless_whole(folder):
            grounds._write(config, shares)
        return grounds

    def _write(self, config: RunConfig, shares: Shares) -> None:
        write_bytes(self.recipe, config.to_toml().encode())
        make_credentials(self.folder / "keys", self.names, days=_DAYS)
        for name in self.names:
            self.place(name).folder.mkdir(parents=True)
            if config.privacy.secret_start:
                secret = Secret.of_seed(config.seed)  # as in a simulation of the same recipe
                write_bytes(self.secret_of(name), secret.key)
        hand_out(shares, config, lambda name: self.place(name).data)
        write_json(self.folder / "clients.json", list(self.names))

    @classmethod
    def made(cls, folder: Path, config: RunConfig) -> Grounds:
        """Load a recipe's data, and prepare."""
        manifest.digest(fetch_model(config.model.base))  # made once, before many look for it
        return cls.prepare(folder, config, share_data(config))

    @classmethod
    def at(cls, folder: Path, config: RunConfig) -> Grounds:
        """Find what `prepare` wrote; RunError where it is not, ConfigError for another recipe."""
        if not (folder / "recipe.toml").is_file():
            raise RunError(f"{folder}: no rehearsal to go on with; leave out --resume to start one")
        changed = difference(RunConfig.from_toml(folder / "recipe.toml"), config)
        if changed:
            raise ConfigError(f"{folder}: --resume needs the same recipe, but {changed} differs")
        names = read_json(folder / "clients.json")
        return cls(folder, tuple(map(str, names)))

    @property
    def coordinator(self) -> Path:
        """The coordinator's run directory."""
        return self.folder / "coordinator"

    @property
    def recipe(self) -> Path:
        """The recipe's file."""
        return self.folder / "recipe.toml"

    @property
    def trunk(self) -> Path:
        """The trunk server's folder."""
        return self.trunk_of(0)

    def trunk_of(self, number: int) -> Path:
        """Return the folder of one of several trunk servers."""
        return self.folder / (f"trunk-{number}" if number else "trunk")

    @property
    def keys(self) -> Credentials:
        """The certificates and keys."""
        return Credentials.at(self.folder / "keys", self.names)

    def place(self, name: str) -> Place:
        """Return a client's machine."""
        own, tls = self.folder / "clients" / name, self.tls(self.keys.clients[name])
        secret = self.secret_of(name) if self.secret_of(name).exists() else None
        return Place(own / "data.fellrec", own / "runs", tls, name, secret=secret)

    def secret_of(self, name: str) -> Path:
        """Return the file of the clients' common secret in one client's folder."""
        return self.folder / "clients" / name / "secret"

    def tls(self, own: Pair) -> TlsFiles:
        """Return a party's TLS files; own: its certificate and key."""
        return TlsFiles(own.certificate, own.key, self.keys.authority)

    def node_config(self, name: str) -> dict[str, str]:
        """Return what a client's SuperNode is told."""
        place = self.place(name)
        files = (
            place.data,
            place.folder,
            place.tls.certificate,
            place.tls.key,
            place.tls.authority,
        )
        keys = ("data", "folder", "certificate", "key", "authority")
        told = {key: str(path.resolve()) for key, path in zip(keys, files, strict=True)}
        if place.secret is not None:
            told["secret"] = str(place.secret.resolve())
        return told

    def run_config(self) -> dict[str, str]:
        """Return what the coordinator is told of it."""
        own = self.keys.coordinator
        return {
            "recipe": str(self.recipe.resolve()),
            "clients": ",".join(self.names),
            "certificate": str(own.certificate.resolve()),
            "key": str(own.key.resolve()),
            "authority": str(self.keys.authority.resolve()),
        }


@contextmanager
def _cleared_unless_whole(folder: Path) -> Iterator[None]:
    """Lend an empty folder; when the block raises, all in it goes, and so do folders made for it.

    Nothing was learned in there yet. What stayed would keep the same command from another try, and
    is keys and clients' data.
    """
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for path in folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        with suppress(OSError):  # another process has put something there
            for each in made:
                each.rmdir()
        raise


def parties_of(out: Path) -> Path:
    """Return the folder beside a run directory in which its parties have their own."""
    return out.with_name(f"{out.name}.parties")
