"""Read a stream as it is kept, from one sequence to another, without a consumer.

Each message is asked for by its sequence and comes wrapped in JSON. Direct gets would be quicker,
but who may send those can forge anybody's events: the bare message goes to whatever subject the
request names for the answer.
"""

import asyncio
import base64
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from ironcart.toolkit.broker.connection import Broker, BrokerError
from ironcart.toolkit.broker.wire import read_headers

# Asked for at once: so many may be in memory, each up to a megabyte.
READ_MESSAGES_MAX = 100
MESSAGE_NOT_FOUND = 10037


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

    Sequences that it does not hold are left out. Raises `Unavailable` when it does not answer.
    """
    while first_seq <= last_seq:
        end = min(first_seq + READ_MESSAGES_MAX, last_seq + 1)
        asked = [_stored(broker, stream, seq) for seq in range(first_seq, end)]
        if found := [each for each in await asyncio.gather(*asked) if each is not None]:
            yield found
        first_seq = end


async def _stored(broker: Broker, stream: str, seq: int) -> Stored | None:
    try:
        answer = await broker.api(f"STREAM.MSG.GET.{stream}", {"seq": seq})
    except BrokerError as error:
        if error.err_code == MESSAGE_NOT_FOUND:
            return None
        raise
    message: Mapping[str, str] = answer["message"]
    headers = read_headers(base64.b64decode(message.get("hdrs", "")))
    body = base64.b64decode(message.get("data", ""))
    return Stored(seq, message["subject"], headers, body)
