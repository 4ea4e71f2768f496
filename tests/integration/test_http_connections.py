"""Connections that misbehave are refused as they deserve, and nobody else notices."""

import asyncio
import gc
import gzip
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from litestar import Response

from heart_parts import until
from ironcart.toolkit.http import Endpoint, Problem, Server, application, json_response, listen
from ironcart.toolkit.http import connection as limits
from ironcart.toolkit.http.problems import RETRY_AFTER_S_MIN
from ironcart.toolkit.http.routes import Answer, Call, json_body
from ironcart.toolkit.telemetry import Tracing

PATIENCE_S = 20.0
SLOW_S = 0.3
GET = b"GET /quick HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


class Ticket:
    def leave(self) -> None:
        """Nothing is counted."""


class Parts:
    """An app with one quick route, one that reads, one that waits, and a door that can close."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.read = 0
        self.door: Problem | Ticket = Ticket()

    async def quick(self, _: Call) -> Answer:
        return json_response(b'{"quick":true}')

    async def slow(self, _: Call) -> Answer:
        await self.go_on.wait()
        return json_response(b'{"slow":true}')

    async def echo(self, request: Call) -> Answer:
        body = await json_body(request)
        self.read += 1
        return json_response(body)

    async def broken(self, _: Call) -> Answer:
        raise RuntimeError("a bug")

    async def text(self, _: Call) -> Answer:
        return Response(b"quick", media_type="text/plain")

    async def torn(self, _: Call) -> Answer:
        return json_response(b"{}", headers={"Location": "/a\r\nSet-Cookie: b"})

    def endpoints(self) -> list[Endpoint]:
        return [
            Endpoint("GET", "/quick", self.quick),
            Endpoint("GET", "/broken", self.broken),
            Endpoint("GET", "/text", self.text),
            Endpoint("GET", "/slow", self.slow),
            Endpoint("GET", "/torn", self.torn),
            Endpoint("POST", "/echo", self.echo, door=lambda _: self.door),
        ]


class Caller:
    """One connection, spoken to in bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self.writer = reader, writer

    async def say(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def hear(self) -> tuple[int, dict[str, str], bytes]:
        """The next answer: status, headers, body."""
        async with asyncio.timeout(PATIENCE_S):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode()
            first, *lines = head.strip().split("\r\n")
            headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines)}
            body = await self._reader.readexactly(int(headers["content-length"]))
        return int(first.split()[1]), headers, body

    async def ended(self) -> bytes:
        """Whatever comes until the other side hangs up."""
        async with asyncio.timeout(PATIENCE_S):
            return await self._reader.read()


class Site:
    def __init__(self, parts: Parts, port: int) -> None:
        self.parts, self._port = parts, port
        self._callers: list[Caller] = []

    async def call(self, data: bytes = b"") -> Caller:
        """A new connection that has said something."""
        caller = Caller(*await asyncio.open_connection("127.0.0.1", self._port))
        self._callers.append(caller)
        await caller.say(data)
        return caller

    def hang_up(self) -> None:
        for caller in self._callers:
            caller.writer.close()


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with serving() as found:
        yield found


@asynccontextmanager
async def serving() -> AsyncIterator[Site]:
    parts = Parts()
    taken = listen("127.0.0.1", 0)
    app = application("test", "0", parts.endpoints(), Tracing("test", {}))
    server = Server(app, taken, 1.0)
    async with asyncio.TaskGroup() as group:
        group.create_task(server.run_until_finished())
        while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.01)
        site = Site(parts, taken.getsockname()[1])
        try:
            yield site
        finally:
            parts.go_on.set()
            site.hang_up()
            await server.finish()


def posting(body: bytes, *headers: str) -> bytes:
    lines = "".join(f"{line}\r\n" for line in (*headers, f"Content-Length: {len(body)}"))
    return POST + lines.encode() + b"\r\n" + body


def is_problem(answer: tuple[int, dict[str, str], bytes], status: int) -> bool:
    found, headers, body = answer
    kind = headers["content-type"]
    return (found, kind, json.loads(body)["status"]) == (status, "application/problem+json", status)


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (GET, 200),
        (GET.replace(b"GET", b"PUT"), 405),
        (GET.replace(b"quick", b"broken"), 500),
        (GET.replace(b"quick", b"text"), 200),
        (posting(b'{"a":1}'), 200),
        (posting(b'{"a":1}', "Content-Encoding: gzip"), 415),
        (posting(b"{}").replace(b"json", b"xml"), 415),
        (posting(b"{}", "Connection: close"), 200),
    ],
    ids=["read", "another method", "a bug", "text", "posted", "packed", "no JSON", "the last one"],
)
async def test_a_path_to_the_letter_is_answered_like_one_that_is_routed(
    site: Site, said: bytes, status: int
) -> None:
    to_the_letter = await (await site.call(said)).hear()
    routed = await (await site.call(said.replace(b" HTTP/1.1", b"/ HTTP/1.1", 1))).hear()
    assert to_the_letter[0] == status
    assert to_the_letter == routed


