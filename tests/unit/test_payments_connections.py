"""Connections that POSTs share: kept, never asked twice, and dropped when in doubt."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from ironcart.services.payments.gateway import connections
from ironcart.services.payments.gateway.connections import Connections

END_OF_HEAD = b"\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nRequest-Id: req_1\r\n\r\n{}"


class Site(asyncio.Protocol):
    """One connection's other side: says what it is told, once for each request."""

    def __init__(self, told: "Told") -> None:
        self._told = told

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._told.connections.append(transport)

    def data_received(self, data: bytes) -> None:
        self._told.requests.append(data)
        self._told.asked.set()
        for part in self._told.answer:
            self._transport.write(part)
        if self._told.hangs_up:
            self._transport.close()

    def connection_lost(self, _: Exception | None) -> None:
        self._told.lost.set()


class Told:
    """What the site is to say, and what it has heard."""

    def __init__(self) -> None:
        self.answer: list[bytes] = [OK]
        self.hangs_up = False
        self.requests: list[bytes] = []
        self.connections: list[asyncio.Transport] = []
        self.asked, self.lost = asyncio.Event(), asyncio.Event()


@asynccontextmanager
async def site() -> AsyncIterator[tuple[Told, Connections]]:
    told = Told()
    server = await asyncio.get_running_loop().create_server(lambda: Site(told), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    found = Connections(f"http://127.0.0.1:{port}/base/")
    try:
        yield told, found
    finally:
        found.close()
        server.close()
        for transport in told.connections:
            transport.close()


async def test_one_connection_serves_one_call_after_another() -> None:
    async with site() as (told, found):
        for _ in range(3):
            status, body, headers = await found.post("/v1/x", {"A": "b"}, b"c=d")

    assert (status, body, headers["request-id"]) == (200, b"{}", "req_1")
    assert len(told.connections) == 1
    head, _, sent = told.requests[0].partition(END_OF_HEAD)
    assert sent == b"c=d"
    assert head.startswith(b"POST /base/v1/x HTTP/1.1\r\nHost: 127.0.0.1:")
    assert head.endswith(b"\r\nA: b\r\nContent-Length: 3")


async def test_calls_at_once_have_a_connection_each() -> None:
    async with site() as (told, found):
        await asyncio.gather(*(found.post("/", {}, b"") for _ in range(3)))

        assert len(told.connections) == 3


@pytest.mark.parametrize(
    "answer",
    [
        [OK[:20], OK[20:-1], OK[-1:]],
        [b"HTTP/1.1 100 Continue\r\n\r\n", OK],
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\n\r\n"],
    ],
    ids=["in parts", "after another one", "in chunks"],
)
async def test_an_answer_is_read_however_it_comes(answer: list[bytes]) -> None:
    async with site() as (told, found):
        told.answer = answer
        for _ in range(2):
            status, body, _ = await found.post("/", {}, b"")
            assert (status, body) == (200, b"{}")


async def test_a_kept_connection_that_has_died_fails_its_call_and_nothing_is_sent_twice() -> None:
    async with site() as (told, found):
        await found.post("/", {}, b"1")
        told.answer, told.hangs_up = [], True
        with pytest.raises(OSError, match="closed"):
            await found.post("/", {}, b"2")
        told.answer, told.hangs_up = [OK], False

        assert len(told.requests) == 2
        assert (await found.post("/", {}, b"3"))[0] == 200
        assert len(told.connections) == 2


async def test_a_connection_that_was_closed_while_idle_is_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with site() as (told, found):
        await found.post("/", {}, b"")
        kept, heard = found._idle[0], asyncio.Event()
        lost = kept.connection_lost

        def connection_lost(error: Exception | None) -> None:
            lost(error)
            heard.set()

        monkeypatch.setattr(kept, "connection_lost", connection_lost)
        told.connections[0].close()
        await asyncio.wait_for(heard.wait(), 5)

        assert (await found.post("/", {}, b""))[0] == 200
        assert len(told.connections) == 2


async def test_whoever_is_cancelled_drops_the_connection_with_the_answer_that_may_come() -> None:
    async with site() as (told, found):
        told.answer = []
        waiting = asyncio.create_task(found.post("/", {}, b""))
        await told.asked.wait()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await asyncio.wait_for(told.lost.wait(), 5)
        told.answer = [OK]

        assert (await found.post("/", {}, b""))[0] == 200
        assert len(told.connections) == 2


@pytest.mark.parametrize(
    "break_it",
    [
        lambda told: told.answer.__setitem__(0, b"SSH-2.0\r\n"),
        lambda told: told.answer.__setitem__(0, OK.replace(b": 2", b": 9")),
    ],
    ids=["no HTTP", "too long"],
)
async def test_an_answer_that_cannot_be_read_is_an_error(
    break_it: Callable[[Told], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "ANSWER_BYTES_MAX", 1)
    async with site() as (told, found):
        break_it(told)
        with pytest.raises(OSError, match="the answer is"):
            await found.post("/", {}, b"")


async def test_a_second_answer_to_one_question_is_not_heard_by_the_next() -> None:
    stale = OK.replace(b"{}", b"[]")
    async with site() as (told, found):
        told.answer = [OK + stale[:30]]
        assert (await found.post("/", {}, b"1"))[1] == b"{}"
        told.connections[0].write(stale[30:])
        told.answer = [OK]

        assert (await found.post("/", {}, b"2"))[1] == b"{}"
        assert len(told.connections) == 2


async def test_a_dead_address_of_the_site_costs_a_quarter_of_a_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with site() as (_, found):
        loop = asyncio.get_running_loop()
        real = loop.getaddrinfo

        async def first_a_dead_one(*where: Any, **how: Any) -> Any:
            [alive] = await real(*where, **how)
            return [(*alive[:4], ("192.0.2.1", alive[4][1])), alive]

        monkeypatch.setattr(loop, "getaddrinfo", first_a_dead_one)
        async with asyncio.timeout(5):
            assert (await found.post("/", {}, b""))[0] == 200


@pytest.mark.parametrize("path", ["/v1/x y", "/v1/x\r\nHost: y", "v1", ""])
async def test_a_path_that_is_not_one_word_is_refused(path: str) -> None:
    async with site() as (_, found):
        with pytest.raises(ValueError, match="one word"):
            await found.post(path, {}, b"")


async def test_a_connection_that_is_to_be_closed_is_not_kept() -> None:
    async with site() as (told, found):
        told.answer = [OK.replace(b"Request-Id: req_1", b"Connection: close")]
        for _ in range(2):
            await found.post("/", {}, b"")

        assert len(told.connections) == 2


async def test_a_header_that_would_be_two_is_refused() -> None:
    async with site() as (_, found):
        with pytest.raises(ValueError, match="one line"):
            await found.post("/", {"Idempotency-Key": "a\r\nB: c"}, b"")
