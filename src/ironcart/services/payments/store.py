"""What payments keeps: one method is one statement, for a whole batch."""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from msgspec import Struct

from ironcart.toolkit.database import Connection
from ironcart.toolkit.outcomes import LostRace


class Payment(Struct, frozen=True):
    """The money of one order: where it stands, and what led there.

    `refunding_minor` is what an operator's refund under way will give back, or, without a
    `refund_id`, what is sent back again after it was told to be. While `recovering`, the gateway
    may know intents of this order that we have forgotten; while `looking`, it has news.
    """

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
    refund_id: str | None = None
    refunding_minor: int | None = None
    looking: bool = False
    recovering: bool = False
    created_at: datetime | None = None
    updated_at: datetime | None = None
    # Seconds, by the database's clock, when it was read.
    changed_s: float = 0.0
    refund_asked_s: float = 0.0


_MOVED = {
    "order_id": "text",
    "state": "text",
    "amount_minor": "bigint",
    "currency": "text",
    "payment_method": "text",
    "intent_id": "text",
    "generation": "int",
    "refunded_minor": "bigint",
    "decline_code": "text",
    "version": "int",
    "causation_id": "text",
    "traceparent": "text",
    "refund_id": "text",
    "refunding_minor": "bigint",
    "looking": "boolean",
    "recovering": "boolean",
}
_ADDED = {**_MOVED, "trace_id": "text"}
_COMPUTED = {
    "changed_s": "extract(epoch FROM now() - updated_at)::float8",
    "refund_asked_s": "coalesce(extract(epoch FROM now() - refund_asked_at), 0)::float8",
}


def _unnest(columns: dict[str, str]) -> str:
    return ", ".join(f"${n}::{kind}[]" for n, kind in enumerate(columns.values(), 1))


def _columns(payments: Sequence[Payment], columns: dict[str, str]) -> list[list[Any]]:
    return [[getattr(payment, column) for payment in payments] for column in columns]


# ruff: noqa: S608 - what these are made of are the constants above
_SELECT = (
    f"SELECT {', '.join(_COMPUTED.get(column, column) for column in Payment.__struct_fields__)}"
    " FROM payments WHERE"
)
_ADD = (
    f"INSERT INTO payments ({', '.join(_ADDED)}) SELECT * FROM unnest({_unnest(_ADDED)})"
    " ON CONFLICT DO NOTHING"
)
_MOVE = (
    f"UPDATE payments p SET {', '.join(f'{c} = u.{c}' for c in _MOVED if c != 'order_id')},"
    " refund_asked_at = CASE WHEN u.refund_id IS NULL THEN NULL"
    " WHEN u.refund_id = p.refund_id THEN p.refund_asked_at ELSE now() END, updated_at = now()"
    f" FROM unnest({_unnest(_MOVED)}) AS u({', '.join(_MOVED)}) WHERE p.order_id = u.order_id"
    " RETURNING p.order_id, extract(epoch FROM now() - p.created_at)::float8 AS age_s"
)


class Store:
    """Speaks through one connection, mostly inside an open transaction."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def lock(self, order_ids: Collection[str]) -> dict[str, Payment]:
        """Lock what is known of these orders, in order, so that batches cannot deadlock."""
        rows = await self._connection.fetch(
            f"{_SELECT} order_id = ANY($1::text[]) ORDER BY order_id FOR UPDATE", list(order_ids)
        )
        return {row["order_id"]: Payment(*row) for row in rows}

    async def find(self, order_ids: Collection[str]) -> dict[str, Payment]:
        """Read these orders' payments as they are."""
        rows = await self._connection.fetch(
            f"{_SELECT} order_id = ANY($1::text[])", list(order_ids)
        )
        return {row["order_id"]: Payment(*row) for row in rows}

    async def order_of(self, intent_id: str) -> str | None:
        """Say whose intent this is; None when it is nobody's."""
        order_id: str | None = await self._connection.fetchval(
            "SELECT order_id FROM payments WHERE intent_id = $1", intent_id
        )
        return order_id

    async def add(self, payments: Sequence[Payment]) -> None:
        """Keep orders met for the first time; raises `LostRace` when another replica was first."""
        status = await self._connection.execute(_ADD, *_columns(payments, _ADDED))
        if status != f"INSERT 0 {len(payments)}":
            raise LostRace("another replica met one of these orders first")

    async def move(self, payments: Sequence[Payment]) -> list[tuple[str, float]]:
        """Move known payments on; returns the order id and age in seconds of each."""
        rows = await self._connection.fetch(_MOVE, *_columns(payments, _MOVED))
        return [(row["order_id"], row["age_s"]) for row in rows]

    async def mark_recovering(self) -> None:
        """Have every open charge looked for at the gateway before anything is sent for it.

        For a database that has been restored to an earlier moment.
        """
        await self._connection.execute(
            "UPDATE payments SET recovering = true, updated_at = now()"
            " WHERE state IN ('charging', 'closing', 'voiding')"
        )

    async def keep_webhook(self, webhook_id: str, kind: str, intent_id: str | None) -> bool:
        """Note that a webhook came; False when it had come before."""
        status = await self._connection.execute(
            "INSERT INTO webhooks (id, type, intent_id) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
            webhook_id,
            kind,
            intent_id,
        )
        return status == "INSERT 0 1"


