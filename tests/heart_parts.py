"""A small service for proving the toolkit: beta answers every Ping of alpha with a Pong.

Its streams have random names, so tests can share one broker; each has a database of its own.
"""

import asyncio
import base64
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from msgspec import Struct
from structlog.testing import capture_logs

from ironcart.toolkit.broker import Broker, BrokerError, Delivery, Outgoing, ensure, publish
from ironcart.toolkit.database import Database, Transaction
from ironcart.toolkit.envelope import seal
from ironcart.toolkit.history import Cause, Commit, History, Outbox
from ironcart.toolkit.loop import Chassis, Consumer, Message, RawSubscription, Subscription
from ironcart.toolkit.loop.subscriptions import Handler
from ironcart.toolkit.outcomes import Done, Fact, Outcome
from ironcart.toolkit.resilience import Backoff
from ironcart.toolkit.telemetry import TraceContext, Tracing
from ironcart.toolkit.topology import DEAD_LETTER_STREAM, DEAD_LETTERS, NS_PER_S, Durable, Stream

PATIENCE_S = 20.0
STREAM_BYTES_MAX = 64 * 1024**2
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE_ID}-b7ad6b7169203331-00"
QUICK = Backoff(attempts_max=8, first_s=0.01, max_s=0.02)


class Ping(Struct, frozen=True):
    """What alpha says; `action` tells beta how to behave."""

    name: str
    n: int = 0
    action: str = ""


class Pong(Struct, frozen=True):
    """What beta answers."""

    name: str
    n: int = 0
    text: str = ""


def name_of(data: Ping | Pong) -> str:
    """The aggregate that an event is about."""
    return data.name


@dataclass(frozen=True)
class Topology:
    """The streams of one test."""

    tag: str = field(default_factory=lambda: secrets.token_hex(6))

    @property
    def pings(self) -> Stream:
        return Stream(f"PINGS-{self.tag}", "alpha", (f"{self.tag}.ping",))

    @property
    def pongs(self) -> Stream:
        return Stream(f"PONGS-{self.tag}", "beta", (f"{self.tag}.pong",))

    @property
    def alpha(self) -> Durable:
        return Durable("alpha", self.pongs.name, self.pongs.subjects)

    @property
    def beta(self) -> Durable:
        return Durable("beta", self.pings.name, self.pings.subjects)

    @property
    def subjects(self) -> dict[str, str]:
        return {"Ping": self.pings.subjects[0], "Pong": self.pongs.subjects[0]}

    async def provision(self, broker: Broker, *, bytes_max: int = STREAM_BYTES_MAX) -> list[str]:
        """Make the streams and consumers, and the stream of dead letters."""
        await ensure(broker, [DEAD_LETTER_STREAM], [], replicas=1, bytes_max=STREAM_BYTES_MAX)
        return await ensure(
            broker,
            [self.pings, self.pongs],
            [self.alpha, self.beta],
            replicas=1,
            bytes_max=bytes_max,
        )

    def ping(self, name: str, n: int = 1, action: str = "", *, owner: str = "alpha") -> Outgoing:
        """A Ping as alpha publishes it; the same name, number and owner give the same id."""
        key, body = seal(
            owner, Fact(name, n, Ping(name, n, action)), trace_id=TRACE_ID, causation_id=None
        )
        headers = {"traceparent": TRACEPARENT}
        return Outgoing(str(key), self.subjects["Ping"], body, headers)

    def raw(self, body: bytes, headers: Mapping[str, str] | None = None) -> Outgoing:
        """Any bytes at all, where Pings are expected."""
        return Outgoing(secrets.token_hex(16), self.subjects["Ping"], body, headers or {})


@dataclass
class Kept:
    """A message as its stream keeps it."""

    seq: int
    subject: str
    headers: dict[str, str]
    body: bytes

    @property
    def event(self) -> dict[str, Any]:
        """The event that it holds."""
        found: dict[str, Any] = json.loads(self.body)
        return found


