"""Cost against size: the same load on tables of different length, and a long backlog of events."""

import asyncio
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import aiohttp

from benchmarks.bed import SERVICES, Bed, CannotMeasure
from benchmarks.edge import frozen
from benchmarks.endtoend import CONNECTIONS, Spell, closed, warm_up
from ironcart.toolkit.broker import Broker, Outgoing, publish

SIZES = (10_000, 100_000)
FULL_SIZES = (*SIZES, 1_000_000)
LAG_EVENTS = 1_000_000
ROUNDS = 2
# Real orders that the others are copies of.
PATTERN_S = 1.5
ORDERS_A_STATEMENT = 20_000
PUBLISH_MESSAGES = 1_000
PUBLISHERS = 4
TOLD_READ_MAX = 1_000
LOOK_EVERY_S = 0.25
QUIET_LOOKS = 2
DRAIN_TIMEOUT_S = 3_600.0
FLAT = 0.15

_HISTORY = ("events", "batches", "inbox")
TABLES: Mapping[str, tuple[str, ...]] = {
    "orders": ("orders", "idempotency_keys", *_HISTORY),
    "inventory": ("reservations", *_HISTORY),
    "payments": ("payments", *_HISTORY),
    "notifications": ("notifications", *_HISTORY),
    "audit": ("entries", "links"),
}
# How a copy differs from its pattern; nth is its number. Ids keep their length and sort before
# those of today. Batches count down from zero, so that the newest are the real ones, and the copies
# of audit's entries lie in streams of their own: no chain, sweep or recovery meets them.
_AN_ORDER = "'ORD-00' || lpad(upper(to_hex(nth)), 8, '0') || right({column}, 16)"
_EARLIER = "{column} - make_interval(days => 14, secs => 1000000 - nth)"
COPIED: Mapping[str, str] = {
    "order_id": _AN_ORDER,
    "aggregate_id": _AN_ORDER,
    "id": "gen_random_uuid()",
    "inbox.event_id": "gen_random_uuid()",
    "entries.event_id": "gen_random_uuid()::text",
    "key": "{column} || '-' || nth",
    "intent_id": "{column} || nth",
    "batch_no": "{column} - 1000000000::bigint * nth",
    "entries.stream": "{column} || '-copied'",
    "links.stream": "{column} || '-copied'",
    "entries.stream_seq": "{column} + 1000000000::bigint * nth",
    "links.stream_seq": "{column} + 1000000000::bigint * nth",
    **dict.fromkeys(
        (
            *("created_at", "updated_at", "recorded_at", "handled_at"),
            *("stored_at", "received_at", "linked_at"),
        ),
        _EARLIER,
    ),
}
_COLUMNS = """
SELECT column_name FROM information_schema.columns
WHERE table_schema = $1 AND table_name = $2 AND is_generated = 'NEVER' ORDER BY ordinal_position
"""
_UNPUBLISHED = " + ".join(
    f"(SELECT count(*) FROM {service}.batches WHERE first_seq IS NULL)"  # noqa: S608 - ours
    for service in SERVICES
)
_JOBS = "(SELECT count(*) FROM payments.jobs) + (SELECT count(*) FROM notifications.jobs)"
_OPEN = f"SELECT {_JOBS} + {_UNPUBLISHED}"


class QuietBed(Bed):
    """Sees the end in what is open, never in what is kept: that costs the same at every size.

    `deaf` are services that are given nothing, and are not waited for.
    """

    def __init__(
        self,
        *,
        patches: tuple[str, ...] = (),
        environ: Mapping[str, str] | None = None,
        deaf: tuple[str, ...] = (),
        auth: bool = False,
    ) -> None:
        super().__init__(patches=patches, environ=environ, auth=auth)
        self._deaf = deaf

    async def done(self, timeout_s: float) -> None:
        """Wait until no job, no unpublished batch and no message is left, seen twice in a row."""
        deadline, quiet = time.monotonic() + timeout_s, 0
        async with self.database() as connection, aiohttp.ClientSession() as session:
            while quiet < QUIET_LOOKS:
                left = await connection.fetchval(_OPEN) + await self._undelivered(session)
                quiet = 0 if left else quiet + 1
                if left and time.monotonic() > deadline:
                    raise CannotMeasure(f"{left} left after {timeout_s:g} s")
                await asyncio.sleep(LOOK_EVERY_S)

    async def _undelivered(self, session: aiohttp.ClientSession) -> int:
        url = f"{self.run['nats']['monitor_urls'][0]}/jsz?streams=true&consumers=true"
        async with session.get(url) as answer:
            return undelivered(await answer.json(), self._deaf)


