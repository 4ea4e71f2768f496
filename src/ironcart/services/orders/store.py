"""What orders keeps: one method is one statement, for a whole batch."""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from msgspec import Struct

from ironcart.toolkit.database import Connection
from ironcart.toolkit.outcomes import LostRace


class Order(Struct, frozen=True):
    """One row; all but the id and the state are empty while the order is not heard of."""

    order_id: str
    caller: str | None
    customer_id: str | None
    state: str
    status: str | None
    amount_minor: int | None
    currency: str | None
    items: bytes | None
    payment_method: str | None
    contact: str | None
    reason: str | None
    version: int
    trace_id: str | None
    created_at: datetime | None = None
    updated_at: datetime | None = None


class Key(Struct, frozen=True):
    """One idempotency key, with the answer that it stands for."""

    caller: str
    key: str
    fingerprint: bytes
    order_id: str
    answer: bytes

    @property
    def digest(self) -> str:
        """What of a key is told with its order, and is left of it when a database was lost."""
        return hashlib.sha256(f"{self.caller}\n{self.key}".encode()).hexdigest()

    @property
    def kept(self) -> str:
        """How a key is kept: by its digest, for callers write what they like into it."""
        return self.key if self.key.startswith(REMEMBERED) else REMEMBERED + self.digest


@dataclass(frozen=True, slots=True)
class Told:
    """One event of an order's own history."""

    version: int
    type: str
    body: bytes


# What the digest of a key begins with: no caller's key has such a character. Older rows have the
# key as it came.
REMEMBERED = "\x01"
_COLUMNS = (
    "order_id, caller, customer_id, state, status, amount_minor, currency, items,"
    " payment_method, contact, reason, version, trace_id, created_at, updated_at"
)
_WRITTEN = tuple(field for field in Order.__struct_fields__ if not field.endswith("_at"))
# As the index has it: what callers see change before an order ends is not indexed, so that most
# updates leave the indexes alone.
_PHASES = {"pending": "open", "reserved": "open"}
_FILTERS = (
    "($1::text IS NULL OR (status = $1 AND phase = $6)) AND ($2::text IS NULL OR customer_id = $2)"
)


# As the index has it, in which callers who were asked for no key are not.
_PLACED_BY = " AND caller = $7 AND caller LIKE '%:%'"


