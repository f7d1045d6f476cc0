"""Connections that can't be had, each with one line that says what to mend."""

from __future__ import annotations

import datetime
import http.server
import socket
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509

from fellrec.errors import ConfigError, WireError
from fellrec.split.service.channel import Link, UnreachableError, connect
from fellrec.split.service.control import TrunkControl
from fellrec.split.service.server import TrunkService
from fellrec.split.service.settings import ServiceSettings, host_and_port
from fellrec.split.service.transport import GrpcTransport, greet
from tests.split.running import AGREED, LIMIT, MANIFEST, Authority, Running, trunk_server


def settings_of(folder: Path, authority: Authority) -> ServiceSettings:
    return ServiceSettings(
        "127.0.0.1:0", authority.files("trunk"), folder / "adapters", MANIFEST, AGREED
    )


def line_of(link: Link) -> str:
    with pytest.raises((WireError, ConfigError)) as caught:
        connect(link).close()
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_nothing_at_the_port(authority: Authority) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    link = Link(f"127.0.0.1:{port}", authority.files("a"), connect_seconds=5)
    assert f"nothing answers at 127.0.0.1:{port}" in line_of(link)
    greeting = greet(manifest=MANIFEST, settings=AGREED, token="t")
    transport = GrpcTransport(link, greeting, retry_seconds=0.5)
    with pytest.raises(WireError, match=r"nothing answers.*check the port.*given up after"):
        transport.open()
    transport.close()


@pytest.mark.parametrize("host", ["trunk..example.org", f"{'x' * 70}.example.org"])
def test_a_host_that_no_name_can_be(authority: Authority, host: str) -> None:
    link = Link(f"{host}:9443", authority.files("a"), LIMIT, connect_seconds=5)
    assert line_of(link) == f"{host!r} is no host that is known here; check the trunk's address"
    with pytest.raises(WireError, match="is no host that is known here"):
        TrunkControl(link, {}).status()
    greeting = greet(manifest=MANIFEST, settings=AGREED, token="t")
    transport = GrpcTransport(link, greeting, reply_seconds=20)
    with pytest.raises(WireError, match="is no host that is known here"):
        transport.open()
    transport.close()


@pytest.mark.parametrize(
    ("number", "lasting", "line"),
    [
        (socket.EAI_NONAME, True, "is no host that is known here"),
        (socket.EAI_AGAIN, False, r"can't be looked up just now \(no resolver\); check"),
    ],
)
def test_a_resolver_that_does_not_answer_may_be_back_soon(
    authority: Authority,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    lasting: bool,
    line: str,
) -> None:
    def resolve(*_: object, **__: object) -> None:
        raise socket.gaierror(number, "no resolver")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    link = Link("trunk.invalid:9443", authority.files("a"), connect_seconds=5)
    with pytest.raises(WireError, match=line) as caught:
        connect(link)
    assert isinstance(caught.value, UnreachableError) is not lasting
    transport = GrpcTransport(link, greet(manifest=MANIFEST, settings=AGREED), retry_seconds=0.5)
    with pytest.raises(WireError, match=line) as caught:
        transport.open()
    assert ("given up after" in str(caught.value)) is not lasting
    transport.close()


def test_nobody_waits_for_a_connection_whose_thread_has_failed(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    def resolve(*_: object, **__: object) -> None:
        raise LookupError("what nobody\nthought of")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    link = Link("trunk.invalid:9443", authority.files("a"), connect_seconds=5)
    greeting = greet(manifest=MANIFEST, settings=AGREED)
    transport = GrpcTransport(link, greeting, reply_seconds=20)
    with pytest.raises(WireError, match=r"connection to .* failed \(what nobody\)") as caught:
        transport.open()
    assert isinstance(caught.value.__cause__, LookupError)
    transport.close()


def test_a_port_where_something_else_answers(authority: Authority) -> None:
    web = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    try:
        link = Link(f"127.0.0.1:{web.server_port}", authority.files("a"), connect_seconds=5)
        assert "check the port" in line_of(link)
    finally:
        web.shutdown()
        web.server_close()


def test_a_certificate_that_does_not_match_the_host(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "tls")
    authority.files("trunk", hosts=["trunk.example"])
    settings = settings_of(tmp_path, authority)
    service = TrunkService(trunk_server(), settings)
    try:
        link = Link(f"127.0.0.1:{service.port}", authority.files("a"))
        assert "is not made out to '127.0.0.1'" in line_of(link)
    finally:
        service.stop(0.0)


def test_a_trunk_of_another_authority(trunk: Running, tmp_path: Path) -> None:
    other = Authority(tmp_path / "other", "another authority")
    link = Link(trunk.address, other.files("a"))
    assert f"is not signed by {other.path}" in line_of(link)


def test_a_client_of_another_authority(trunk: Running, tmp_path: Path) -> None:
    other = Authority(tmp_path / "other", "another authority")
    mixed = replace(other.files("a"), authority=trunk.authority.path)
    assert f"refused {mixed.certificate}" in line_of(Link(trunk.address, mixed))


def test_a_client_s_certificate_that_has_expired(trunk: Running) -> None:
    tls = trunk.authority.files("late", days=-1)
    made = x509.load_pem_x509_certificate(tls.certificate.read_bytes())
    assert made.not_valid_after_utc < datetime.datetime.now(datetime.UTC)
    assert f"refused {tls.certificate}" in line_of(Link(trunk.address, tls))


def test_files_that_can_t_be_used(authority: Authority, tmp_path: Path) -> None:
    good = authority.files("a")
    text = tmp_path / "text.pem"
    text.write_text("no certificate")
    for wrong, line in (
        (replace(good, key=authority.files("b").key), "not a certificate and its key"),
        (replace(good, certificate=text), "not a certificate and its key"),
        (replace(good, authority=text), "not a certificate authority"),
        (replace(good, key=tmp_path / "none"), "none: can't be read"),
    ):
        assert line in line_of(Link("127.0.0.1:1", wrong))


@pytest.mark.parametrize("text", ["", "host", ":1", "host:", "host:x", "host:65536", "::1:5"])
def test_an_address_that_is_none(text: str) -> None:
    with pytest.raises(ConfigError, match="trunk: write"):
        host_and_port(text, "trunk")


def test_addresses() -> None:
    assert host_and_port("[::1]:80", "trunk") == ("::1", 80)
    assert host_and_port("localhost:0", "trunk") == ("localhost", 0)
