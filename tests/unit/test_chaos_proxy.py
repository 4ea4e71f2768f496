"""The harness's own proxy does to connections what it says, and counts it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from chaos.proxy import Link
from ironcart.embedded.ports import free_port

ANSWER_WITHIN_S = 10.0


@asynccontextmanager
async def linked() -> AsyncIterator[tuple[Link, int]]:
    """A link in front of a server that says everything back."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while chunk := await reader.read(1024):
                writer.write(chunk)
                await writer.drain()
        writer.close()

    behind, port = free_port(), free_port()
    server = await asyncio.start_server(echo, "127.0.0.1", behind)
    link = Link("orders-postgres", lambda: ("127.0.0.1", behind), seed=1)
    await link.listen(port)
    try:
        yield link, port
    finally:
        await link.close()
        server.close()


async def ask(port: int, text: bytes, within_s: float = ANSWER_WITHIN_S) -> bytes:
    """Say something on a new connection; nothing when the connection ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(within_s):
            writer.write(text)
            with suppress(ConnectionError):
                return await reader.read(1024)
            return b""
    finally:
        writer.close()


async def test_bytes_pass_both_ways_and_are_counted() -> None:
    async with linked() as (link, port):
        assert await ask(port, b"hello") == b"hello"
        assert (link.counts.connections, link.counts.bytes_passed) == (1, 10)


async def test_a_delay_is_there_in_each_direction() -> None:
    async with linked() as (link, port):
        link.delay_s = 0.05
        clock = asyncio.get_running_loop().time
        began = clock()

        assert await ask(port, b"hello") == b"hello"

        assert clock() - began >= 0.1
        assert link.counts.bytes_delayed == 10


async def test_a_reset_ends_the_connection() -> None:
    async with linked() as (link, port):
        link.reset_rate = 1.0

        assert await ask(port, b"hello") == b""
        assert link.counts.resets == 1
        link.heal()
        assert await ask(port, b"hello") == b"hello"


async def test_what_is_held_arrives_after_the_release() -> None:
    async with linked() as (link, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"one")
        assert await reader.read(3) == b"one"

        link.hold()
        writer.write(b"two")
        with suppress(TimeoutError):
            async with asyncio.timeout(0.1):
                assert not await reader.read(3)
        assert link.counts.bytes_held == 3
        link.release()

        async with asyncio.timeout(ANSWER_WITHIN_S):
            assert await reader.read(3) == b"two"
        writer.close()


async def test_the_answer_to_a_commit_is_lost_though_it_was_done() -> None:
    async with linked() as (link, port):
        link.cut_answers(1)

        assert await ask(port, b"SELECT 1") == b"SELECT 1"
        assert await ask(port, b"Q\x00COMMIT;\x00") == b""
        assert link.counts.answers_cut == 1
        assert await ask(port, b"Q\x00COMMIT;\x00") == b"Q\x00COMMIT;\x00"


async def test_a_target_that_is_away_ends_the_connection_and_is_counted() -> None:
    port = free_port()
    link = Link("orders-broker", lambda: ("127.0.0.1", free_port()), seed=1)
    await link.listen(port)
    try:
        assert await ask(port, b"hello") == b""
        assert link.counts.refused == 1
    finally:
        await link.close()
