from __future__ import annotations

import shutil
import socket
import ssl
import stat
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    load_pem_private_key,
    load_ssh_private_key,
    load_ssh_public_key,
)
from hypothesis import given
from hypothesis import strategies as st

from fellrec.errors import ConfigError
from fellrec.federation.deployment.certificates import Authority, Pair, make_node_key
from fellrec.federation.deployment.credentials import COORDINATOR, Credentials, make_credentials
from fellrec.federation.deployment.x509 import Signer, Validity, sign_client

ODD = [
    "Bücher & Söhne",
    "CN=coordinator",
    "a,b+c;d",
    " space ",
    "日本",
    "🍏",
    '"q"',
    "x.key",
    "é" * 32,
]
CLIENTS = ["north", *ODD]
Attempt = Callable[[Path, Pair, Path, Pair | None], str]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Credentials:
    return make_credentials(tmp_path_factory.mktemp("made") / "keys", CLIENTS, days=2)


@pytest.fixture(scope="module")
def authority(made: Credentials) -> Authority:
    return Authority.load(made.authority.parent)


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Credentials:
    """Return what another authority of the same name made."""
    return make_credentials(tmp_path_factory.mktemp("foreign") / "keys", ["north"], days=2)


def by_ssl(trusted: Path, server: Pair, client_trusts: Path, client: Pair | None) -> str:
    """Connect with Python's ssl, both sides checking: the common name that the server sees.

    Raises OSError, of which ssl.SSLError is one, on whichever side refuses.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server.certificate, server.key)
    context.load_verify_locations(trusted)
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    calling = ssl.create_default_context(cafile=str(client_trusts))
    calling.verify_flags |= ssl.VERIFY_X509_STRICT
    if client is not None:
        calling.load_cert_chain(client.certificate, client.key)

    def answer(listening: socket.socket) -> str:
        connection, _ = listening.accept()
        with connection, context.wrap_socket(connection, server_side=True) as secure:
            secure.sendall(b"!")
            subject = secure.getpeercert()
            assert subject is not None
            return dict(part[0] for part in subject["subject"])["commonName"]  # type: ignore[misc]  # typed as many forms

    with socket.create_server(("127.0.0.1", 0)) as listening, ThreadPoolExecutor(1) as pool:
        seen = pool.submit(answer, listening)
        refused: OSError | None = None
        try:
            with (
                socket.create_connection(listening.getsockname()) as plain,
                calling.wrap_socket(plain, server_hostname="127.0.0.1") as secure,
            ):
                secure.recv(1)
        except OSError as error:
            refused = error
        name = seen.result()
        if refused is not None:
            raise refused
        return name


def by_grpc(trusted: Path, server: Pair, client_trusts: Path, client: Pair | None) -> str:
    """Make one call over gRPC, both sides checking: the common name that the server sees.

    Raises OSError where a side refuses.
    """

    def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
        (name,) = context.auth_context()["x509_common_name"]
        return bytes(name)

    handler = grpc.unary_unary_rpc_method_handler(answer)
    with ThreadPoolExecutor(1) as pool:
        service = grpc.server(pool)
        service.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler("test", {"who": handler})]
        )
        own = [(server.key.read_bytes(), server.certificate.read_bytes())]
        port = service.add_secure_port(
            "127.0.0.1:0", grpc.ssl_server_credentials(own, trusted.read_bytes(), True)
        )
        service.start()
        shown = (client.key.read_bytes(), client.certificate.read_bytes()) if client else ()
        credentials = grpc.ssl_channel_credentials(client_trusts.read_bytes(), *shown)
        try:
            with grpc.secure_channel(f"127.0.0.1:{port}", credentials) as channel:
                reply: bytes = channel.unary_unary("/test/who")(b"", timeout=60)
                return reply.decode()
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.UNAVAILABLE  # a refused handshake, not a fault
            raise OSError(error.details()) from None
        finally:
            service.stop(None).wait()


@pytest.fixture(params=[by_ssl, by_grpc], ids=["ssl", "grpc"])
def attempt(request: pytest.FixtureRequest) -> Attempt:
    found: Attempt = request.param
    return found


def test_both_sides_know_each_other(attempt: Attempt, made: Credentials) -> None:
    for name, files in made.clients.items():
        assert attempt(made.authority, made.trunk, made.authority, files) == name
    assert attempt(made.authority, made.superlink, made.authority, made.coordinator) == COORDINATOR


def test_a_client_of_another_authority_is_refused(
    attempt: Attempt, made: Credentials, foreign: Credentials
) -> None:
    with pytest.raises(OSError):
        attempt(made.authority, made.trunk, made.authority, foreign.clients["north"])


def test_a_server_of_another_authority_is_refused(
    attempt: Attempt, made: Credentials, foreign: Credentials
) -> None:
    with pytest.raises(OSError):
        attempt(made.authority, foreign.trunk, made.authority, made.clients["north"])


def test_a_client_without_a_certificate_is_refused(attempt: Attempt, made: Credentials) -> None:
    with pytest.raises(OSError):
        attempt(made.authority, made.trunk, made.authority, None)


def test_a_certificate_with_the_key_of_another_is_refused(
    attempt: Attempt, made: Credentials
) -> None:
    mixed = Pair(made.coordinator.certificate, made.clients["north"].key)
    with pytest.raises(OSError):
        attempt(made.authority, made.trunk, made.authority, mixed)


def test_servers_and_clients_can_not_pass_for_each_other(
    attempt: Attempt, made: Credentials
) -> None:
    with pytest.raises(OSError):
        attempt(made.authority, made.trunk, made.authority, made.superlink)
    with pytest.raises(OSError):
        attempt(made.authority, made.clients["north"], made.authority, made.clients["north"])


def test_a_client_can_not_vouch_for_others(
    attempt: Attempt, made: Credentials, tmp_path: Path
) -> None:
    own = made.clients["north"]
    certificate = x509.load_pem_x509_certificate(own.certificate.read_bytes())
    key = load_pem_private_key(own.key.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    begun = datetime.now(UTC) - timedelta(hours=1)
    forged = sign_client(
        Signer(certificate, key), COORDINATOR, Validity(begun, begun + timedelta(days=1))
    )
    pair = Pair.at(tmp_path / "forged")
    pair.certificate.write_bytes(forged.certificate + own.certificate.read_bytes())
    pair.key.write_bytes(forged.key)
    with pytest.raises(OSError):
        attempt(made.authority, made.trunk, made.authority, pair)
    shutil.copy(own.certificate, tmp_path / "ca.crt")
    shutil.copy(own.key, tmp_path / "ca.key")
    with pytest.raises(ConfigError, match="of no authority"):
        Authority.load(tmp_path)


@pytest.mark.parametrize("start", [timedelta(days=-3), timedelta(days=2)], ids=["old", "early"])
def test_a_certificate_is_good_in_its_time_only(
    attempt: Attempt, authority: Authority, made: Credentials, start: timedelta, tmp_path: Path
) -> None:
    when = datetime.now(UTC) + start
    long = Authority.make(tmp_path, days=30, start=datetime.now(UTC) - timedelta(days=10))
    trusted = long.files.certificate
    server = long.server(tmp_path / "server", ["127.0.0.1"], days=1)
    client = long.client(tmp_path / "client", "north", days=1)
    assert attempt(trusted, server, trusted, client) == "north"
    wrong_client = long.client(tmp_path / "wrong", "north", days=1, start=when)
    with pytest.raises(OSError):
        attempt(trusted, server, trusted, wrong_client)
    wrong_server = long.server(tmp_path / "late", ["127.0.0.1"], days=1, start=when)
    with pytest.raises(OSError):
        attempt(trusted, wrong_server, trusted, client)


def test_a_server_is_known_by_its_own_addresses_only(
    attempt: Attempt, authority: Authority, made: Credentials, tmp_path: Path
) -> None:
    elsewhere = authority.server(tmp_path / "elsewhere", ["192.0.2.7", "example.org"], days=1)
    with pytest.raises(OSError):
        attempt(made.authority, elsewhere, made.authority, made.clients["north"])


def test_no_certificate_outlives_its_authority(tmp_path: Path) -> None:
    short = Authority.make(tmp_path / "short", days=1)
    long = short.client(tmp_path / "long", "north", days=5)
    last = [
        x509.load_pem_x509_certificate(files.certificate.read_bytes()).not_valid_after_utc
        for files in (short.files, long)
    ]
    assert last[0] == last[1]
    old = Authority.make(tmp_path, days=1, start=datetime.now(UTC) - timedelta(days=3))
    with pytest.raises(ConfigError, match=r"is good until .* only; make a new authority"):
        old.client(tmp_path / "late", "north", days=5)
    assert not (tmp_path / "late.key").exists()


def test_private_keys_are_their_owners(made: Credentials) -> None:
    folder = made.authority.parent
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*.*")}
    assert {mode for path, mode in modes.items() if path.suffix == ".key"} == {0o600}
    assert {mode for path, mode in modes.items() if path.suffix != ".key"} == {0o644}
    assert len(modes) == 2 * (4 + 2 * len(CLIENTS))
    for path in modes:
        assert ("PRIVATE KEY" in path.read_text()) is (path.suffix == ".key")


def test_every_key_is_another(made: Credentials) -> None:
    keys = [path.read_bytes() for path in made.authority.parent.rglob("*.key")]
    assert len(set(keys)) == len(keys) == 4 + 2 * len(CLIENTS)


def test_a_nodes_keys_belong_together_and_are_of_flowers_kind(made: Credentials) -> None:
    # What `flwr supernode register` and `flower-supernode` do with their files.
    for files in made.nodes.values():
        public = load_ssh_public_key(files.public.read_bytes())
        private = load_ssh_private_key(files.private.read_bytes(), None)
        assert isinstance(public, ec.EllipticCurvePublicKey)
        assert isinstance(private, ec.EllipticCurvePrivateKey)
        assert private.public_key() == public
        assert public.curve.name == "secp384r1"


def test_an_authority_that_was_loaded_signs_like_the_one_made(
    attempt: Attempt, authority: Authority, made: Credentials, tmp_path: Path
) -> None:
    late = authority.client(tmp_path / "late", "late", days=1)
    assert attempt(made.authority, made.trunk, made.authority, late) == "late"


NAMES = st.text(min_size=1, max_size=30).filter(
    lambda name: name.isprintable() and len(name.encode()) <= 64
)


@given(name=NAMES)
def test_any_name_that_can_be_printed_is_the_common_name(
    name: str, authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> None:
    files = authority.client(tmp_path_factory.mktemp("any") / "client", name, days=1)
    subject = x509.load_pem_x509_certificate(files.certificate.read_bytes()).subject
    assert [part.value for part in subject] == [name]


@pytest.mark.parametrize("name", ["", "a\nb", "a\0b", "\u202e", "é" * 33, "\ud800"])
def test_a_name_that_no_certificate_can_hold(
    name: str, authority: Authority, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="can't be a certificate's name") as caught:
        authority.client(tmp_path / "client", name, days=1)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "host", ["", "a b", "bücher.example", "1.2.3", "1.2.3.400", "::g", "-a.org", "a..b", "*", "a/b"]
)
def test_a_host_that_can_not_be_one(host: str, authority: Authority, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is no (address|DNS name); write one like"):
        authority.server(tmp_path / "server", ["localhost", host], days=1)
    with pytest.raises(ConfigError, match="needs an address or a DNS name"):
        authority.server(tmp_path / "server", [], days=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("days", [0, -1, 10**6])
def test_days_that_can_not_be(days: int, authority: Authority, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="choose 1 to"):
        authority.client(tmp_path / "client", "north", days=days)
    with pytest.raises(ConfigError, match="choose 1 to"):
        Authority.make(tmp_path, days=days)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [COORDINATOR, "a/b", "a\\b", "..", ".", ""])
def test_a_name_that_would_be_mistaken(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="use another name"):
        make_credentials(tmp_path / "keys", ["north", name], days=1)
    with pytest.raises(ConfigError, match="two clients are called 'north'"):
        make_credentials(tmp_path / "keys", ["north", "north"], days=1)
    assert list(tmp_path.iterdir()) == []


def test_all_of_the_folder_or_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no DNS name"):
        make_credentials(tmp_path / "keys", ["north"], days=1, hosts=["a b"])
    assert list(tmp_path.iterdir()) == []
    make_credentials(tmp_path / "keys", ["north"], days=1)
    with pytest.raises(ConfigError, match="exists already"):
        make_credentials(tmp_path / "keys", ["north"], days=1)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    made = Authority.make(tmp_path, days=1)
    before = made.files.key.read_bytes()
    for again in (
        lambda: Authority.make(tmp_path, days=1),
        lambda: made.client(tmp_path / "ca", "north", days=1),
        lambda: make_node_key(tmp_path / "ca"),
    ):
        with pytest.raises(ConfigError, match="exists already"):
            again()
    assert made.files.key.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ca.crt", "ca.key"]
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="can't be written"):
        make_node_key(tmp_path / "file" / "node")


def test_an_authority_that_is_damaged_or_missing(tmp_path: Path, made: Credentials) -> None:
    with pytest.raises(ConfigError, match="no authority that can be read"):
        Authority.load(tmp_path)
    Authority.make(tmp_path, days=1)
    for damaged in (b"", b"junk", made.coordinator.key.read_bytes()):
        (tmp_path / "ca.key").write_bytes(damaged)
        with pytest.raises(ConfigError, match="are no authority") as caught:
            Authority.load(tmp_path)
        assert "\n" not in str(caught.value)


def test_without_cryptography_it_is_one_line_and_importing_costs_nothing(tmp_path: Path) -> None:
    program = f"""
import sys
from pathlib import Path
from fellrec.errors import ConfigError
from fellrec.federation.deployment import certificates, credentials
assert "cryptography" not in sys.modules
sys.modules["cryptography"] = None
for make in (
    lambda: certificates.Authority.make(Path({str(tmp_path)!r}), days=1),
    lambda: certificates.Authority.load(Path({str(tmp_path)!r})),
    lambda: certificates.make_node_key(Path({str(tmp_path)!r}) / "node"),
    lambda: credentials.make_credentials(Path({str(tmp_path)!r}) / "keys", ["a"], days=1),
):
    try:
        make()
    except ConfigError as error:
        assert "install fellrec[deploy]" in str(error), error
    else:
        raise SystemExit("nothing was raised")
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    assert list(tmp_path.iterdir()) == []
