"""Who begins a TLS handshake and does not finish it takes nobody else's place."""

import asyncio
import contextlib
import gc
import socket
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ironcart.embedded.certificates import issue
from ironcart.toolkit.http import Endpoint, Server, application, handshake, json_response, listen
from ironcart.toolkit.http import connection as limits
from ironcart.toolkit.http.routes import Answer, Call
from ironcart.toolkit.telemetry import Tracing, http_connections
from ironcart.toolkit.tls import CA, Tls
from shopping import until

ROOM = 20
GET = b"GET /quick HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
# The beginning of a record of a handshake: more has to follow.
BEGUN = b"\x16\x03\x01"


@dataclass(frozen=True)
class Site:
    """A server over TLS."""

    port: int
    known: ssl.SSLContext

    async def answer(self) -> bytes:
        """What an honest caller hears, who sends its request right behind the handshake."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=self.known)
        writer.write(GET)
        said = await reader.read()
        writer.close()
        return said

    async def half_open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(BEGUN)
        return reader, writer


async def quick(_: Call) -> Answer:
    return json_response(b'{"quick":true}')


@pytest.fixture
async def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    monkeypatch.setattr("ironcart.toolkit.http.server.TLS_CONNECTIONS_MAX", ROOM)
    issue(tmp_path, ["orders"])
    taken = listen("127.0.0.1", 0)
    app = application("test", "0", [Endpoint("GET", "/quick", quick)], Tracing("test", {}))
    server = Server(app, taken, 1.0, Tls(tmp_path / "orders"))
    async with asyncio.TaskGroup() as group:
        group.create_task(server.run_until_finished())
        while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.01)
        known = ssl.create_default_context(cafile=tmp_path / CA)
        try:
            yield Site(taken.getsockname()[1], known)
        finally:
            await server.finish()


def open_now() -> float:
    return float(http_connections._value.get())


async def test_handshakes_that_are_never_finished_are_bounded_and_make_room(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "GIVES_WAY_AFTER_S", 0.2)
    half = [await site.half_open() for _ in range(3 * ROOM)]

    async def all_refused_but_a_roomful() -> bool:
        return sum(reader.at_eof() or bool(reader.exception()) for reader, _ in half) == 2 * ROOM

    await until(all_refused_but_a_roomful)
    assert open_now() == ROOM

    async def answered() -> bool:
        with contextlib.suppress(ConnectionError):
            return (await site.answer()).startswith(b"HTTP/1.1 200")
        return False

    await until(answered)
    for _, writer in half:
        writer.close()

    async def empty() -> bool:
        return open_now() == 0

    await until(empty)
    assert (await site.answer()).endswith(b'{"quick":true}')


async def test_who_was_answered_and_does_not_hang_up_takes_nobodys_place(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handshake, "GOODBYE_S_MAX", 0.2)

    def call() -> ssl.SSLSocket:
        plain = socket.create_connection(("127.0.0.1", site.port), timeout=10)
        caller = site.known.wrap_socket(plain, server_hostname="localhost")
        caller.sendall(GET)
        assert caller.recv(9) == b"HTTP/1.1 "
        return caller

    lingering = [await asyncio.to_thread(call) for _ in range(ROOM)]

    async def all_places_are_free() -> bool:
        return open_now() == 0

    await until(all_places_are_free)
    assert (await site.answer()).endswith(b'{"quick":true}')
    for each in lingering:
        each.close()


async def test_who_is_connected_and_says_nothing_costs_little_memory(site: Site) -> None:
    _, writer = await site.half_open()

    async def begun() -> bool:
        return open_now() == 1

    await until(begun)
    # Nothing public says it: should asyncio keep its bytes elsewhere one day, this fails.
    kept = [vars(each) for each in gc.get_objects() if isinstance(each, handshake.Handshake)]
    assert kept
    assert all(len(each["_ssl_buffer"]) == handshake.READ_BYTES_MAX for each in kept)
    writer.close()


async def test_a_handshake_takes_no_longer_than_it_may(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handshake, "HANDSHAKE_S_MAX", 0.2)
    reader, writer = await site.half_open()

    async with asyncio.timeout(5):
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""

    writer.close()
    assert open_now() == 0
