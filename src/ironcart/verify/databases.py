"""Reading the services' tables from outside, in one read-only snapshot."""

import hashlib
from collections.abc import AsyncIterator, Container
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from ironcart.verify.chain import Entry
from ironcart.verify.checks.audit import Trail
from ironcart.verify.checks.histories import REPAIRS, STREAM_OF, Histories, Recorded
from ironcart.verify.facts import (
    DEAD_LETTERS,
    SERVICES,
    TERMINAL,
    CannotReadError,
    DeadLetter,
    Facts,
    Leftovers,
    Notification,
    Order,
    Payment,
    Stock,
)
from ironcart.verify.wire import basket_of, key_of, lines_of, loads

CONNECT_TIMEOUT_S = 10.0
COMMAND_TIMEOUT_S = 300.0
PREFETCH_ROWS = 2_000
OLD_JOB_S = 60
OVERDUE_S = 30
RESOLVED = frozenset({"replayed", "discarded"})
TABLES = (
    "orders.orders",
    "orders.idempotency_keys",
    "inventory.stock",
    "inventory.reservations",
    "payments.payments",
    "notifications.notifications",
    "audit.entries",
    "audit.links",
    *(f"{service}.{table}" for service in SERVICES for table in ("events", "batches", "jobs")),
)

# A webhook that is tried again waits for somebody else's server, for a day if need be. What its
# breaker put off has an error, and no attempts; one that nobody takes up again is overdue.
TRIED = "key LIKE 'webhook:%' AND error IS NOT NULL"
COUNT_JOBS = f"SELECT count(*) FROM {{0}}.jobs WHERE NOT ({TRIED})"  # noqa: S608 - a constant
TRIED_AGAIN = f"SELECT count(*) FROM notifications.jobs WHERE {TRIED}"  # noqa: S608 - a constant
OVERDUE = "SELECT count(*) FROM {0}.jobs WHERE due_at < now() - make_interval(secs => $1)"
UNPUBLISHED_AGE = """
    SELECT extract(epoch FROM now() - min(recorded_at))::float8 FROM {0}.batches
    WHERE first_seq IS NULL"""
# By the database's own clock, from the event that accepted an order to the one that ended it.
ENDED_WITHIN = """
    SELECT percentile_disc(ARRAY[0.5, 0.99, 1]) WITHIN GROUP (
        ORDER BY extract(epoch FROM ended.recorded_at - created.recorded_at)::float8)
    FROM orders.events created JOIN orders.events ended USING (aggregate_id)
    WHERE created.version = 1 AND created.type = 'OrderCreated'
      AND ended.type IN ('OrderConfirmed', 'OrderRejected', 'OrderCancelled')"""
# What lies in a service's own parking: the dead letter itself, or what waits behind it.
# How orders keeps a key that was told with its order, when the key itself was lost.
REMEMBERED = "\x01"
PARKED = "SELECT stream, stream_seq, state FROM {0}.parked"
UNPUBLISHED = """
    SELECT count(*) FROM {0}.batches b JOIN {0}.events e USING (batch_no)
    WHERE b.first_seq IS NULL AND e.stream_seq IS NULL"""
HISTORY = """
    SELECT e.id, e.aggregate_id, e.version, e.subject, e.body, e.batch_no, e.batch_pos,
           coalesce(e.stream_seq, b.first_seq + e.batch_pos) AS seq
    FROM {0}.events e LEFT JOIN {0}.batches b USING (batch_no)"""
FAILING = """
    SELECT count(*) FROM {0}.failures f
    WHERE NOT EXISTS (SELECT FROM {0}.inbox i
                      WHERE i.stream = f.stream AND i.stream_seq = f.stream_seq)"""
TRAIL = """
    SELECT e.stream, e.stream_seq, coalesce(e.subject, ''), coalesce(e.event_id, ''),
           coalesce(e.body, ''), l.hash, l.version, coalesce(e.type, ''),
           coalesce(e.aggregate_id, ''), coalesce(e.headers, ''),
           CASE WHEN isfinite(e.stored_at)
                THEN (extract(epoch FROM e.stored_at) * 1000000)::bigint ELSE -1 END
    FROM audit.entries e LEFT JOIN audit.links l USING (stream, stream_seq)
    ORDER BY e.stream, e.stream_seq"""
