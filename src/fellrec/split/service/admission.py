"""What has to agree before anyone is let in, and the refusals that are not final."""

from __future__ import annotations

import fellrec
from fellrec.errors import WireError
from fellrec.split.service.messages import PROTOCOL, Begin, Greeting
from fellrec.split.service.settings import ServiceSettings
from fellrec.split.service.tokens import Claims, verify


class BusyError(WireError):
    """Not now, but perhaps soon: too many sessions, or the server is about to stop."""


class MissingError(WireError):
    """An adapter is not on this server: the coordinator has to send it."""


def check_agreement(caller: Greeting | Begin, settings: ServiceSettings) -> None:
    """Compare versions and digests; WireError names the first that differs."""
    if isinstance(caller, Greeting):
        _same("protocol", str(caller.protocol), str(PROTOCOL))
    _same("fellrec version", caller.version, fellrec.__version__)
    _same("base model", caller.manifest, settings.manifest)
    _same("settings", caller.settings, settings.agreed)


def check_token(greeting: Greeting, name: str, key: bytes, run: str, now: float) -> Claims:
    """Check that a token is this client's, of this run, and has not expired.

    name: the common name of the client's certificate. now: seconds since the epoch. Who resumes a
    session may come with the token that opened it.

    Raises WireError for the first thing wrong.
    """
    claims = verify(key, greeting.token)
    if claims.client != name:
        raise WireError(
            f"the token is for client {claims.client!r}, the certificate for {name!r}; "
            "use the certificate of the client that was called"
        )
    if claims.run != run:
        raise WireError(f"the token is of run {claims.run!r}, this trunk works on {run!r}")
    if not greeting.resume and claims.expires < now:
        raise WireError("the token has expired; take a new one, or set this machine's clock")
    return claims


def _same(what: str, theirs: str, ours: str) -> None:
    if theirs != ours:
        raise WireError(
            f"the {what} differs: {theirs[:64]!r} there, {ours[:64]!r} on the trunk; "
            "use the same on both sides"
        )
