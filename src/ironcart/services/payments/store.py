"""What payments keeps: one method is one statement, for a whole batch."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ironcart.toolkit.database import Connection
from ironcart.toolkit.outcomes import LostRace


@dataclass(frozen=True, slots=True)
class Payment:
    """The money of one order: where it stands, and what led there."""

    order_id: str
    state: str
    amount_minor: int | None
    currency: str | None
    payment_method: str | None
    intent_id: str | None
    generation: int
    refunded_minor: int
    decline_code: str | None
    version: int
    trace_id: str
    traceparent: str
    causation_id: str | None
    created_at: datetime | None = None
    updated_at: datetime | None = None


_COLUMNS = ", ".join(Payment.__slots__)
_MOVED = (
    "order_id",
    "state",
    "intent_id",
    "generation",
    "refunded_minor",
    "decline_code",
    "version",
    "causation_id",
    "traceparent",
)
_WRITTEN = tuple(field for field in Payment.__slots__ if not field.endswith("_at"))


class Store:
    """Speaks through one connection, mostly inside an open transaction."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def lock(self, order_ids: Collection[str]) -> dict[str, Payment]:
        """Lock what is known of these orders, in order, so that batches cannot deadlock."""
        rows = await self._connection.fetch(
            f"SELECT {_COLUMNS} FROM payments"  # noqa: S608 - a constant
            " WHERE order_id = ANY($1::text[]) ORDER BY order_id FOR UPDATE",
            list(order_ids),
        )
        return {row["order_id"]: Payment(*row) for row in rows}

    async def find(self, order_ids: Collection[str]) -> dict[str, Payment]:
        """Read these orders' payments as they are."""
        rows = await self._connection.fetch(
            f"SELECT {_COLUMNS} FROM payments WHERE order_id = ANY($1::text[])",  # noqa: S608
            list(order_ids),
        )
        return {row["order_id"]: Payment(*row) for row in rows}

    async def add(self, payments: Sequence[Payment]) -> None:
        """Keep orders met for the first time; raises `LostRace` when another replica was first."""
        status = await self._connection.execute(
            "INSERT INTO payments (order_id, state, amount_minor, currency, payment_method,"
            " intent_id, generation, refunded_minor, decline_code, version, trace_id, traceparent,"
            " causation_id) SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[], $4::text[],"
            " $5::text[], $6::text[], $7::int[], $8::bigint[], $9::text[], $10::int[],"
            " $11::text[], $12::text[], $13::text[]) ON CONFLICT DO NOTHING",
            *_columns(payments),
        )
        if status != f"INSERT 0 {len(payments)}":
            raise LostRace("another replica met one of these orders first")

    async def move(self, payments: Sequence[Payment]) -> list[tuple[str, float]]:
        """Move known payments on; returns the order id and age in seconds of each."""
        rows = await self._connection.fetch(
            "UPDATE payments p SET state = u.state, intent_id = u.intent_id,"
            " generation = u.generation, refunded_minor = u.refunded_minor,"
            " decline_code = u.decline_code, version = u.version, causation_id = u.causation_id,"
            " traceparent = u.traceparent, updated_at = now()"
            " FROM unnest($1::text[], $2::text[], $3::text[], $4::int[], $5::bigint[], $6::text[],"
            " $7::int[], $8::text[], $9::text[]) AS u(order_id, state, intent_id, generation,"
            " refunded_minor, decline_code, version, causation_id, traceparent)"
            " WHERE p.order_id = u.order_id"
            " RETURNING p.order_id, extract(epoch FROM now() - p.created_at)::float8 AS age_s",
            *([getattr(payment, field) for payment in payments] for field in _MOVED),
        )
        return [(row["order_id"], row["age_s"]) for row in rows]


def _columns(payments: Sequence[Payment]) -> tuple[list[Any], ...]:
    return tuple([getattr(payment, field) for payment in payments] for field in _WRITTEN)