def undelivered(jsz: Mapping[str, Any], deaf: Sequence[str] = ()) -> int:
    """Count in the broker's own figures the messages that a consumer has not acknowledged."""
    return sum(
        int(consumer["num_pending"]) + int(consumer["num_ack_pending"])
        for account in jsz.get("account_details") or ()
        for stream in account.get("stream_detail") or ()
        for consumer in stream.get("consumer_detail") or ()
        if not consumer["name"].startswith(tuple(deaf))
    )


def copying(table: str, columns: Sequence[str]) -> str:
    """Write the statement that copies the pattern of a table, `nth` from $1 to $2."""
    made = [
        COPIED.get(f"{table}.{column}", COPIED.get(column, "{column}")).format(column=f"p.{column}")
        for column in columns
    ]
    return (
        f"INSERT INTO {table} ({', '.join(columns)}) SELECT {', '.join(made)}"  # noqa: S608 - ours
        f" FROM pattern_{table} p, generate_series($1::bigint, $2::bigint) AS nth"
    )


async def fill(bed: Bed, orders: int) -> int:
    """Make it look as if `orders` orders, or a few more, had come to their end; returns how many.

    Orders that really came are the pattern: every row of every table that they left is copied, so
    form, width, indexes and the number of rows an order are those of the services.
    """
    await closed(bed, PATTERN_S)
    async with bed.database() as connection:
        pattern: int = await connection.fetchval("SELECT count(*) FROM orders.orders")
    copies = max(0, -(-(orders - pattern) // max(1, pattern)))
    step = max(1, ORDERS_A_STATEMENT // max(1, pattern))
    await asyncio.gather(*(_fill_service(bed, service, copies, step) for service in TABLES))
    async with bed.database() as connection:
        await connection.execute("VACUUM (ANALYZE)", timeout=DRAIN_TIMEOUT_S)
        await connection.execute("CHECKPOINT", timeout=DRAIN_TIMEOUT_S)
    return pattern * (copies + 1)


async def _fill_service(bed: Bed, service: str, copies: int, step: int) -> None:
    async with bed.database() as connection:
        await connection.execute(f"SET search_path = {service}, pg_temp")
        await connection.execute("SET synchronous_commit = off")  # A checkpoint follows.
        statements = []
        for table in TABLES[service]:
            columns = [row[0] for row in await connection.fetch(_COLUMNS, service, table)]
            # What is about a SKU and not about an order stays single.
            own = " WHERE aggregate_id LIKE 'ORD-%'" if "aggregate_id" in columns else ""
            await connection.execute(
                f"CREATE TEMP TABLE pattern_{table} AS SELECT * FROM {table}{own}"  # noqa: S608 - constants
            )
            statements.append(copying(table, columns))
        for first in range(1, copies + 1, step):
            last = min(copies, first + step - 1)
            for statement in statements:
                await connection.execute(statement, first, last, timeout=DRAIN_TIMEOUT_S)


@dataclass(frozen=True, slots=True)
class Lag:
    """A backlog of `events`, resident megabytes of each service before, at most, and after it."""

    events: int
    seconds: float
    before_mb: dict[str, float]
    highest_mb: dict[str, float]
    after_mb: dict[str, float]


async def lag(bed: Bed, events: int) -> Lag:
    """Let `events` messages pile up while the services are frozen, thaw them, watch their memory.

    The messages are what the services have told before, again: the inbox absorbs them, audit
    keeps every one.
    """
    before = bed.memory_mb()
    with frozen([pid for name in SERVICES for pid in bed.pids()[name]]):
        await _tell_again(bed, events)
    began, highest = time.monotonic(), dict(before)
    done = asyncio.create_task(bed.done(DRAIN_TIMEOUT_S))
    while not done.done():
        highest = {name: max(highest[name], size) for name, size in bed.memory_mb().items()}
        await asyncio.wait({done}, timeout=LOOK_EVERY_S)
    await done
    return Lag(
        events,
        round(time.monotonic() - began, 1),
        _rounded(before),
        _rounded(highest),
        _rounded(bed.memory_mb()),
    )


async def _tell_again(bed: Bed, events: int) -> None:
    told: list[list[tuple[str, bytes]]] = []
    async with bed.database() as connection:
        for service in SERVICES:
            rows = await connection.fetch(
                f"SELECT subject, body FROM {service}.events"  # noqa: S608 - ours
                " WHERE aggregate_id LIKE 'ORD-%' AND batch_no > 0 LIMIT $1",
                TOLD_READ_MAX,
            )
            told += [[(row["subject"], row["body"]) for row in rows]] if rows else []
    broker = Broker(",".join(bed.run["nats"]["urls"]), f"bench/{os.getpid()}")
    await broker.connect()
    numbers = iter(range(0, events, PUBLISH_MESSAGES))

    async def publisher() -> None:
        for first in numbers:
            among = told[(first // PUBLISH_MESSAGES) % len(told)]
            count = min(PUBLISH_MESSAGES, events - first)
            chosen = [among[at % len(among)] for at in range(count)]
            await publish(
                broker,
                [
                    Outgoing(f"bench-{time.time_ns()}-{at}", subject, body, {})
                    for at, (subject, body) in enumerate(chosen)
                ],
            )

    try:
        await asyncio.gather(*(publisher() for _ in range(PUBLISHERS)))
    finally:
        await broker.close()


@dataclass(slots=True)
class Sizes:
    """Spells at each size, and the backlog; sizes are orders in the tables when it was filled."""

    spells: dict[int, list[Spell]] = field(default_factory=dict)
    fill_s: dict[int, float] = field(default_factory=dict)
    lag: Lag | None = None

    def row(self, size: int) -> dict[str, float]:
        """The medians at one size: orders a minute, CPU and largest resident size."""
        spells = self.spells[size]
        return {
            "per_minute": round(median(spell.per_minute for spell in spells)),
            "cpu_us": round(median(spell.cpu_us for spell in spells)),
            "memory_mb": max(mb for spell in spells for mb in spell.memory_mb.values()),
        }

    @property
    def spread(self) -> float:
        """By how much throughput differs between sizes, as a share of the highest."""
        rates = [self.row(size)["per_minute"] for size in self.spells]
        return 1 - min(rates) / max(rates)

    def lines(self) -> list[str]:
        """Return it for a person."""
        found = []
        for size in self.spells:
            row = self.row(size)
            found.append(
                f"  {size:,} orders in the tables: {row['per_minute']:,.0f} a minute,"
                f" {row['cpu_us']:,.0f} us an order, largest service {row['memory_mb']:.0f} MB"
                f" (filled in {self.fill_s[size]:.0f} s)"
            )
        found.append(f"  spread of throughput {self.spread:.0%}, flat is at most {FLAT:.0%}")
        if self.lag is not None:
            highest = ", ".join(
                f"{name} {self.lag.before_mb[name]:.0f} -> {size:.0f}"
                for name, size in self.lag.highest_mb.items()
            )
            found.append(
                f"  backlog of {self.lag.events:,} events, gone in {self.lag.seconds:.0f} s;"
                f" resident MB before -> at most: {highest}"
            )
        return found

    def as_json(self) -> dict[str, Any]:
        """Return it for a machine."""
        return {
            "rows": {str(size): self.row(size) for size in self.spells},
            "fill_s": {str(size): round(took) for size, took in self.fill_s.items()},
            "spread": round(self.spread, 3),
            "lag": None
            if self.lag is None
            else {name: getattr(self.lag, name) for name in self.lag.__slots__},
            "spells": {
                str(size): [spell.as_json() for spell in spells]
                for size, spells in self.spells.items()
            },
        }


async def measure(
    seconds: float,
    *,
    connections: int = CONNECTIONS,
    sizes: Sequence[int] = SIZES,
    rounds: int = ROUNDS,
    lag_events: int = LAG_EVENTS,
) -> Sizes:
    """Measure each size in turn, round by round; all systems are up, and one is under load."""
    found = Sizes()
    async with AsyncExitStack() as stack:
        beds: dict[int, Bed] = {}
        for size in sizes:
            fresh = await stack.enter_async_context(QuietBed())
            began = time.monotonic()
            filled = await fill(fresh, size)
            found.fill_s[filled] = time.monotonic() - began
            found.spells[filled], beds[filled] = [], fresh
            await warm_up(fresh)
        for _ in range(rounds):
            for size, bed in beds.items():
                found.spells[size].append(await closed(bed, seconds, connections))
        if lag_events:
            found.lag = await lag(next(iter(beds.values())), lag_events)
    return found


def _rounded(sizes: Mapping[str, float]) -> dict[str, float]:
    return {name: round(size) for name, size in sizes.items()}