@pytest.mark.parametrize("first", [b"CONNECT x:1", b"GET http://x:99999/", b"GET x"])
async def test_what_is_no_path_is_a_400_and_no_bug(
    site: Site, first: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caller = await site.call(first + b" HTTP/1.1\r\nHost: x\r\n\r\n")
    assert is_problem(await caller.hear(), 400)
    assert not caplog.records


async def test_a_header_that_would_begin_another_is_not_sent(site: Site) -> None:
    assert await (await site.call(GET.replace(b"quick", b"torn"))).ended() == b""


async def test_a_host_that_cannot_be_is_refused_on_every_path(site: Site) -> None:
    for path in (b"/quick", b"/quick/"):
        caller = await site.call(b"GET %b HTTP/1.1\r\nHost: a b\r\n\r\n" % path)
        assert is_problem(await caller.hear(), 400)


BIG = limits.HEAD_BYTES_MAX
CHUNK = b"1000\r\n%b\r\n" % (b"a" * 4096)


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (GET[:-2] + b"X: " + b"a" * BIG + b"\r\n\r\n", 431),
        (GET[:-2] + b"".join(b"X-%d: a\r\n" % n for n in range(10_000)) + b"\r\n", 431),
        (GET[:-2] + b"X: a\r\n" * limits.HEADERS_MAX + b"\r\n", 431),
        (b"GET /quick?" + b"a" * BIG + b" HTTP/1.1\r\nHost: x\r\n\r\n", 431),
        (POST + b"Content-Length: 10000000\r\n\r\n" + b"a" * 10_000_000, 413),
        (POST + b"Content-Length: 65537\r\nExpect: 100-continue\r\n\r\n", 413),
        (
            POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"1000\r\n%b\r\n" % (b"a" * 4096) * 64,
            413,
        ),
        (posting(gzip.compress(b"0" * 1_000_000), "Content-Encoding: gzip"), 415),
    ],
    ids=lambda said: repr(said[:20]) if isinstance(said, bytes) else str(said),
)
async def test_what_is_too_much_is_refused_as_a_problem(
    site: Site, said: bytes, status: int
) -> None:
    caller = await site.call()
    saying = asyncio.ensure_future(caller.say(said))

    assert is_problem(await caller.hear(), status)

    saying.cancel()
    await asyncio.gather(saying, return_exceptions=True)
    assert site.parts.read == 0
    assert (await (await site.call(GET)).hear())[0] == 200


async def test_a_head_that_never_ends_is_refused_while_it_arrives(site: Site) -> None:
    caller = await site.call(GET[:-2] + b"X: ")

    async def drip() -> None:
        while True:
            await caller.say(b"a" * 1_000)
            await asyncio.sleep(0.001)

    dripping = asyncio.ensure_future(drip())
    assert is_problem(await caller.hear(), 431)
    dripping.cancel()
    await asyncio.gather(dripping, return_exceptions=True)


@pytest.mark.parametrize(
    "said",
    [b"GET /quick HTTP/1.1\r\nHost:", POST + b"Content-Length: 10\r\n\r\n12345"],
    ids=["in its head", "in its body"],
)
async def test_a_request_that_does_not_arrive_is_a_408(
    site: Site, said: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "ARRIVE_S_MAX", SLOW_S)
    caller = await site.call(GET)
    await caller.hear()
    await caller.say(said)

    assert is_problem(await caller.hear(), 408)
    assert await caller.ended() == b""


async def test_a_connection_that_says_nothing_is_closed(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "ARRIVE_S_MAX", SLOW_S)

    assert await (await site.call()).ended() == b""
    assert await (await site.call(b"\r\n\r\n")).ended() == b""


async def test_an_answer_that_takes_long_is_not_a_request_that_does(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "ARRIVE_S_MAX", SLOW_S)
    # The second request is half there, and we do not read on before the first has its answer.
    caller = await site.call(GET.replace(b"quick", b"slow") + GET + GET[:10])
    await asyncio.sleep(2 * SLOW_S)
    site.parts.go_on.set()

    assert (await caller.hear())[2] == b'{"slow":true}'
    assert (await caller.hear())[2] == b'{"quick":true}'
    assert is_problem(await caller.hear(), 408)


