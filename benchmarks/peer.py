"""The reserve stage twice: Ironcart's own inventory, and one on FastStream, a message at a time.

Both get the same OrderCreated from the same stream, keep the same rows under the same rules, and
publish one StockReserved or StockRejected for each, durably, before they acknowledge.
`python -m benchmarks.peer` compares; `--serve` is the FastStream side, in a process of its own.
"""

import argparse
import asyncio
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from statistics import median
from typing import Annotated, Any

import asyncpg
import uvloop
from faststream import AckPolicy, FastStream
from faststream.nats import JStream, NatsBroker, PullSub
from nats.js.api import ConsumerConfig
from pydantic import BaseModel, PlainSerializer

from benchmarks.bed import CannotMeasure, cpu_s
from benchmarks.stage import Part, Stage, place
from ironcart.embedded.process import Child
from ironcart.toolkit.broker import Broker, BrokerError
from ironcart.toolkit.settings import environment

MESSAGES = 20_000
ROUNDS = 3
WORKERS = 20
IRONCART, FASTSTREAM = "ironcart", "faststream"
# The consumer that each side reads ORDERS through.
DURABLES = {IRONCART: "inventory", FASTSTREAM: "peer"}
POLL_S = 0.02
BEGIN_TIMEOUT_S = 60.0
# A stage that comes to fewer messages a second than this is given up.
PER_SECOND_MIN = 50
US_PER_S = 1_000_000
CONSUMER_NOT_FOUND = 10014

_TABLES = """
CREATE SCHEMA peer;
CREATE TABLE peer.inbox (LIKE inventory.inbox INCLUDING ALL);
CREATE TABLE peer.stock (LIKE inventory.stock INCLUDING ALL);
CREATE TABLE peer.reservations (LIKE inventory.reservations INCLUDING ALL);
CREATE TABLE peer.events (
    id uuid PRIMARY KEY, causation_id uuid NOT NULL UNIQUE, subject text NOT NULL,
    body bytea NOT NULL, recorded_at timestamptz NOT NULL DEFAULT now());
INSERT INTO peer.stock SELECT * FROM inventory.stock;
"""
_KEPT = """
SELECT (SELECT count(*) FROM {schema}.inbox) AS heard,
       (SELECT count(*) FROM {schema}.events) AS told,
       (SELECT count(*) FROM {schema}.reservations WHERE state = 'reserved') AS orders,
       (SELECT sum(reserved) FROM {schema}.stock)::bigint AS units
"""
_SCHEMAS = {IRONCART: "inventory", FASTSTREAM: "peer"}


@dataclass(frozen=True, slots=True)
class Run:
    """One side's way through all messages: seconds, and CPU microseconds a message."""

    side: str
    messages: int
    seconds: float
    cpu_us_a_message: Mapping[str, float]

    @property
    def per_second(self) -> float:
        """Messages a second, from the first delivery to the last result and the last ack."""
        return self.messages / self.seconds


@dataclass(slots=True)
class Comparison:
    """Both sides, in turns; the ratio is that of the medians."""

    messages: int
    workers: int
    runs: list[Run]

    def per_second(self, side: str) -> float:
        """A side's median, in messages a second."""
        return median(run.per_second for run in self.runs if run.side == side)

    def cpu_us(self, side: str) -> dict[str, float]:
        """A side's CPU microseconds a message, by process: medians."""
        used = [run.cpu_us_a_message for run in self.runs if run.side == side]
        return {name: median(each[name] for each in used) for name in used[0]}

    @property
    def ratio(self) -> float:
        """How many messages Ironcart's stage deals with in the time FastStream's takes for one."""
        return self.per_second(IRONCART) / self.per_second(FASTSTREAM)

    def lines(self) -> list[str]:
        """Return it for a person."""
        found = []
        for side in (IRONCART, FASTSTREAM):
            used = self.cpu_us(side)
            parts = ", ".join(f"{name} {us:,.0f}" for name, us in used.items())
            rounds = ", ".join(f"{run.per_second:,.0f}" for run in self.runs if run.side == side)
            found += [
                f"  {side}: {self.per_second(side):,.0f} messages/s (rounds {rounds})",
                f"    CPU us a message {sum(used.values()):,.0f}: {parts}",
            ]
        what = f"{self.messages:,} messages, FastStream with {self.workers} workers"
        return [*found, f"  ratio {self.ratio:.1f} ({what})"]

    def as_json(self) -> dict[str, Any]:
        """Return it for a machine."""
        sides = {
            side: {
                "per_second": self.per_second(side),
                "cpu_us_a_message": self.cpu_us(side),
                "rounds_per_second": [run.per_second for run in self.runs if run.side == side],
            }
            for side in (IRONCART, FASTSTREAM)
        }
        kept = {"messages": self.messages, "workers": self.workers, "ratio": self.ratio}
        return {**kept, **sides}


