"""Why a connection to a trunk can't be had, in one line that says what to mend.

gRPC tells little about a failed TLS handshake, in words that change; so the handshake is done once
more with the standard library, and its errors are read.
"""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass

from fellrec.split.service.settings import TlsFiles, host_and_port


@dataclass(frozen=True)
class Diagnosis:
    """line: what is wrong. lasting: whether trying again is of no use."""

    line: str
    lasting: bool


def diagnose(address: str, tls: TlsFiles, seconds: float = 5.0) -> Diagnosis | None:
    """Connect to "HOST:PORT" as a client would; None when nothing is wrong.

    seconds: how long each part of it may take.
    """
    host, port = host_and_port(address, "trunk")
    context = ssl.create_default_context(cafile=str(tls.authority))
    context.load_cert_chain(tls.certificate, tls.key)
    context.set_alpn_protocols(["h2"])
    for last in (False, True):  # a network that cuts once is not blamed on the certificate
        try:
            plain = socket.create_connection((host, port), seconds)
        except (socket.gaierror, UnicodeError) as error:  # UnicodeError: no name can be like that
            return _unknown(host, error)
        except OSError as error:
            reason = error.strerror or "no answer"
            line = (
                f"nothing answers at {address} ({reason}); check the port, and that the trunk runs"
            )
            return Diagnosis(line, False)
        with plain:
            try:
                if not _greeted(plain, context, host):
                    if last:
                        return _refused(address, tls)
                    continue
            except ssl.SSLCertVerificationError as error:
                return Diagnosis(_certificate(address, host, tls, error), True)
            except ssl.SSLError as error:
                return _alert(address, tls, error)
            except OSError as error:
                reason = error.strerror or str(error)
                return Diagnosis(f"the connection to {address} was cut ({reason})", False)
        return None
    return None


def _unknown(host: str, error: OSError | UnicodeError) -> Diagnosis:
    if isinstance(error, OSError) and error.errno == socket.EAI_AGAIN:
        reason = error.strerror or "no name server answered"
        line = f"{host!r} can't be looked up just now ({reason}); check this machine's network"
        return Diagnosis(line, False)
    return Diagnosis(f"{host!r} is no host that is known here; check the trunk's address", True)


def _greeted(plain: socket.socket, context: ssl.SSLContext, host: str) -> bool:
    """Shake hands and wait for HTTP/2's first bytes, which come unasked.

    With TLS 1.3 the other side looks at our certificate only after our handshake is over, and gRPC
    then hangs up without a word.
    """
    with context.wrap_socket(plain, server_hostname=host) as secure:
        return bool(secure.recv(1))


def _refused(address: str, tls: TlsFiles) -> Diagnosis:
    line = (
        f"the trunk at {address} refused {tls.certificate}: it has expired, or is not signed by "
        "the authority that the trunk trusts; have a new one signed"
    )
    return Diagnosis(line, True)


def _certificate(
    address: str, host: str, tls: TlsFiles, error: ssl.SSLCertVerificationError
) -> str:
    if "mismatch" in error.verify_message or "not valid for" in error.verify_message:
        return (
            f"the trunk's certificate at {address} is not made out to {host!r}; "
            "use the name it is made out to, or make another"
        )
    return (
        f"the trunk's certificate at {address} is not signed by {tls.authority} "
        f"({error.verify_message}); use the authority that signed it"
    )


def _alert(address: str, tls: TlsFiles, error: ssl.SSLError) -> Diagnosis:
    reason = (error.reason or "").upper()
    if "WRONG_VERSION" in reason or "UNKNOWN_PROTOCOL" in reason or "HTTP_REQUEST" in reason:
        line = f"what answers at {address} is no trunk (it does not speak TLS); check the port"
        return Diagnosis(line, True)
    if "ALERT" in reason and any(word in reason for word in ("CA", "CERT", "DECRYPT")):
        return _refused(address, tls)
    if "EOF" in reason or not reason:
        return Diagnosis(f"what answers at {address} hung up amid the TLS handshake", False)
    return Diagnosis(f"no TLS with {address} ({reason}); check the port", True)