WAITING = {
    "payments": """SELECT count(*) FROM payments.payments WHERE state IN
        ('charging', 'closing', 'voiding', 'refunding', 'op_refunding', 'op_then_refund')""",
    "notifications": """SELECT count(*) FROM notifications.notifications
        WHERE state = 'due' AND channel <> 'webhook'""",
}

Connection = Any


@asynccontextmanager
async def database(url: str) -> AsyncIterator[Connection]:
    """Connect for the length of a `with`; raises `CannotReadError` in one clear line."""
    shown = url.rpartition("@")[2]
    try:
        connection = await asyncpg.connect(
            url, timeout=CONNECT_TIMEOUT_S, command_timeout=COMMAND_TIMEOUT_S
        )
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError) as error:
        raise CannotReadError(f"the database at {shown}: {error}") from None
    try:
        missing = [
            table
            for table in TABLES
            if await connection.fetchval("SELECT to_regclass($1)", table) is None
        ]
        if missing:
            raise CannotReadError(
                f"the database at {shown} has no {', '.join(missing)}: run `ironcart provision`"
            )
        yield connection
    except (asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError) as error:
        raise CannotReadError(f"the database at {shown}: {error}") from error
    finally:
        await connection.close()


async def count_open(connection: Connection) -> tuple[int, dict[str, int], dict[str, int]]:
    """Return how many orders are not terminal, and by service events unpublished and jobs open."""
    orders = await connection.fetchval(
        "SELECT count(*) FROM orders.orders WHERE status <> ALL($1::text[])", list(TERMINAL)
    )
    unpublished = {}
    jobs = {}
    for service in SERVICES:
        unpublished[service] = await connection.fetchval(UNPUBLISHED.format(service))
        jobs[service] = await connection.fetchval(COUNT_JOBS.format(service))
    return orders, unpublished, jobs