async def compare(
    messages: int = MESSAGES, rounds: int = ROUNDS, workers: int = WORKERS
) -> Comparison:
    """Let both sides deal with the same messages, in turns, each time on fresh servers."""
    turns = (IRONCART, FASTSTREAM) * rounds
    runs = [await run(side, messages, workers) for side in turns]
    return Comparison(messages, workers, runs)


async def run(side: str, messages: int, workers: int = WORKERS) -> Run:
    """Let one side deal with `messages`; raises `CannotMeasure` when it does not do all of it."""
    async with Stage() as stage, stage.connected() as broker:
        await stage.fill()
        async with stage.database() as database, database.acquire() as connection:
            if side == FASTSTREAM:
                await connection.execute(_TABLES)
        units = await place(broker, messages)
        with stage.part(_child(stage, side, workers)) as part:
            seconds, used = await _time(stage, broker, part, side, messages)
        async with stage.database() as database:
            kept = await database.fetchrow(_KEPT.replace("{schema}", _SCHEMAS[side]))
        if kept is None or tuple(kept) != (messages, messages, messages, units):
            raise CannotMeasure(f"{side} has kept {kept}, not {messages} and {units} units")
    cpu_us = {name: used_s * US_PER_S / messages for name, used_s in used.items()}
    return Run(side, messages, round(seconds, 3), cpu_us)


def _child(stage: Stage, side: str, workers: int) -> Child:
    if side == IRONCART:
        return stage.python(IRONCART, "ironcart.cli", "run", "inventory")
    return stage.python(FASTSTREAM, "benchmarks.peer", "--serve", "--workers", str(workers))


async def _time(
    stage: Stage, broker: Broker, part: Part, side: str, messages: int
) -> tuple[float, dict[str, float]]:
    """Seconds from the first delivery to the last ack, and the CPU seconds used meanwhile."""
    deadline = time.monotonic() + BEGIN_TIMEOUT_S
    while not await _begun(broker, side):
        if time.monotonic() > deadline:
            raise CannotMeasure(f"{side} does not begin")
        await asyncio.sleep(POLL_S)
    began, before = time.monotonic(), {side: cpu_s(part.pid), **stage.use()}
    deadline = began + messages / PER_SECOND_MIN + BEGIN_TIMEOUT_S
    while not await _ended(broker, side, messages):
        if time.monotonic() > deadline:
            raise CannotMeasure(f"{side} is too slow")
        await asyncio.sleep(POLL_S)
    seconds, after = time.monotonic() - began, {side: cpu_s(part.pid), **stage.use()}
    return seconds, {name: used - before[name] for name, used in after.items()}


async def _begun(broker: Broker, side: str) -> bool:
    try:
        info = await broker.api(f"CONSUMER.INFO.ORDERS.{DURABLES[side]}")
    except BrokerError as error:
        if error.err_code != CONSUMER_NOT_FOUND:
            raise
        return False  # FastStream makes its own when it starts.
    return bool(info["delivered"]["consumer_seq"])


async def _ended(broker: Broker, side: str, messages: int) -> bool:
    info = await broker.api(f"CONSUMER.INFO.ORDERS.{DURABLES[side]}")
    if info["num_pending"] or info["num_ack_pending"]:
        return False
    state = (await broker.api("STREAM.INFO.INVENTORY"))["state"]
    return bool(state["messages"] >= messages)


# FastStream's side, as its users write it, but for its log, which is off: a model for each message,
# a subscriber, a transaction, a publisher, and an ack when the handler has returned.

Money = Annotated[Decimal, PlainSerializer(float, return_type=float, when_used="json")]


class Line(BaseModel):
    """One line of an order."""

    sku: str
    quantity: int
    unit_price: Money


class Order(BaseModel):
    """An order, as OrderCreated and StockReserved carry it."""

    order_id: str
    customer_id: str
    amount: Money
    currency: str = "EUR"
    items: list[Line] = []
    payment_method: str | None = None
    contact: str | None = None


class Short(BaseModel):
    """A line that could not be had."""

    sku: str
    requested: int
    available: int


class Rejected(BaseModel):
    """An order that could not be reserved."""

    order_id: str
    short: list[Short]


class Event(BaseModel):
    """What every event has."""

    id: uuid.UUID
    type: str
    aggregate_id: str
    timestamp: datetime
    trace_id: str
    version: int
    causation_id: uuid.UUID | None = None


class OrderCreated(Event):
    """What comes."""

    data: Order


class StockDecided(Event):
    """What is said: StockReserved or StockRejected."""

    data: Order | Rejected


SUBJECTS = {"StockReserved": "inventory.reserved", "StockRejected": "inventory.rejected"}
CONNECT_TIMEOUT_S, PUBLISH_TIMEOUT_S, ACK_WAIT_S = 30, 5.0, 30.0


