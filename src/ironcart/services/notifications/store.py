"""What notifications keeps: one method is one statement, for a whole batch."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

import msgspec

from ironcart.toolkit.database import Connection, Database
from ironcart.toolkit.history import Cause
from ironcart.toolkit.telemetry import TraceContext

CHANNEL = "mail"

Key = tuple[str, str]


class Notice(msgspec.Struct, frozen=True):
    """One thing to tell one customer; `contact` is ciphertext, or None when there is none."""

    order_id: str
    template: str
    customer_id: str
    amount: str
    currency: str
    reason: str | None
    contact: str | None
    cause: Cause

    @property
    def key(self) -> Key:
        """What it is known by, beside the channel."""
        return self.order_id, self.template


class _Data(msgspec.Struct, frozen=True):
    customer_id: str
    amount: str
    currency: str
    reason: str | None
    trace_id: str
    context: TraceContext
    causation_id: str | None


@dataclass(frozen=True, slots=True)
class Told:
    """How it ended: `reason` is a code when the customer could not be told, else None."""

    recipient_hash: str
    message_id: str | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class Row:
    """A notification as callers see it, and where it stands among the others."""

    order_id: str
    template: str
    channel: str
    state: str
    reason: str | None
    message_id: str | None
    recipient_hash: str
    created_at: datetime
    updated_at: datetime
    created_at_us: int


_encoder = msgspec.json.Encoder()
_data = msgspec.json.Decoder(_Data)


class Store:
    """Speaks through one open transaction, or through the pool for single reads."""

    def __init__(self, connection: Connection | Database) -> None:
        self._connection = connection

    async def add(self, notices: Sequence[Notice]) -> set[Key]:
        """Keep what is to be told; returns the keys that were not there before."""
        rows = await self._connection.fetch(
            _ADD,
            CHANNEL,
            [notice.order_id for notice in notices],
            [notice.template for notice in notices],
            [notice.contact for notice in notices],
            [_encoder.encode(_to_data(notice)) for notice in notices],
        )
        return {(row["order_id"], row["template"]) for row in rows}

    async def due(self, keys: Sequence[Key]) -> list[Notice]:
        """Read what of these is still to be told."""
        rows = await self._connection.fetch(
            "SELECT order_id, template, contact, data FROM notifications"
            " JOIN unnest($2::text[], $3::text[]) AS k(order_id, template)"
            " USING (order_id, template) WHERE channel = $1 AND state = 'due'",
            CHANNEL,
            [order_id for order_id, _ in keys],
            [template for _, template in keys],
        )
        return [
            _from_data(row["order_id"], row["template"], row["contact"], _data.decode(row["data"]))
            for row in rows
        ]

    async def lock_orders(self, order_ids: Collection[str]) -> set[Key]:
        """Lock all that is kept about these orders, in order; returns the keys still due.

        Whoever settles anything about an order holds these locks, so that its history is written
        by one at a time.
        """
        rows = await self._connection.fetch(
            "SELECT order_id, template, state FROM notifications WHERE order_id = ANY($1::text[])"
            " ORDER BY order_id, template, channel FOR UPDATE",
            list(order_ids),
        )
        return {(row["order_id"], row["template"]) for row in rows if row["state"] == "due"}

    async def versions(self, order_ids: Collection[str]) -> dict[str, int]:
        """Read how long these orders' histories are here; take the locks first."""
        rows = await self._connection.fetch(
            "SELECT aggregate_id, max(version) AS version FROM events"
            " WHERE aggregate_id = ANY($1::text[]) GROUP BY aggregate_id",
            list(order_ids),
        )
        return {row["aggregate_id"]: row["version"] for row in rows}

    async def settle(self, told: Sequence[tuple[Key, Told]]) -> None:
        """Write down how it ended."""
        await self._connection.execute(
            _SETTLE,
            CHANNEL,
            [order_id for (order_id, _), _ in told],
            [template for (_, template), _ in told],
            [each.recipient_hash for _, each in told],
            [each.message_id for _, each in told],
            [each.reason for _, each in told],
        )

    async def page(
        self, order_id: str | None, before: tuple[int, str, str, str] | None, count_max: int
    ) -> list[Row]:
        """Read notifications, newest first, before `(created_at_us, order_id, template, channel)`;
        of one order, or of all (None)."""
        narrowed = "" if order_id is None else "AND order_id = $6 "
        rows = await self._connection.fetch(
            _PAGE.replace("{narrowed}", narrowed),
            *(before or (2**52, "", "", "")),
            count_max,
            *(() if order_id is None else (order_id,)),
        )
        return [Row(**dict(row.items())) for row in rows]


def _to_data(notice: Notice) -> _Data:
    cause = notice.cause
    return _Data(
        notice.customer_id,
        notice.amount,
        notice.currency,
        notice.reason,
        cause.trace_id,
        cause.context,
        cause.causation_id,
    )


def _from_data(order_id: str, template: str, contact: str | None, data: _Data) -> Notice:
    return Notice(
        order_id,
        template,
        data.customer_id,
        data.amount,
        data.currency,
        data.reason,
        contact,
        Cause(data.trace_id, data.context, data.causation_id),
    )


_ADD = """
INSERT INTO notifications (order_id, template, channel, contact, data)
SELECT u.order_id, u.template, $1, u.contact, u.data
FROM unnest($2::text[], $3::text[], $4::text[], $5::bytea[])
  AS u(order_id, template, contact, data)
ORDER BY u.order_id, u.template
ON CONFLICT DO NOTHING RETURNING order_id, template
"""
_SETTLE = """
UPDATE notifications n
SET state = CASE WHEN u.reason IS NULL THEN 'sent' ELSE 'failed' END,
    recipient_hash = u.recipient_hash, message_id = u.message_id, reason = u.reason,
    updated_at = now()
FROM unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::text[])
  AS u(order_id, template, recipient_hash, message_id, reason)
WHERE n.order_id = u.order_id AND n.template = u.template AND n.channel = $1
"""
_PAGE = """
SELECT order_id, template, channel, state, reason, message_id, recipient_hash, created_at,
       updated_at, (extract(epoch FROM created_at) * 1000000)::bigint AS created_at_us
FROM notifications
WHERE (created_at, order_id, template, channel)
      < ('epoch'::timestamptz + $1::bigint * interval '1 microsecond', $2::text, $3::text, $4::text)
{narrowed}ORDER BY created_at DESC, order_id DESC, template DESC, channel DESC LIMIT $5
"""