@asynccontextmanager
async def snapshot(connection: Connection) -> AsyncIterator[None]:
    """Have everything read within the `with` be as it was when it was entered."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        # Postgres takes the snapshot with the first statement.
        await connection.execute("SELECT 1")
        yield


async def read_tables(
    connection: Connection, facts: Facts, histories: Histories, trail: Trail
) -> None:
    """Fill `facts`, `histories` and `trail`; call within a `snapshot`."""
    await _read_orders(connection, facts)
    await _read_others(connection, facts)
    await _read_leftovers(connection, facts.leftovers)
    await _read_parked(connection, facts)
    ended = await connection.fetchval(ENDED_WITHIN)
    facts.ended_within_s = tuple(ended) if ended else None
    for service in STREAM_OF:
        await _read_history(connection, service, histories)
    histories.settle_edited()
    facts.pending = histories.pending
    async for row in connection.cursor(TRAIL, prefetch=PREFETCH_ROWS):
        trail.add(Entry(*row))
    trail.finish()


async def _read_orders(connection: Connection, facts: Facts) -> None:
    rows = connection.cursor(
        "SELECT order_id, status, customer_id, amount_minor, currency, items, contact IS NOT NULL "
        "AS contact FROM orders.orders",
        prefetch=PREFETCH_ROWS,
    )
    async for row in rows:
        order_id = row["order_id"]
        if row["status"] is None:
            facts.leftovers.early_orders.append(order_id)
            continue
        money = (row["amount_minor"], row["currency"])
        try:
            items = loads(row["items"]) if row["items"] else []
            basket = basket_of(row["customer_id"], money, items)
            lines = lines_of(items)
        except (ValueError, KeyError, TypeError) as error:
            raise CannotReadError(f"orders.orders {order_id} items: {error!r}") from None
        facts.orders[order_id] = Order(
            order_id, row["status"], money, basket, lines, row["contact"]
        )


def digest_of(caller: str, key: str) -> str:
    """What is told of an idempotency key."""
    return hashlib.sha256(f"{caller}\n{key}".encode()).hexdigest()


async def _read_others(connection: Connection, facts: Facts) -> None:
    prefixes = tuple(facts.log.prefixes)
    keys = connection.cursor(
        "SELECT key, order_id FROM orders.idempotency_keys", prefetch=PREFETCH_ROWS
    )
    callers = await connection.fetch("SELECT DISTINCT caller FROM orders.idempotency_keys")
    sent = {
        REMEMBERED + digest_of(row["caller"], key): key
        for row in callers
        for key in facts.log.attempts
    }
    async for stored, order_id in keys:
        # Of a key from before the database was restored only a digest is left.
        key = sent.get(stored, stored)
        if prefixes and key.startswith(prefixes):
            facts.keys[key] = order_id
    for row in await connection.fetch("SELECT sku, on_hand, reserved FROM inventory.stock"):
        facts.stock[row["sku"]] = Stock(row["on_hand"], row["reserved"])
    reservations = await connection.fetch("SELECT order_id, state FROM inventory.reservations")
    facts.reservations = {row["order_id"]: row["state"] for row in reservations}
    for row in await connection.fetch(
        "SELECT order_id, state, amount_minor, currency, intent_id, refunded_minor "
        "FROM payments.payments"
    ):
        facts.payments[row["order_id"]] = Payment(
            order_id=row["order_id"],
            state=row["state"],
            money=(row["amount_minor"] or 0, row["currency"] or ""),
            intent_id=row["intent_id"] or "",
            refunded=row["refunded_minor"] or 0,
        )
    # Only mail can be held against a mailbox.
    for row in await connection.fetch(
        "SELECT order_id, state, message_id FROM notifications.notifications "
        "WHERE channel <> 'webhook'"
    ):
        message_id = (row["message_id"] or "").strip("<>")
        facts.notifications.append(Notification(row["order_id"], row["state"], message_id))


async def _read_leftovers(connection: Connection, left: Leftovers) -> None:
    for service in SERVICES:
        left.jobs[service] = await connection.fetchval(COUNT_JOBS.format(service))
        old = await connection.fetchval(
            f"SELECT count(*) FROM {service}.jobs "  # noqa: S608 - a constant
            "WHERE created_at < now() - make_interval(secs => $1) "
            f"AND NOT ({TRIED})",
            OLD_JOB_S,
        )
        overdue = await connection.fetchval(OVERDUE.format(service), OVERDUE_S)
        left.overdue_jobs.update({service: overdue} if overdue else {})
        age_s = await connection.fetchval(UNPUBLISHED_AGE.format(service))
        left.unpublished_age_s.update({service: age_s} if age_s else {})
        failing = await connection.fetchval(FAILING.format(service))
        left.old_jobs.update({service: old} if old else {})
        left.failing.update({service: failing} if failing else {})
    for service, statement in WAITING.items():
        left.waiting[service] = await connection.fetchval(statement)
    left.webhooks_tried_again = await connection.fetchval(TRIED_AGAIN)


async def _read_parked(connection: Connection, facts: Facts) -> None:
    """Note which dead letters a person has dealt with, and how much still waits behind others."""
    letters: dict[tuple[str, str, int], list[DeadLetter]] = {}
    for letter in facts.dead_letters:
        letters.setdefault(letter.origin, []).append(letter)
    for service in SERVICES:
        if await connection.fetchval("SELECT to_regclass($1)", f"{service}.parked") is None:
            continue
        async for row in connection.cursor(PARKED.format(service), prefetch=PREFETCH_ROWS):
            if row["state"] == "waiting":
                waiting = facts.leftovers.waiting_behind
                waiting[service] = waiting.get(service, 0) + 1
            for letter in letters.get((service, row["stream"], row["stream_seq"]), ()):
                letter.resolved = row["state"] in RESOLVED


async def _read_history(connection: Connection, service: str, histories: Histories) -> None:
    known = histories.first.get(STREAM_OF[service], {})
    repairs = histories.first[DEAD_LETTERS]
    async for row in connection.cursor(HISTORY.format(service), prefetch=PREFETCH_ROWS):
        of_stream = repairs if row["subject"].startswith(REPAIRS) else known
        histories.add(_recorded(service, row, of_stream.keys()))


def _recorded(service: str, row: Any, known: Container[bytes]) -> Recorded:
    """Return a history row; an id that came from elsewhere is taken from the stored bytes."""
    key = row["id"].bytes
    if key not in known:
        try:
            key = key_of(loads(row["body"])["id"])
        except (ValueError, KeyError, TypeError):
            key = row["id"].bytes
    return Recorded(
        service=service,
        id=key,
        aggregate=row["aggregate_id"],
        subject=row["subject"],
        version=row["version"],
        body=row["body"],
        place=(row["batch_no"], row["batch_pos"]),
        seq=row["seq"],
    )
