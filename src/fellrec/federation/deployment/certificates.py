"""A small private certificate authority, and the files of those whom it vouches for.

Whoever trusts `ca.crt` trusts what was signed with `ca.key`, and nobody else: no public authority
can make a client. A client is who its certificate's common name says.

    NAME.crt   a certificate, PEM; public
    NAME.key   its private key, PEM, readable by its owner only; never sent to anyone
    NAME.pub   the public key of a Flower SuperNode, for `flwr supernode register`; its NAME.key is
               for `flower-supernode --auth-supernode-private-key`

Files are never replaced: an authority that is overwritten shuts out all whom it vouched for.
"""

from __future__ import annotations

import importlib
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from fellrec.data.files import replace_file
from fellrec.errors import ConfigError
from fellrec.extras import need

if TYPE_CHECKING:
    from types import ModuleType

    from fellrec.federation.deployment import x509

MAX_NAME_BYTES = 64
"""Most bytes of a common name, which X.509 sets; also of a client's name on the wire."""
MAX_DAYS = 36_500
_EARLIER = timedelta(hours=1)  # clocks of several machines differ
_LABEL = r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)"
_DNS = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_ADDRESS = re.compile(r"[0-9.]+|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*")


@dataclass(frozen=True)
class Pair:
    """A certificate's file and that of its private key."""

    certificate: Path
    key: Path

    @classmethod
    def at(cls, stem: Path) -> Pair:
        """Return the paths that begin with `stem`."""
        return cls(stem.with_name(f"{stem.name}.crt"), stem.with_name(f"{stem.name}.key"))


@dataclass(frozen=True)
class NodeKey:
    """The files of a SuperNode's keys."""

    public: Path
    private: Path

    @classmethod
    def at(cls, stem: Path) -> NodeKey:
        """Return the paths that begin with `stem`."""
        return cls(stem.with_name(f"{stem.name}.pub"), stem.with_name(f"{stem.name}.key"))


class Authority:
    """A certificate authority whose key is in memory; `make` or `load` gives one."""

    def __init__(self, files: Pair, signer: x509.Signer) -> None:
        self.files = files
        self._signer = signer

    @classmethod
    def make(
        cls, folder: Path, *, days: int, name: str = "fellrec", start: datetime | None = None
    ) -> Authority:
        """Make an authority in `folder`, as `ca.crt` and `ca.key`.

        Args:
            folder: made if it is missing.
            days: how long its certificate is good.
            name: what others see in it.
            start: when it begins to be good; now if None.

        Raises:
            ConfigError: it exists already, can't be written, or a name or number that won't do.
        """
        library = _library()
        files = Pair.at(folder / "ca")
        signed = library.new_authority(_name(name), _validity(days, start))
        _write_pair(files, signed)
        return cls(files, library.load_signer(signed.certificate, signed.key))

    @classmethod
    def load(cls, folder: Path) -> Authority:
        """Read an authority that was made before; ConfigError when it isn't there or is damaged."""
        library = _library()
        files = Pair.at(folder / "ca")
        try:
            return cls(
                files, library.load_signer(files.certificate.read_bytes(), files.key.read_bytes())
            )
        except OSError as error:
            raise ConfigError(
                f"{folder}: no authority that can be read ({error.strerror or error}); "
                "make one there first"
            ) from None
        except (ValueError, TypeError) as error:  # TypeError: the key has a password
            reason = str(error).splitlines()[0] if str(error) else "it is damaged"
            raise ConfigError(
                f"{folder}: ca.crt and ca.key are no authority ({reason}); bring them back or make "
                "another authority"
            ) from None

    def server(
        self, stem: Path, hosts: Sequence[str], *, days: int, start: datetime | None = None
    ) -> Pair:
        """Make a server's certificate and key.

        Args:
            stem: their path without the ending.
            hosts: the addresses and DNS names that others reach it by; no other is accepted.
            days: how long it is good, at most as long as the authority is.
            start: when it begins to be good; now if None.

        Raises:
            ConfigError: a file that exists already or can't be written, a host that is neither an
                address nor a DNS name, no host at all, or days that won't do.
        """
        if not hosts:
            raise ConfigError(f"{stem}: a server needs an address or a DNS name; give one")
        for host in hosts:
            _check_host(host)
        files = Pair.at(stem)
        signed = _library().sign_server(
            self._signer, "server of fellrec", hosts, self._validity(days, start)
        )
        _write_pair(files, signed)
        return files

    def client(self, stem: Path, name: str, *, days: int, start: datetime | None = None) -> Pair:
        """Make a client's certificate and key.

        Args:
            stem: their path without the ending.
            name: who it is: the certificate's common name.
            days: how long it is good, at most as long as the authority is.
            start: when it begins to be good; now if None.

        Raises:
            ConfigError: a file that exists already or can't be written, a name that no certificate
                can hold, or days that won't do.
        """
        files = Pair.at(stem)
        signed = _library().sign_client(self._signer, _name(name), self._validity(days, start))
        _write_pair(files, signed)
        return files

    def _validity(self, days: int, start: datetime | None) -> x509.Validity:
        validity = _validity(days, start)
        last = self._signer.certificate.not_valid_after_utc
        if last <= validity.first:
            raise ConfigError(
                f"{self.files.certificate} is good until {last:%Y-%m-%d} only; make a new authority"
            )
        return validity