def kept_key(caller: str, key: str) -> str:
    """How an idempotency key is kept: by its digest, for callers write what they like into it.

    No caller's key has a character such as the first.
    """
    return "\x01" + hashlib.sha256(f"{caller}\n{key}".encode()).hexdigest()


class RefundStore:
    """What operators asked for, through one connection, inside an open transaction."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def answered(self, caller: str, key: str) -> tuple[bytes, bytes] | None:
        """Read the fingerprint and the answer that an idempotency key stands for."""
        row = await self._connection.fetchrow(
            "SELECT fingerprint, answer FROM refunds WHERE caller = $1 AND key IN ($2, $3)",
            caller,
            kept_key(caller, key),
            key,  # Older rows have it as it came.
        )
        return (row["fingerprint"], row["answer"]) if row else None

    async def add(
        self,
        payment: Payment,
        *,
        reason: str,
        caller: str,
        key: str | None,
        fingerprint: bytes,
        answer: bytes,
    ) -> None:
        """Keep a request; raises `LostRace` when its key was used a moment ago."""
        status = await self._connection.execute(
            "INSERT INTO refunds (refund_id, order_id, amount_minor, reason, caller, key,"
            " fingerprint, answer) VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING",
            payment.refund_id,
            payment.order_id,
            payment.refunding_minor,
            reason,
            caller,
            None if key is None else kept_key(caller, key),
            fingerprint,
            answer,
        )
        if status != "INSERT 0 1":
            raise LostRace("this key was used a moment ago")


@dataclass(frozen=True, slots=True)
class Turn:
    """How far the ledgers are compared: intents by creation (unix seconds), events by batch.

    One that was cut short goes on below the intent `after`; nothing before `open_from` (unix
    seconds) is left open by what it has compared.
    """

    watermark: int
    batch_no: int
    now: int
    after: str = ""
    open_from: int | None = None


class ReconcilerStore:
    """Whose turn it is to reconcile, and how far it has come."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def claim(self, every_s: float, hold_s: float) -> Turn | None:
        """Take a turn when one is due."""
        row = await self._connection.fetchrow(
            "UPDATE reconciler SET claimed_until = now() + make_interval(secs => $2)"
            " WHERE (finished_at IS NULL OR finished_at + make_interval(secs => $1) <= now())"
            " AND (claimed_until IS NULL OR claimed_until <= now())"
            " RETURNING watermark, batch_no, extract(epoch FROM now())::bigint AS now,"
            " coalesce(page_after, '') AS page_after, open_from",
            every_s,
            hold_s,
        )
        return Turn(*row) if row else None

    async def give_back(self, after_s: float) -> None:
        """Leave the turn to whoever comes next, in `after_s` seconds."""
        await self._connection.execute(
            "UPDATE reconciler SET claimed_until = now() + make_interval(secs => $1)", after_s
        )

    async def advance(self, after: str, open_from: int, batch_no: int, hold_s: float) -> None:
        """Note how far a turn has come, and keep it."""
        await self._connection.execute(
            "UPDATE reconciler SET page_after = $1, open_from = $2, batch_no = $3,"
            " claimed_until = now() + make_interval(secs => $4)",
            after,
            open_from,
            batch_no,
            hold_s,
        )

    async def finish(self, watermark: int, batch_no: int) -> None:
        """Note how far everything is accounted for."""
        await self._connection.execute(
            "UPDATE reconciler SET watermark = $1, batch_no = $2, finished_at = now(),"
            " claimed_until = NULL, page_after = NULL, open_from = NULL",
            watermark,
            batch_no,
        )

    async def told_after(
        self, at: tuple[int, int], count_max: int
    ) -> list[tuple[tuple[int, int], str]]:
        """Read which orders something was told of after a place (batch, position), in order."""
        rows = await self._connection.fetch(
            "SELECT batch_no, batch_pos, aggregate_id FROM events"
            " WHERE (batch_no, batch_pos) > ($1, $2) ORDER BY batch_no, batch_pos LIMIT $3",
            *at,
            count_max,
        )
        return [((row["batch_no"], row["batch_pos"]), row["aggregate_id"]) for row in rows]
