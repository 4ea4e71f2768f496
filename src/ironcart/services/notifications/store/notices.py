"""Notices: what is to be told to whom, by mail or to a webhook endpoint, and how it ended."""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

import msgspec
from msgspec import Struct

from ironcart.toolkit.database import Connection, Database
from ironcart.toolkit.history import Cause
from ironcart.toolkit.telemetry import TraceContext

MAIL = "mail"
WEBHOOK = "webhook"

# Order, template, channel, and the endpoint of a webhook.
Key = tuple[str, str, str, str]


class Notice(msgspec.Struct, frozen=True):
    """One thing to tell one customer or one endpoint.

    `contact` is ciphertext, or None when there is none; `amount` is written for people;
    `recipient_hash` is known beforehand for a webhook; `due_for_s` is its age when it was read.
    """

    order_id: str
    template: str
    customer_id: str
    amount: str
    currency: str
    reason: str | None
    contact: str | None
    cause: Cause
    channel: str = MAIL
    endpoint_id: str = ""
    recipient_hash: str = ""
    ended_at: datetime | None = None
    due_for_s: float = 0.0

    @property
    def key(self) -> Key:
        """What it is known by, for ever."""
        return self.order_id, self.template, self.channel, self.endpoint_id


class _Data(msgspec.Struct, frozen=True):
    customer_id: str
    amount: str
    currency: str
    reason: str | None
    trace_id: str
    context: TraceContext
    causation_id: str | None
    ended_at: datetime | None = None


class Told(Struct, frozen=True):
    """How it ended: `reason` is a code when the customer could not be told, else None."""

    recipient_hash: str
    message_id: str | None
    reason: str | None


class Row(Struct, frozen=True):
    """A notification as callers see it, and where it stands among the others."""

    order_id: str
    template: str
    channel: str
    endpoint_id: str
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
            *_columns([notice.key for notice in notices]),
            [notice.contact for notice in notices],
            [notice.recipient_hash for notice in notices],
            [_encoder.encode(_to_data(notice)) for notice in notices],
        )
        return {_key(row) for row in rows}

    async def due(self, keys: Sequence[Key]) -> list[Notice]:
        """Read what of these is still to be told."""
        return [_from_row(row) for row in await self._connection.fetch(_DUE, *_columns(keys))]

    async def due_at(self, endpoint_id: str, count_max: int) -> list[Key]:
        """Read what an endpoint is still to be told, the first of it."""
        rows = await self._connection.fetch(
            "SELECT order_id, template, channel, endpoint_id FROM notifications WHERE"
            " owed_to = $1 LIMIT $2",
            endpoint_id,
            count_max,
        )
        return [_key(row) for row in rows]

    async def lock_orders(self, order_ids: Collection[str]) -> set[Key]:
        """Lock all that is kept about these orders, in order; returns the keys still due.

        Whoever settles anything about an order holds these locks, so that its history is written
        by one at a time.
        """
        rows = await self._connection.fetch(
            "SELECT order_id, template, channel, endpoint_id, state FROM notifications"
            " WHERE order_id = ANY($1::text[])"
            " ORDER BY order_id, template, channel, endpoint_id FOR UPDATE",
            list(order_ids),
        )
        return {_key(row) for row in rows if row["state"] == "due"}

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
            *_columns([key for key, _ in told]),
            [each.recipient_hash for _, each in told],
            [each.message_id for _, each in told],
            [each.reason for _, each in told],
        )

    async def tell_again(
        self, told: Sequence[tuple[str, str, str, str, str | None, str | None]]
    ) -> None:
        """Write down what was told, known or not: order, template, channel, recipient hash, reason
        and message id."""
        await self._connection.execute(
            _TELL_AGAIN,
            *([each[part] for each in told] for part in range(6)),
            _encoder.encode(_FORGOTTEN),
        )

    async def page(
        self, order_id: str | None, before: tuple[int, Key] | None, count_max: int
    ) -> list[Row]:
        """Read notifications, newest first, before `(created_at_us, key)`; of one order, or of all
        (None)."""
        narrowed = "" if order_id is None else "AND order_id = $7 "
        created_at_us, key = before or (2**52, ("", "", "", ""))
        rows = await self._connection.fetch(
            _PAGE.replace("{narrowed}", narrowed),
            created_at_us,
            *key,
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
        notice.ended_at,
    )