async def kept(broker: Broker, stream: str) -> list[Kept]:
    """Everything a stream has, in order."""
    last = (await broker.api(f"STREAM.INFO.{stream}"))["state"]["last_seq"]
    requests = [broker.api(f"STREAM.MSG.GET.{stream}", {"seq": seq}) for seq in range(1, last + 1)]
    found = []
    for answer in await asyncio.gather(*requests):
        message = answer["message"]
        lines = base64.b64decode(message.get("hdrs", "")).decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines if ": " in line)
        body = base64.b64decode(message.get("data", ""))
        found.append(Kept(message["seq"], message["subject"], headers, body))
    return found


async def until(condition: Callable[[], Awaitable[Any]], patience_s: float = PATIENCE_S) -> Any:
    """Wait until a condition holds, and return what it gave."""
    deadline = time.monotonic() + patience_s
    while not (found := await condition()):
        assert time.monotonic() < deadline, f"still waiting for {condition}"
        await asyncio.sleep(0.01)
    return found


async def make_schema(url: str, schema: str) -> None:
    """Make one schema with the toolkit's own tables, as dbmate would."""
    database = Database(url, schema, "test")
    await database.execute(f"CREATE SCHEMA IF NOT EXISTS {schema}")
    await database.execute("CREATE TABLE schema_migrations (version text PRIMARY KEY)")
    folder = files("ironcart.toolkit") / "migrations" / "history"
    for file in sorted(folder.iterdir(), key=lambda each: each.name):
        await database.execute(file.read_text().partition("-- migrate:down")[0])
        version = file.name.partition("_")[0]
        await database.execute("INSERT INTO schema_migrations VALUES ($1)", version)
    await database.close()


async def echo(messages: Sequence[Message], _: Transaction) -> list[Outcome]:
    """Answer every Ping with a Pong."""
    return [answered(message) for message in messages]


def answered(message: Message) -> Done:
    """A Pong for a Ping."""
    data: Ping = message.data
    return Done((Fact(data.name, data.n, Pong(data.name, data.n)),))


@dataclass
class Bench:
    """Beta's parts, for one test."""

    topology: Topology
    broker: Broker
    database: Database
    chassis: Chassis
    broker_url: str
    database_url: str
    logs: Sequence[MutableMapping[str, Any]] = ()

    @property
    def outbox(self) -> Outbox:
        return self.chassis.outbox

    def subscription(self, handle: Handler = echo) -> Subscription:
        """Beta's place in the stream of Pings."""
        kinds = {self.topology.subjects["Ping"]: Ping}
        return Subscription(self.topology.beta, kinds, name_of, handle)

    async def send(self, *messages: Outgoing) -> list[int]:
        """Publish in chunks, as alpha's outbox does."""
        seqs: list[int] = []
        for at in range(0, len(messages), 500):
            seqs += await publish(self.broker, messages[at : at + 500])
        return seqs

    async def pongs(self) -> list[Kept]:
        """What beta has published."""
        return await kept(self.broker, self.topology.pongs.name)

    async def ponged(self, count: int) -> list[Kept]:
        """Wait until beta has published `count` messages."""
        stream = self.topology.pongs.name

        async def enough() -> bool:
            info = await self.broker.api(f"STREAM.INFO.{stream}")
            return bool(info["state"]["messages"] >= count)

        await until(enough)
        return await self.pongs()

    async def consumer_info(self) -> dict[str, Any]:
        """Where beta's consumer stands."""
        durable = self.topology.beta
        return await self.broker.api(f"CONSUMER.INFO.{durable.stream}.{durable.name}")

    async def deliver_again_after(self, seconds: int) -> None:
        """Have unacknowledged messages delivered again sooner than in half a minute."""
        name = self.topology.pings.name
        config = (await self.consumer_info())["config"] | {"ack_wait": seconds * NS_PER_S}
        request = {"stream_name": name, "config": config, "action": "update"}
        await self.broker.api(f"CONSUMER.CREATE.{name}.beta", request)

    async def settled(self) -> dict[str, Any]:
        """Wait until every Ping has been acknowledged or terminated."""

        async def idle() -> Any:
            info = await self.consumer_info()
            over = not info["num_pending"] and not info["num_ack_pending"]
            return info if over else None

        found: dict[str, Any] = await until(idle)
        return found

    async def dead_letters(self) -> list[Kept]:
        """What was set aside of this test's Pings."""
        letters = await kept(self.broker, DEAD_LETTERS)
        mine = self.topology.pings.name
        return [each for each in letters if each.headers["Ironcart-Stream"] == mine]

    async def commit(self, *facts: Fact) -> Commit:
        """Record facts of beta's in a transaction of their own."""
        cause = Cause(TRACE_ID, TraceContext(TRACE_ID, "b7ad6b7169203331"))
        async with self.database.transaction() as connection:
            found = await self.chassis.history.record(connection, [(each, cause) for each in facts])
        assert found is not None
        return found

    async def count(self, table: str, where: str = "true") -> int:
        """Count rows."""
        row = await self.database.fetchrow(f"SELECT count(*) AS n FROM {table} WHERE {where}")
        assert row is not None
        return int(row["n"])

    async def sequences(self) -> list[tuple[str, int | None]]:
        """Event ids with the stream sequences that the history claims, in order of commit."""
        rows = await self.database.fetch(
            "SELECT e.id, coalesce(e.stream_seq, b.first_seq + e.batch_pos) AS seq"
            " FROM events e JOIN batches b USING (batch_no) ORDER BY batch_no, batch_pos"
        )
        return [(str(row["id"]), row["seq"]) for row in rows]

    async def marked(self) -> list[tuple[str, int | None]]:
        """Wait until nothing is unpublished, and return what the history claims."""

        async def all_marked() -> bool:
            return await self.count("batches", "first_seq IS NULL") == 0

        await until(all_marked)
        return await self.sequences()


