"""Read a stream as it is kept, from one sequence to another, without a consumer."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from nats.aio.msg import Msg

from ironcart.toolkit.broker.connection import NOT_NOW, Broker
from ironcart.toolkit.outcomes import Unavailable

READ_MESSAGES_MAX = 500
READ_BYTES_MAX = 8 * 1024 * 1024
READ_TIMEOUT_S = 5.0
# A follower of a cluster may be behind for a moment.
EMPTY_READS_MAX = 20
EMPTY_READ_PAUSE_S = 0.25


@dataclass(frozen=True, slots=True)
class Stored:
    """One message as its stream keeps it."""

    seq: int
    subject: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Extent:
    """What a stream holds: nothing when `last_seq` is below `first_seq`."""

    first_seq: int
    last_seq: int


async def extent(broker: Broker, stream: str) -> Extent:
    """Say what a stream holds; raises `BrokerError` when there is no such stream."""
    state: Mapping[str, Any] = (await broker.api(f"STREAM.INFO.{stream}"))["state"]
    return Extent(max(1, state["first_seq"]), state["last_seq"])


async def read(
    broker: Broker, stream: str, first_seq: int, last_seq: int
) -> AsyncIterator[list[Stored]]:
    """Yield what the stream holds from `first_seq` to `last_seq`, in order, in chunks.

    Sequences that it does not hold are left out. Raises `Unavailable` when it stops answering.
    """
    empty = 0
    while first_seq <= last_seq:
        chunk = await _chunk(broker, stream, first_seq)
        wanted = [each for each in chunk if each.seq <= last_seq]
        if wanted:
            yield wanted
        if chunk:
            first_seq, empty = chunk[-1].seq + 1, 0
            continue
        empty += 1
        if empty > EMPTY_READS_MAX:
            raise Unavailable(f"stream {stream} does not show what it has from {first_seq} on")
        await asyncio.sleep(EMPTY_READ_PAUSE_S)


async def _chunk(broker: Broker, stream: str, first_seq: int) -> list[Stored]:
    if not broker.connected:
        raise Unavailable("the broker is away")
    inbox = broker.client.new_inbox()
    subscription = await broker.client.subscribe(inbox)
    request = {"seq": first_seq, "batch": READ_MESSAGES_MAX, "max_bytes": READ_BYTES_MAX}
    found: list[Stored] = []
    try:
        await broker.client.publish(
            f"$JS.API.DIRECT.GET.{stream}", msgspec.json.encode(request), reply=inbox
        )
        while True:
            message: Msg = await subscription.next_msg(READ_TIMEOUT_S)
            headers = dict(message.headers or {})
            if status := headers.get("Status"):
                if status in ("204", "404"):
                    return found
                raise Unavailable(f"stream {stream}: {status} {headers.get('Description', '')}")
            seq, subject = int(headers["Nats-Sequence"]), headers["Nats-Subject"]
            found.append(Stored(seq, subject, headers, message.data))
    except NOT_NOW as error:
        raise Unavailable(f"broker: {error or type(error).__name__}") from error
    finally:
        if not broker.client.is_closed:
            await subscription.unsubscribe()