class Store:
    """Speaks through one connection, mostly inside an open transaction."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def lock(self, order_ids: Collection[str]) -> dict[str, Order]:
        """Lock what is known of these orders, in order, so that batches cannot deadlock."""
        rows = await self._connection.fetch(
            f"SELECT {_COLUMNS} FROM orders"  # noqa: S608 - a constant
            " WHERE order_id = ANY($1::text[]) ORDER BY order_id FOR UPDATE",
            list(order_ids),
        )
        return {row["order_id"]: Order(*row) for row in rows}

    async def heard_of(self, order_ids: Collection[str]) -> set[str]:
        """Which of these orders are known, early facts aside."""
        rows = await self._connection.fetch(
            "SELECT order_id FROM orders WHERE order_id = ANY($1::text[]) AND status IS NOT NULL",
            list(order_ids),
        )
        return {row["order_id"] for row in rows}

    async def add(self, orders: Sequence[Order]) -> None:
        """Keep orders met for the first time; raises `LostRace` when another replica was first."""
        status = await self._connection.execute(
            "INSERT INTO orders (order_id, caller, customer_id, state, status, amount_minor,"
            " currency, items, payment_method, contact, reason, version, trace_id)"
            " SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[],"
            " $6::bigint[], $7::text[], $8::bytea[], $9::text[], $10::text[], $11::text[],"
            " $12::int[], $13::text[]) ON CONFLICT DO NOTHING",
            *_columns(orders),
        )
        if status != f"INSERT 0 {len(orders)}":
            raise LostRace("another replica met one of these orders first")

    async def complete(self, orders: Sequence[Order]) -> None:
        """Fill in orders of which only early facts were known."""
        await self._connection.execute(
            "UPDATE orders o SET caller = u.caller, customer_id = u.customer_id, state = u.state,"
            " status = u.status, amount_minor = u.amount_minor, currency = u.currency,"
            " items = u.items, payment_method = u.payment_method, contact = u.contact,"
            " reason = u.reason, version = u.version, trace_id = u.trace_id, updated_at = now()"
            " FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[],"
            " $6::bigint[], $7::text[], $8::bytea[], $9::text[], $10::text[], $11::text[],"
            " $12::int[], $13::text[]) AS u(order_id, caller, customer_id, state, status,"
            " amount_minor, currency, items, payment_method, contact, reason, version, trace_id)"
            " WHERE o.order_id = u.order_id",
            *_columns(orders),
        )

    async def move(self, orders: Sequence[Order]) -> list[tuple[str, float]]:
        """Move known orders on; returns the order id and age in seconds of each."""
        rows = await self._connection.fetch(
            "UPDATE orders o SET state = u.state, status = u.status, reason = u.reason,"
            " version = u.version, updated_at = now()"
            " FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::int[])"
            " AS u(order_id, state, status, reason, version) WHERE o.order_id = u.order_id"
            " RETURNING o.order_id, extract(epoch FROM now() - o.created_at)::float8 AS age_s",
            [order.order_id for order in orders],
            [order.state for order in orders],
            [order.status for order in orders],
            [order.reason for order in orders],
            [order.version for order in orders],
        )
        return [(row["order_id"], row["age_s"]) for row in rows]

    async def late(self, after_s: float, limit: int) -> list[Order]:
        """Lock orders that were accepted more than `after_s` ago and could not be charged yet.

        Those that somebody else has locked, another replica say, are left out.
        """
        rows = await self._connection.fetch(
            f"SELECT {_COLUMNS} FROM orders"  # noqa: S608 - a constant
            " WHERE phase = 'open'"
            " AND created_at < now() - make_interval(secs => $1)"
            " LIMIT $2 FOR UPDATE SKIP LOCKED",
            after_s,
            limit,
        )
        return [Order(*row) for row in rows]

    async def open(self, at_most: int) -> int:
        """Count the orders that have not ended, up to `at_most`."""
        found: int = await self._connection.fetchval(
            "SELECT count(*) FROM (SELECT 1 FROM orders"
            " WHERE phase IN ('open', 'cancelling') LIMIT $1) AS counted",
            at_most,
        )
        return found

    async def versions(self, order_ids: Collection[str]) -> dict[str, tuple[int, str]]:
        """How far these orders are: version and status."""
        rows = await self._connection.fetch(
            "SELECT order_id, version, status FROM orders"
            " WHERE order_id = ANY($1::text[]) AND status IS NOT NULL",
            list(order_ids),
        )
        return {row["order_id"]: (row["version"], row["status"]) for row in rows}

    async def claim(self, keys: Sequence[Key]) -> set[tuple[str, str]]:
        """Take idempotency keys, in order; returns those that were free.

        Another transaction with the same key is waited for.
        """
        keys = sorted(keys, key=lambda key: (key.caller, key.kept))
        rows = await self._connection.fetch(
            _CLAIM,
            [key.caller for key in keys],
            [key.key for key in keys],
            [key.fingerprint for key in keys],
            [key.order_id for key in keys],
            [key.answer for key in keys],
            [key.kept for key in keys],
        )
        taken = {(row["caller"], row["key"]) for row in rows}
        return {(key.caller, key.key) for key in keys if (key.caller, key.kept) in taken}

    async def keys(self, wanted: Collection[Key]) -> dict[tuple[str, str], Key]:
        """Read idempotency keys that were taken before, also those kept as they came."""
        rows = await self._connection.fetch(
            _KEYS,
            [key.caller for key in wanted],
            [key.key for key in wanted],
            [key.kept for key in wanted],
        )
        return {(row["caller"], row["key"]): Key(*row) for row in rows}

    async def find(self, order_id: str) -> Order | None:
        """Read one order as it is; None while it is not heard of."""
        row = await self._connection.fetchrow(
            f"SELECT {_COLUMNS} FROM orders"  # noqa: S608 - a constant
            " WHERE order_id = $1 AND status IS NOT NULL",
            order_id,
        )
        return None if row is None else Order(*row)

    async def placed(self, order_ids: Collection[str]) -> dict[str, Order]:
        """Read orders as they are, early facts aside."""
        rows = await self._connection.fetch(
            f"SELECT {_COLUMNS} FROM orders"  # noqa: S608 - a constant
            " WHERE order_id = ANY($1::text[]) AND status IS NOT NULL",
            list(order_ids),
        )
        return {row["order_id"]: Order(*row) for row in rows}

    async def page(
        self,
        *,
        status: str | None,
        customer_id: str | None,
        before: tuple[datetime, str] | None,
        limit: int,
        placed_by: str | None = None,
    ) -> list[Order]:
        """Read orders newest first, before a position; all, or those of one caller."""
        at, order_id = before or (None, None)
        whose = ("", ()) if placed_by is None else (_PLACED_BY, (placed_by,))
        # What is put in is one of two constants.
        rows = await self._connection.fetch(  # nosemgrep: no-statement-made-of-values
            f"SELECT {_COLUMNS} FROM orders WHERE status IS NOT NULL AND {_FILTERS}{whose[0]}"  # noqa: S608 - constants
            " AND ($3::timestamptz IS NULL OR (created_at, order_id) < ($3, $4::text))"
            " ORDER BY created_at DESC, order_id DESC LIMIT $5",
            status,
            customer_id,
            at,
            order_id,
            limit,
            _PHASES.get(status, status) if status else None,
            *whose[1],
        )
        return [Order(*row) for row in rows]

    async def told(self, order_id: str, after_version: int) -> list[Told]:
        """Read an order's own history after a version."""
        rows = await self._connection.fetch(
            "SELECT version, type, body FROM events WHERE aggregate_id = $1 AND version > $2"
            " ORDER BY version",
            order_id,
            after_version,
        )
        return [Told(*row) for row in rows]


_CLAIM = """
INSERT INTO idempotency_keys (caller, key, fingerprint, order_id, answer)
SELECT u.caller, u.kept, u.fingerprint, u.order_id, u.answer
FROM unnest($1::text[], $2::text[], $3::bytea[], $4::text[], $5::bytea[], $6::text[])
  AS u(caller, key, fingerprint, order_id, answer, kept)
WHERE NOT EXISTS (SELECT 1 FROM idempotency_keys r WHERE r.caller = u.caller AND r.key = u.key)
ORDER BY u.caller, u.kept
ON CONFLICT DO NOTHING RETURNING caller, key
"""
_KEYS = """
SELECT k.caller, u.key, k.fingerprint, k.order_id, k.answer FROM idempotency_keys k
JOIN unnest($1::text[], $2::text[], $3::text[]) AS u(caller, key, kept)
  ON k.caller = u.caller AND k.key = ANY(ARRAY[u.key, u.kept])
"""


def _columns(orders: Sequence[Order]) -> tuple[list[Any], ...]:
    return tuple([getattr(order, field) for order in orders] for field in _WRITTEN)