def name_in(certificate: Path) -> str:
    """Return whom a certificate is made out to; ConfigError for a file that is none."""
    try:
        name: str = _library().common_name(certificate.read_bytes())
    except OSError as error:
        raise ConfigError(f"{certificate}: can't be read ({error.strerror})") from None
    except ValueError:
        raise ConfigError(f"{certificate}: not a certificate of one party, in PEM") from None
    return name


def make_node_key(stem: Path) -> NodeKey:
    """Make the key pair by which a SuperLink knows a SuperNode; ConfigError if it can't be written.

    stem: the files' path without the ending.
    """
    files = NodeKey.at(stem)
    public, private = _library().new_node_key()
    _write_new({files.private: (private, 0o600), files.public: (public, 0o644)})
    return files


def _library() -> ModuleType:
    """Import what needs the optional package, when it is needed."""
    need("deploy", ("cryptography",), "to make certificates")
    return importlib.import_module("fellrec.federation.deployment.x509")


def _validity(days: int, start: datetime | None) -> x509.Validity:
    if not 1 <= days <= MAX_DAYS:
        raise ConfigError(f"a certificate can't be good for {days} days; choose 1 to {MAX_DAYS}")
    first = datetime.now(UTC) if start is None else start.astimezone(UTC)
    validity: x509.Validity = _library().Validity(first - _EARLIER, first + timedelta(days=days))
    return validity


def _name(name: str) -> str:
    """Return a name that a certificate can hold as it is."""
    if not name or not name.isprintable() or len(name.encode()) > MAX_NAME_BYTES:
        raise ConfigError(
            f"{name!r} can't be a certificate's name; use 1 to {MAX_NAME_BYTES} bytes that can be "
            "printed"
        )
    return name


def _check_host(host: str) -> None:
    if _ADDRESS.fullmatch(host):
        try:
            ipaddress.ip_address(host)
        except ValueError:
            raise ConfigError(f"{host!r} is no address; write one like 192.0.2.7") from None
    elif len(host) > 253 or not _DNS.fullmatch(host):
        raise ConfigError(f"{host!r} is no DNS name; write one like trunk.example.org")


def _write_pair(files: Pair, signed: x509.Signed) -> None:
    _write_new({files.key: (signed.key, 0o600), files.certificate: (signed.certificate, 0o644)})


def _write_new(files: dict[Path, tuple[bytes, int]]) -> None:
    """Write files that do not exist yet, each with its permissions."""
    for path in files:
        if path.exists():
            raise ConfigError(f"{path} exists already; choose another name, or delete it")
    for path, (data, mode) in files.items():
        try:
            replace_file(path, data, mode)
        except OSError as error:
            raise ConfigError(f"{path}: can't be written ({error.strerror or error})") from None
