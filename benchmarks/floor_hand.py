"""A process of the floor: pulls, writes, publishes and acks in batches, and thinks of nothing."""

import asyncio
import os
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from itertools import islice
from typing import Any, ClassVar

from asyncpg.pgproto.pgproto import UUID
from msgspec import Struct
from msgspec.structs import replace

from benchmarks.stage import shopping
from ironcart.events import (
    CURRENCY_DEFAULT,
    SUBJECTS,
    Line,
    NotificationSent,
    OrderConfirmed,
    OrderCreated,
    PaymentSucceeded,
    StockCommitted,
    StockReserved,
)
from ironcart.toolkit import history
from ironcart.toolkit.broker import Broker, Delivery, Puller, publish
from ironcart.toolkit.database import Connection, Database
from ironcart.toolkit.envelope import seal
from ironcart.toolkit.history import Cause, Commit, History, Recorded
from ironcart.toolkit.loop.consumer import MESSAGES_IN_HAND_MAX, SETTLING_BATCHES_MAX
from ironcart.toolkit.loop.parking import blocked
from ironcart.toolkit.outcomes import Fact
from ironcart.toolkit.telemetry import TraceContext

# How long a batch that is not full waits for more, in seconds.
LINGER_S = 0.02
SAMPLES = 64

TRACE_ID = uuid.uuid4().hex
CONTEXT = TraceContext(TRACE_ID, TRACE_ID[:16])
CAUSE = Cause(TRACE_ID, CONTEXT, str(uuid.UUID(int=1)))
DIGEST = "0" * 64
PLACE = "ORD-" + "0" * 26
_NAMED = b'"aggregate_id":"'
_MARK = """
UPDATE batches b SET first_seq = m.seq FROM unnest($1::bigint[], $2::bigint[]) AS m(batch_no, seq)
WHERE b.batch_no = m.batch_no
"""

Deal = Callable[[Sequence[Delivery]], Awaitable[Commit | None]]
Loop = Coroutine[Any, Any, None]


def bodies() -> dict[type[Struct], list[bytes]]:
    """Events as the services write them, of some orders; `PLACE` is where the order's id goes."""
    found: dict[type[Struct], list[bytes]] = {}
    for created in islice(shopping(), SAMPLES):
        who, amount, items = created.customer_id, created.amount, created.items or ()
        for data in (
            replace(created, order_id=PLACE),
            StockReserved(PLACE, who, amount, CURRENCY_DEFAULT, items, None, created.contact),
            PaymentSucceeded(PLACE, amount, CURRENCY_DEFAULT, "pi_" + "0" * 24),
            OrderConfirmed(PLACE, who, amount, CURRENCY_DEFAULT, None, created.contact),
            StockCommitted(PLACE, lines_of(created)),
            NotificationSent(PLACE, "mail", "confirmed", DIGEST),
        ):
            cause = None if isinstance(data, OrderCreated) else CAUSE.causation_id
            fact = Fact(PLACE, 1, data)
            _, body = seal("floor", fact, trace_id=TRACE_ID, causation_id=cause)
            found.setdefault(type(data), []).append(body)
    return found


def lines_of(created: OrderCreated) -> tuple[Line, ...]:
    """What an order takes of stock."""
    return tuple(Line(item.sku, item.quantity) for item in created.items or ())


def order_ids(batch: Sequence[Delivery]) -> list[str]:
    """Whom messages are about: the only thing that is read of them."""
    found = []
    for each in batch:
        at = each.body.index(_NAMED) + len(_NAMED)
        found.append(each.body[at : at + len(PLACE)].decode())
    return found


async def admit(connection: Connection, batch: Sequence[Delivery]) -> list[str]:
    """What the loop does before any handler; returns whom the messages are about."""
    ids = order_ids(batch)
    arrivals = [(UUID(each.headers["Nats-Msg-Id"]), each.stream_seq) for each in batch]
    await history.admit(connection, batch[0].stream, arrivals)
    await blocked(connection, ids)
    return ids


class Hand:
    """One process, with a puller for each of its `streams`."""

    name: ClassVar[str]
    streams: ClassVar[tuple[str, ...]]

    def __init__(self, database: Database, broker: Broker, batch: int) -> None:
        self.database, self.broker, self.batch = database, broker, batch
        self.pullers = {
            stream: Puller(broker, stream, self.name, slots=MESSAGES_IN_HAND_MAX)
            for stream in self.streams
        }
        self.tally: Counter[str] = Counter()
        self._to_settle: asyncio.Queue[list[str]] = asyncio.Queue()
        self._bodies = bodies()
        self._history = History(self.name, {})

    def loops(self, count: int) -> list[Loop]:
        """Everything that there is to do for `count` orders."""
        raise NotImplementedError

    async def append(
        self, connection: Connection, *told: tuple[type[Struct], int, Sequence[str]]
    ) -> Commit:
        """Keep events, each of a type and a version for some orders, as one batch."""
        events = [
            Recorded(
                UUID(os.urandom(16)),
                order_id,
                version,
                kind.__name__,
                SUBJECTS[kind],
                CONTEXT,
                self._bodies[kind][n % SAMPLES].replace(PLACE.encode(), order_id.encode()),
            )
            for kind, version, ids in told
            for n, order_id in enumerate(ids)
        ]
        return await self._history.append(connection, events)

    async def publish(self, commit: Commit) -> None:
        """Publish a batch atomically, and mark it."""
        seqs = await publish(self.broker, commit.messages)
        await self.database.execute(_MARK, [commit.batch_no], seqs[:1])

    async def consume(self, stream: str, count: int, deal: Deal) -> None:
        """Deal with `count` messages of a stream, in batches; settling them overlaps."""
        puller, settling = self.pullers[stream], asyncio.Semaphore(SETTLING_BATCHES_MAX)
        async with asyncio.TaskGroup() as group:
            while count:
                batch = await self._take(puller, min(count, self.batch))
                count -= len(batch)
                self.tally.update(messages=len(batch), batches=1)
                commit = await deal(batch)
                await settling.acquire()
                task = group.create_task(self._settle(puller, batch, commit))
                task.add_done_callback(lambda _: settling.release())

    async def _take(self, puller: Puller, count: int) -> list[Delivery]:
        batch = await puller.take(count)
        if len(batch) < count:
            await asyncio.sleep(LINGER_S)
            if puller.waiting:
                batch += await puller.take(count - len(batch))
        return batch

    async def _settle(
        self, puller: Puller, batch: Sequence[Delivery], commit: Commit | None
    ) -> None:
        if commit is not None:
            await self.publish(commit)
        await puller.ack(batch)
        puller.release(len(batch))

    async def settle(self, count: int) -> None:
        """Do what follows the calls to the outside, for `count` orders; the calls take no time."""
        while count:
            ids = await self._to_settle.get()
            count -= len(ids)
            await self.called(ids)

    async def called(self, ids: Sequence[str]) -> None:
        """Write down, and tell, what became of the calls for these orders."""
        raise NotImplementedError
