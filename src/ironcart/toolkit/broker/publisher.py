"""Publish many messages to one stream as one atomic batch: all stored or none, one fsync for all.

A batch that holds an id the stream has already seen is refused whole (10201): its messages then go
one by one, where `"duplicate": true` is success. An answer that does not come is an unknown
outcome: `Unavailable`, and whoever sends again sends the same ids.
"""

import asyncio
import uuid
from collections.abc import Sequence

from ironcart.toolkit.broker.connection import NOT_NOW, Broker, BrokerError, Outgoing, answer
from ironcart.toolkit.broker.wire import publication, write
from ironcart.toolkit.outcomes import IroncartError, Unavailable

BATCH_MESSAGES_MAX = 1_000
# Below this a batch costs the server more than its messages one by one.
BATCH_MESSAGES_MIN = 5
SINGLES_IN_FLIGHT_MAX = 64
DUPLICATE_IN_BATCH = 10201
# A batch that a leader had begun to take is gone with it; nothing of it was stored.
BATCH_INCOMPLETE = 10176
# The same id is on its way through the cluster: whether it arrives is not known yet.
ID_IN_FLIGHT = 10158
UNSETTLED = (BATCH_INCOMPLETE, ID_IN_FLIGHT)


async def publish(broker: Broker, messages: Sequence[Outgoing]) -> list[int]:
    """Publish up to `BATCH_MESSAGES_MAX` messages of one stream; returns their sequences, in order.

    Raises `Unavailable` when the outcome of any is unknown, `BrokerError` when the stream says no.
    """
    assert len(messages) <= BATCH_MESSAGES_MAX
    try:
        if len(messages) >= BATCH_MESSAGES_MIN:
            try:
                return await _publish_atomically(broker, messages)
            except BrokerError as error:
                if error.err_code != DUPLICATE_IN_BATCH:
                    raise
        return await _publish_singly(broker, messages)
    except BrokerError as error:
        if error.err_code in UNSETTLED:
            raise Unavailable(f"broker: {error}") from error
        raise


async def _publish_atomically(broker: Broker, messages: Sequence[Outgoing]) -> list[int]:
    if not broker.connected:
        raise Unavailable("the broker is away")
    batch_id = uuid.uuid4().hex
    *body, last = messages
    try:
        commands = [
            publication(message.subject, _headers(batch_id, sequence, message), message.body)
            for sequence, message in enumerate(body, start=1)
        ]
        await write(broker.client, b"".join(commands))
    except NOT_NOW as error:
        raise Unavailable(f"broker: {error or type(error).__name__}") from error
    commit = _headers(batch_id, len(messages), last) | {"Nats-Batch-Commit": "1"}
    final = answer(await broker.request(last.subject, last.body, commit))
    end: int = final["seq"]
    return list(range(end - len(messages) + 1, end + 1))


def _headers(batch_id: str, sequence: int, message: Outgoing) -> dict[str, str]:
    return {
        "Nats-Batch-Id": batch_id,
        "Nats-Batch-Sequence": str(sequence),
        "Nats-Msg-Id": message.message_id,
        **message.headers,
    }


async def _publish_singly(broker: Broker, messages: Sequence[Outgoing]) -> list[int]:
    in_flight = asyncio.Semaphore(SINGLES_IN_FLIGHT_MAX)

    async def one(message: Outgoing) -> int | IroncartError:
        # Returned, not raised: before Python 3.13 a task group whose child fails while it is waited
        # for leaves its parent marked as being cancelled (gh-116720), and that outlives the group.
        async with in_flight:
            headers = {"Nats-Msg-Id": message.message_id, **message.headers}
            try:
                reply = await broker.request(message.subject, message.body, headers)
                seq: int = answer(reply)["seq"]
            except (Unavailable, BrokerError) as error:
                return error
            return seq

    async with asyncio.TaskGroup() as group:
        sent = [group.create_task(one(message)) for message in messages]
    ends = [task.result() for task in sent]
    # One reason speaks for all of them; a plain "no" outranks silence.
    for kind in (BrokerError, Unavailable):
        for end in ends:
            if isinstance(end, kind):
                raise end
    return [end for end in ends if isinstance(end, int)]
