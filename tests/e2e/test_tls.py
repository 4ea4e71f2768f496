"""`up --tls`: everything works over TLS, and who speaks plainly or shows no certificate is out."""

import http.client
import json
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest

from ironcart.cli import deadletters
from ironcart.cli.address import TLS_HINT, Addresses
from ironcart.embedded.certificates import issue
from ironcart.toolkit.outcomes import Unavailable
from shopping import Shop, System, running_system

ANSWERS_WITHIN_S = 10.0


@pytest.fixture(scope="module")
def secured() -> Iterator[System]:
    with running_system("tls", "--tls") as found:
        yield found


@pytest.fixture
async def trusting(secured: System) -> AsyncIterator[Shop]:
    known = ssl.create_default_context(cafile=secured.run["tls"]["ca"])
    connector = aiohttp.TCPConnector(ssl=known)
    async with aiohttp.ClientSession(connector=connector) as session:
        yield Shop(secured, session)


async def test_an_order_is_placed_confirmed_and_verified_over_tls(
    secured: System, trusting: Shop
) -> None:
    assert all(each["url"].startswith("https://") for each in secured.run["services"].values())

    order = await trusting.ended(await trusting.place(await trusting.stocked()))

    assert order["status"] == "confirmed"
    for command in (("load", "--orders", "5"), ("doctor",)):
        done = secured.cli(*command)
        assert done.returncode == 0, done.stdout + done.stderr
    secured.verify()


def test_who_does_not_know_the_issuer_or_speaks_plainly_gets_no_answer(secured: System) -> None:
    site = urlsplit(secured.url("orders"))
    assert site.hostname

    with pytest.raises(ssl.SSLCertVerificationError):
        _asked(http.client.HTTPSConnection(site.hostname, site.port))
    with pytest.raises(http.client.RemoteDisconnected):
        _asked(http.client.HTTPConnection(site.hostname, site.port))
    known = ssl.create_default_context(cafile=secured.run["tls"]["ca"])
    assert _asked(http.client.HTTPSConnection(site.hostname, site.port, context=known)) == 200


def test_the_broker_wants_a_certificate_of_its_issuer_and_the_password_too(
    secured: System, tmp_path: Path
) -> None:
    issue(tmp_path, ["stranger"])
    ca, ours = secured.run["tls"]["ca"], Path(secured.run["tls"]["dir"])
    anonymous = ssl.create_default_context(cafile=ca)
    stranger = ssl.create_default_context(cafile=ca)
    stranger.load_cert_chain(tmp_path / "stranger" / "tls.crt", tmp_path / "stranger" / "tls.key")
    known = ssl.create_default_context(cafile=ca)
    known.load_cert_chain(ours / "tls.crt", ours / "tls.key")
    (url,) = secured.run["nats"]["urls"]

    assert _told(url, known) == "PONG"
    assert _told(url.replace("operator:", "operator:x"), known) == "-ERR 'Authorization Violation'"
    assert _told(url, None) == ""
    assert _told(url, anonymous) == _told(url, stranger) == ""


@pytest.mark.parametrize(("folder", "hint"), [("", f"; {TLS_HINT}"), ("certificates", "")])
async def test_of_a_broker_that_does_not_answer_who_has_no_certificates_hears_of_them(
    unused_tcp_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, hint: str
) -> None:
    issue(tmp_path, ["certificates"])
    monkeypatch.setattr(deadletters, "CONNECT_TIMEOUT_S", 0.2)
    tls_dir = str(tmp_path / folder) if folder else ""
    nobody = Addresses(
        nats_url=f"nats://a:b@127.0.0.1:{unused_tcp_port}", databases={}, tls_dir=tls_dir
    )

    with pytest.raises(Unavailable) as found:
        async with deadletters.connected(nobody):
            pass

    assert str(found.value) == f"the broker does not answer at 127.0.0.1:{unused_tcp_port}{hint}"


def _asked(connection: http.client.HTTPConnection) -> int:
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status
    finally:
        connection.close()


def _told(url: str, context: ssl.SSLContext | None) -> str:
    """What the broker says last to who connects so; nothing when it hangs up without a word."""
    try:
        return _last_said(url, context)
    except (ssl.SSLError, ConnectionError):
        return ""


def _last_said(url: str, context: ssl.SSLContext | None) -> str:
    site = urlsplit(url)
    with socket.create_connection((site.hostname, site.port), ANSWERS_WITHIN_S) as plain:
        line = plain
        if context is not None:
            line = context.wrap_socket(plain, server_hostname=site.hostname)
        with line, line.makefile("rwb") as both:
            told = {"user": site.username, "pass": site.password, "verbose": False}
            both.write(b"CONNECT " + json.dumps(told).encode() + b"\r\nPING\r\n")
            both.flush()
            said = b""
            while not said.startswith((b"PONG", b"-ERR")):
                said = both.readline()
                if not said.startswith((b"INFO", b"PONG", b"PING", b"-ERR")):
                    raise ConnectionError("it hung up, or speaks something else")
                if context is None:
                    break  # Whatever it says, it says in the clear.
            return said.decode().strip()