async def serve(environ: Mapping[str, str], workers: int) -> None:
    """Reserve stock until SIGTERM, `workers` messages at once, each by itself."""
    pool = await asyncpg.create_pool(
        environ["IRONCART_DATABASE_URL"],
        min_size=workers,
        max_size=workers,
        timeout=CONNECT_TIMEOUT_S,
        server_settings={"search_path": "peer", "enable_seqscan": "off", "jit": "off"},
    )
    broker = NatsBroker(environ["IRONCART_NATS_URL"], logger=None)
    answers = JStream("INVENTORY", declare=False)
    publishers = {
        kind: broker.publisher(subject, stream=answers, timeout=PUBLISH_TIMEOUT_S)
        for kind, subject in SUBJECTS.items()
    }

    @broker.subscriber(
        "orders.created",
        stream=JStream("ORDERS", declare=False),
        durable=DURABLES[FASTSTREAM],
        config=ConsumerConfig(ack_wait=ACK_WAIT_S),
        pull_sub=PullSub(batch_size=workers),
        max_workers=workers,
        ack_policy=AckPolicy.NACK_ON_ERROR,
    )
    async def reserve(event: OrderCreated) -> None:
        async with pool.acquire() as connection, connection.transaction():
            decided = await decide(connection, event)
        await publishers[decided.type].publish(decided, headers={"Nats-Msg-Id": str(decided.id)})

    await FastStream(broker, logger=None).run()
    await pool.close()


async def decide(connection: Any, event: OrderCreated) -> StockDecided:
    """Reserve all lines or none, and keep what is to be said; a repeat gets what was said then."""
    order = event.data
    new = await connection.execute(
        "INSERT INTO inbox (event_id, stream, stream_seq) VALUES ($1, 'ORDERS', 0)"
        " ON CONFLICT DO NOTHING",
        event.id,
    )
    if new != "INSERT 0 1":
        body = await connection.fetchval(
            "SELECT body FROM events WHERE causation_id = $1", event.id
        )
        return StockDecided.model_validate_json(body)
    units: dict[str, int] = {}
    for line in order.items:
        units[line.sku] = units.get(line.sku, 0) + line.quantity
    rows = await connection.fetch(
        "SELECT sku, on_hand - reserved AS available FROM stock"
        " WHERE sku = ANY($1::text[]) ORDER BY sku FOR UPDATE",
        list(units),
    )
    available = {row["sku"]: row["available"] for row in rows}
    short = [
        Short(sku=sku, requested=asked, available=available.get(sku, 0))
        for sku, asked in units.items()
        if available.get(sku, 0) < asked
    ]
    decided = StockDecided(
        id=uuid.uuid4(),
        type="StockRejected" if short else "StockReserved",
        aggregate_id=order.order_id,
        timestamp=datetime.now(UTC),
        trace_id=event.trace_id,
        version=1,
        causation_id=event.id,
        data=Rejected(order_id=order.order_id, short=short) if short else order,
    )
    await keep(connection, order, {} if short else units, decided)
    return decided


async def keep(
    connection: Any, order: Order, taken: Mapping[str, int], decided: StockDecided
) -> None:
    """Write down the reservation, the stock that is taken, and the event."""
    await connection.execute(
        "INSERT INTO reservations (order_id, state, lines, version) VALUES ($1, $2, $3, 1)",
        order.order_id,
        "reserved" if taken else "rejected",
        "".join(line.model_dump_json() for line in order.items).encode(),
    )
    if taken:
        await connection.execute(
            "UPDATE stock s SET reserved = s.reserved + u.units, updated_at = now()"
            " FROM unnest($1::text[], $2::bigint[]) AS u(sku, units) WHERE s.sku = u.sku",
            list(taken),
            list(taken.values()),
        )
    await connection.execute(
        "INSERT INTO events (id, causation_id, subject, body) VALUES ($1, $2, $3, $4)",
        decided.id,
        decided.causation_id,
        SUBJECTS[decided.type],
        decided.model_dump_json(exclude_none=True).encode(),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Compare, or be what is compared with."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peer")
    parser.add_argument("--messages", type=int, default=MESSAGES)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--workers", type=int, default=WORKERS, help="FastStream's, at once")
    parser.add_argument("--serve", action="store_true", help="be FastStream's side")
    given = parser.parse_args(argv)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if given.serve:
            runner.run(serve(environment(), given.workers))
            return 0
        try:
            found = runner.run(compare(given.messages, given.rounds, given.workers))
        except CannotMeasure as error:
            sys.stderr.write(f"benchmarks: {error}\n")
            return 1
    sys.stdout.write("\n".join(["reserve stage", *found.lines(), ""]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