def _from_row(row: Any) -> Notice:
    data = _data.decode(row["data"])
    return Notice(
        row["order_id"],
        row["template"],
        data.customer_id,
        data.amount,
        data.currency,
        data.reason,
        row["contact"],
        Cause(data.trace_id, data.context, data.causation_id),
        row["channel"],
        row["endpoint_id"],
        row["recipient_hash"],
        data.ended_at,
        row["due_for_s"],
    )


def _columns(keys: Sequence[Key]) -> tuple[list[str], ...]:
    return tuple([key[part] for key in keys] for part in range(4))


def _key(row: Any) -> Key:
    return row["order_id"], row["template"], row["channel"], row["endpoint_id"]


_ADD = """
INSERT INTO notifications
  (order_id, template, channel, endpoint_id, contact, recipient_hash, data)
SELECT *
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::bytea[])
  AS u(order_id, template, channel, endpoint_id, contact, recipient_hash, data)
ORDER BY u.order_id, u.template, u.channel, u.endpoint_id
ON CONFLICT DO NOTHING RETURNING order_id, template, channel, endpoint_id
"""
_DUE = """
SELECT order_id, template, channel, endpoint_id, contact, recipient_hash, data,
       extract(epoch FROM now() - created_at)::float8 AS due_for_s
FROM notifications JOIN unnest($1::text[], $2::text[], $3::text[], $4::text[])
  AS k(order_id, template, channel, endpoint_id) USING (order_id, template, channel, endpoint_id)
WHERE state = 'due'
"""
_SETTLE = """
UPDATE notifications n
SET state = CASE WHEN u.reason IS NULL THEN 'sent' ELSE 'failed' END,
    recipient_hash = u.recipient_hash, message_id = u.message_id, reason = u.reason,
    updated_at = now()
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[])
  AS u(order_id, template, channel, endpoint_id, recipient_hash, message_id, reason)
WHERE n.order_id = u.order_id AND n.template = u.template AND n.channel = u.channel
  AND n.endpoint_id = u.endpoint_id
"""
# What was to be said is not told, and is not needed any more.
_FORGOTTEN = _Data("", "", "", None, "", TraceContext("", ""), None)
_TELL_AGAIN = """
INSERT INTO notifications AS n
  (order_id, template, channel, endpoint_id, recipient_hash, reason, message_id, state, data)
SELECT DISTINCT ON (u.order_id, u.template, u.channel, coalesce(w.endpoint_id, ''))
       u.order_id, u.template, u.channel, coalesce(w.endpoint_id, ''), u.recipient_hash, u.reason,
       u.message_id, CASE WHEN u.reason IS NULL THEN 'sent' ELSE 'failed' END, $7
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[])
  AS u(order_id, template, channel, recipient_hash, reason, message_id)
LEFT JOIN webhook_endpoints w ON u.channel = 'webhook' AND w.url_hash = u.recipient_hash
WHERE u.channel = 'mail' OR w.endpoint_id IS NOT NULL
ON CONFLICT (order_id, template, channel, endpoint_id) DO UPDATE
SET state = excluded.state, reason = excluded.reason, recipient_hash = excluded.recipient_hash,
    message_id = excluded.message_id, updated_at = now()
"""
_PAGE = """
SELECT order_id, template, channel, endpoint_id, state, reason, message_id, recipient_hash,
       created_at, updated_at, (extract(epoch FROM created_at) * 1000000)::bigint AS created_at_us
FROM notifications
WHERE (created_at, order_id, template, channel, endpoint_id)
      < ('epoch'::timestamptz + $1::bigint * interval '1 microsecond', $2::text, $3::text, $4::text,
         $5::text)
{narrowed}ORDER BY created_at DESC, order_id DESC, template DESC, channel DESC, endpoint_id DESC
LIMIT $6
"""