async def test_requests_in_a_row_are_answered_in_order_up_to_a_limit(site: Site) -> None:
    slow = GET.replace(b"quick", b"slow")
    caller = await site.call(slow + GET * (limits.PIPELINED_MAX + 5))
    site.parts.go_on.set()

    assert (await caller.hear())[2] == b'{"slow":true}'
    for _ in range(limits.PIPELINED_MAX):
        assert (await caller.hear())[0] == 200
    assert is_problem(await caller.hear(), 429)
    assert await caller.ended() == b""


async def test_what_is_not_http_is_said_after_the_answers_before_it(site: Site) -> None:
    caller = await site.call(GET.replace(b"quick", b"slow") + b"\x00\x00\r\n\r\n")
    site.parts.go_on.set()

    assert (await caller.hear())[2] == b'{"slow":true}'
    assert is_problem(await caller.hear(), 400)


async def test_a_closed_door_answers_at_once_and_the_connection_goes_on(site: Site) -> None:
    site.parts.door = Problem(503, "not now", headers={"Retry-After": "7"})
    caller = await site.call(posting(b"{}") + posting(b"{}"))
    for _ in range(2):
        status, headers, _body = await caller.hear()
        assert (status, headers["retry-after"]) == (503, "7")
    site.parts.door = Ticket()
    await caller.say(posting(b'{"a":1}'))

    assert (await caller.hear())[2] == b'{"a":1}'
    assert site.parts.read == 1


async def test_a_door_is_not_got_round_by_another_spelling_or_by_queueing(site: Site) -> None:
    site.parts.door = Problem(503, "not now")
    odd = [b"/%65cho", b"/echo/", b"/echo?a=b", b"http://x/echo", b"/echo#a"]
    odd += [b"//echo", b"///echo", b"/%2Fecho", b"/echo//", b"http://x//echo"]
    for path in odd:
        caller = await site.call(posting(b"{}").replace(b"/echo", path, 1))
        assert is_problem(await caller.hear(), 503)
    site.parts.go_on.set()
    caller = await site.call(GET.replace(b"quick", b"slow") + posting(b"{}"))
    assert (await caller.hear())[0] == 200
    assert is_problem(await caller.hear(), 503)
    assert site.parts.read == 0


async def test_whoever_floods_a_closed_door_is_not_read_for_a_while(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "REFUSALS_A_SECOND_MAX", -1)
    site.parts.door = Problem(503, "not now")
    caller = await site.call(posting(b"{}"))
    await caller.hear()
    loop = asyncio.get_running_loop()
    began = loop.time()
    await caller.say(GET)

    assert (await (await site.call(GET)).hear())[0] == 200
    assert (await caller.hear())[0] == 200
    assert loop.time() - began > RETRY_AFTER_S_MIN / 2


async def test_five_hundred_slow_connections_make_room_for_an_honest_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ironcart.toolkit.http.server.CONNECTIONS_MAX", 500)
    monkeypatch.setattr(limits, "GIVES_WAY_AFTER_S", 1_000)
    async with serving() as site:
        honest = await site.call(GET.replace(b"quick", b"slow"))
        for _ in range(499):
            await site.call(b"GET /quick HTTP/1.1\r\nX-")
        full = await site.call(GET)
        answer: Any = await full.hear()
        assert is_problem(answer, 503)

        monkeypatch.setattr(limits, "GIVES_WAY_AFTER_S", 0)
        others = [await site.call(GET) for _ in range(50)]
        assert [(await each.hear())[0] for each in others] == [200] * 50
        site.parts.go_on.set()
        assert (await honest.hear())[2] == b'{"slow":true}'


async def test_who_has_hung_up_leaves_nothing_for_the_collector(site: Site) -> None:
    def connections() -> int:
        return sum(isinstance(kept, limits.Connection) for kept in gc.get_objects())

    async def as_before() -> bool:
        return connections() == before

    gc.collect()
    before = connections()
    gc.disable()
    try:
        waiting = await site.call(GET.replace(b"quick", b"slow") + GET)
        for request in (GET, POST + b"Content-Length: 2\r\n\r\n{}", GET.replace(b"k", b"x")):
            assert (await (await site.call(request)).hear())[0] in {200, 404}
        assert connections() == before + 4
        site.hang_up()
        site.parts.go_on.set()
        await waiting.writer.wait_closed()
        await until(as_before)
    finally:
        gc.enable()