@asynccontextmanager
async def bench(
    broker_url: str, database_url: str, topology: Topology | None = None
) -> AsyncIterator[Bench]:
    """Beta's parts on a real broker and a real database; with a topology, of another replica."""
    found = topology or Topology()
    broker, database = Broker(broker_url, "beta"), Database(database_url, "beta", "test")
    await broker.connect()
    try:
        if topology is None:
            await found.provision(broker)
            await make_schema(database_url, "beta")
        history, outbox = History("beta", found.subjects), Outbox(broker, database)
        chassis = Chassis("beta", broker, database, history, outbox, Tracing("beta", {}), QUICK)
        with capture_logs() as logs:
            yield Bench(found, broker, database, chassis, broker_url, database_url, logs)
    finally:
        await broker.close()
        await database.close()


@dataclass
class Working:
    """Beta at work."""

    consumer: Consumer
    task: "asyncio.Task[None]"

    async def drain(self) -> None:
        """Stop pulling and wait until what is in hand is dealt with."""
        self.consumer.stop()
        await self.task


@asynccontextmanager
async def working(
    parts: Bench,
    handle: Handler = echo,
    *,
    sweeping: bool = False,
    raw: RawSubscription | None = None,
) -> AsyncIterator[Working]:
    """Run beta's consumer and outbox; afterwards all of it is cancelled, as if it had crashed."""
    consumer = Consumer(parts.chassis, raw or parts.subscription(handle))
    loops = [parts.outbox.run_fast_path] + ([parts.outbox.run_sweeper] if sweeping else [])
    async with asyncio.TaskGroup() as group:
        beside = [group.create_task(loop()) for loop in loops]
        task = group.create_task(consumer.run())
        try:
            yield Working(consumer, task)
        finally:
            for each in (task, *beside):
                each.cancel()


async def consumer_is_gone(parts: Bench) -> bool:
    """Whether beta's consumer has been deleted."""
    try:
        await parts.consumer_info()
    except BrokerError:
        return True
    return False


def bodies(deliveries: Sequence[Delivery]) -> list[bytes]:
    """What was delivered."""
    return [each.body for each in deliveries]
