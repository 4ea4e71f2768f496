"""What a broker lets anybody write, whole or in pieces: nothing of it stops who comes after."""

import asyncio
import json
from urllib.parse import unquote, urlsplit

from nats.aio.msg import Msg

from ironcart.toolkit.broker import Broker, Delivery, Puller
from ironcart.toolkit.broker.wire import publication
from ironcart.verify import streams as outside

STREAM, DURABLE = "HOSTILE", "reader"
# Larger than one read of the client's, so that each message comes in pieces.
FILLING = b" " * 200_000
BLOCKS = (
    *(b"", b"\r\n", b"X", b"NATS/1.", b"NATS/1.0", b"no headers at all", b"\xff" * 20),
    *(b"NATS/1.0 \xff\xff\xff\r\n\r\n", b"NATS/1.0 409 Consumer Deleted\r\n\r\n"),
    *(b"NATS/1.0 100 \xff\xff\r\n\r\n", b"NATS/1.0\r\nStatus: 404\r\n\r\n"),
)
SUBJECTS = (b"hostile.a", b"hostile.\xff\xfe")


async def write_raw(url: str, commands: list[bytes]) -> None:
    """Speak to the broker without a client that would mind; returns once it has taken it all."""
    parts = urlsplit(url)
    assert parts.hostname
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    options: dict[str, bool | str] = {"verbose": False, "headers": True, "no_responders": True}
    if parts.username:
        options |= {"user": unquote(parts.username), "pass": unquote(parts.password or "")}
    await reader.readline()
    writer.write(b"CONNECT %b\r\n" % json.dumps(options).encode())
    writer.writelines([*commands, b"PING\r\n"])
    assert await reader.readline() == b"PONG\r\n"
    writer.close()


def raw(block: bytes, body: bytes, subject: bytes) -> bytes:
    sizes = (len(block), len(block) + len(body))
    return b"HPUB %b %d %d\r\n%b%b\r\n" % (subject, *sizes, block, body)


async def make_stream(broker: Broker) -> None:
    config = {"name": STREAM, "subjects": ["hostile.>"], "storage": "memory"}
    await broker.api(f"STREAM.CREATE.{STREAM}", config)
    durable = {"durable_name": DURABLE, "ack_policy": "explicit"}
    await broker.api(
        f"CONSUMER.CREATE.{STREAM}.{DURABLE}",
        {"stream_name": STREAM, "config": durable, "action": "create"},
    )


def everything_hostile() -> list[bytes]:
    """Each of the blocks, large and small, on each of the subjects; then one that is as usual."""
    hostile = [
        raw(block, body, subject)
        for block in BLOCKS
        for body in (b"", FILLING)
        for subject in SUBJECTS
    ]
    return [*hostile, publication("hostile.last", {"Nats-Msg-Id": "1"}, b"the last one")]


async def test_every_message_is_delivered_whatever_its_headers_and_its_subject_are(
    broker_url: str,
) -> None:
    broker = Broker(broker_url, "hostile")
    await broker.connect()
    try:
        await make_stream(broker)
        written = everything_hostile()
        await write_raw(broker_url, written)
        puller = Puller(broker, STREAM, DURABLE, slots=1_000)
        pulling = asyncio.create_task(puller.run())
        found: list[Delivery] = []
        async with asyncio.timeout(20):
            while len(found) < len(written):
                found += await puller.take(1_000)
        puller.stop()
        await pulling

        assert [each.stream_seq for each in found] == list(range(1, len(written) + 1))
        assert (found[-1].body, found[-1].headers) == (b"the last one", {"Nats-Msg-Id": "1"})
        assert {each.subject for each in found[:-1]} == {"hostile.a", "hostile.\ufffd\ufffd"}
    finally:
        await broker.api(f"STREAM.DELETE.{STREAM}")
        await broker.close()


async def test_the_outside_checker_hears_it_all_as_well(broker_url: str) -> None:
    written, found = everything_hostile(), asyncio.Queue[bytes]()

    async def hear(message: Msg) -> None:
        found.put_nowait(message.data)

    async with outside.broker([broker_url]) as client, asyncio.timeout(20):
        await client.subscribe("hostile.>", cb=hear)
        await client.flush()
        await write_raw(broker_url, written)
        heard = [await found.get() for _ in written]

    assert heard[-1] == b"the last one"
