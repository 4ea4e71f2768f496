"""Parking: a message that needs a person is kept in the service's own database, and the later ones
of its aggregate wait behind it, so that a repair cannot change their order."""

import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from ironcart.toolkit.broker import Delivery
from ironcart.toolkit.database import Connection, Database
from ironcart.toolkit.loop.reading import aggregate_in, envelope_of
from ironcart.toolkit.loop.subscriptions import Message
from ironcart.toolkit.loop.verdicts import Term

ERROR_CHARACTERS_MAX = 2_000
OPEN = "('parked', 'waiting', 'released')"
COLUMNS = """
no, stream, stream_seq, subject, headers, coalesce(edited, body) AS body, event_id, aggregate_id,
type, state, reason, error, attempts, extract(epoch FROM parked_at)::float8 AS stored_at
"""


@dataclass(frozen=True, slots=True)
class Parked:
    """One row: `body` is what is to be dealt with, as it came or as a person edited it."""

    no: int
    stream: str
    stream_seq: int
    subject: str
    headers: dict[str, str]
    body: bytes
    event_id: uuid.UUID | None
    aggregate_id: str
    type: str
    state: str
    attempts: int
    stored_at: float

    def as_delivery(self) -> Delivery:
        """What a handler is given; there is nothing that could be acknowledged."""
        return Delivery(
            self.stream,
            self.stream_seq,
            self.subject,
            self.body,
            self.headers,
            self.attempts + 1,
            self.stored_at,
            "",
        )


def of(row: Any) -> Parked:
    """Read one row of `COLUMNS`."""
    return Parked(
        row["no"],
        row["stream"],
        row["stream_seq"],
        row["subject"],
        msgspec.json.decode(row["headers"], type=dict[str, str]),
        row["body"],
        row["event_id"],
        row["aggregate_id"],
        row["type"],
        row["state"],
        row["attempts"],
        row["stored_at"],
    )


def known_as(delivery: Delivery) -> tuple[uuid.UUID | None, str]:
    """The inbox key and the aggregate of a message, as far as it can be read."""
    envelope = envelope_of(delivery.body)
    if envelope is not None:
        return envelope.key, envelope.aggregate_id
    return None, aggregate_in(delivery.body)


async def blocked(connection: Connection, aggregate_ids: Collection[str]) -> set[str]:
    """Say which of these aggregates have something open: what comes now has to wait behind it."""
    rows = await connection.fetch(_BLOCKED, list(aggregate_ids))
    return {row["aggregate_id"] for row in rows}


async def set_aside(connection: Connection, terms: Sequence[Term]) -> set[int]:
    """Keep messages of one stream that need a person, and note them in the inbox.

    Safe to repeat; returns the sequences of those that were not kept before.
    """
    known = [known_as(term.delivery) for term in terms]
    rows = await connection.fetch(
        _ADD,
        *_columns([term.delivery for term in terms]),
        [key for key, _ in known],
        [aggregate_id for _, aggregate_id in known],
        [term.kind for term in terms],
        "parked",
        [_clean(term.reason) for term in terms],
        [_clean(term.error) for term in terms],
        [term.attempts for term in terms],
    )
    readable = [
        (key, term.delivery) for (key, _), term in zip(known, terms, strict=True) if key is not None
    ]
    if readable:
        await connection.execute(
            _NOTE,
            [key for key, _ in readable],
            [delivery.stream for _, delivery in readable],
            [delivery.stream_seq for _, delivery in readable],
        )
    return {row["stream_seq"] for row in rows}


async def hold(connection: Connection, messages: Sequence[Message]) -> None:
    """Keep messages behind what is open of their aggregates, in order of arrival."""
    none = [""] * len(messages)
    await connection.execute(
        _ADD,
        *_columns([message.delivery for message in messages]),
        [message.key for message in messages],
        [message.envelope.aggregate_id for message in messages],
        [message.envelope.type for message in messages],
        "waiting",
        none,
        none,
        [0] * len(messages),
    )


async def mark_letter(database: Database, stream: str, stream_seq: int, letter_seq: int) -> None:
    """Note where the dead letter of a message is kept."""
    await database.execute(_MARK, stream, stream_seq, letter_seq)


def _columns(deliveries: Sequence[Delivery]) -> tuple[list[object], ...]:
    return (
        [delivery.stream for delivery in deliveries],
        [delivery.stream_seq for delivery in deliveries],
        [delivery.subject for delivery in deliveries],
        [_headers(delivery) for delivery in deliveries],
        [delivery.body for delivery in deliveries],
    )


def _headers(delivery: Delivery) -> str:
    found = {_clean(name): _clean(value) for name, value in delivery.headers.items()}
    return msgspec.json.encode(found).decode()


def _clean(text: str) -> str:
    """Text that Postgres takes: no NUL, and no half of a surrogate pair."""
    return text.replace("\x00", "").encode(errors="replace").decode()[:ERROR_CHARACTERS_MAX]


_BLOCKED = f"""
SELECT DISTINCT aggregate_id FROM parked
WHERE aggregate_id = ANY($1::text[]) AND state IN {OPEN}
"""  # noqa: S608 - a constant
_ADD = """
INSERT INTO parked (stream, stream_seq, subject, headers, body, event_id, aggregate_id, type, state,
                    reason, error, attempts)
SELECT u.stream, u.seq, u.subject, u.headers, u.body, u.event_id, u.aggregate_id, u.type, $9,
       u.reason, u.error, u.attempts
FROM unnest($1::text[], $2::bigint[], $3::text[], $4::text[], $5::bytea[], $6::uuid[], $7::text[],
            $8::text[], $10::text[], $11::text[], $12::int[])
  WITH ORDINALITY AS u(stream, seq, subject, headers, body, event_id, aggregate_id, type,
                       reason, error, attempts, n)
-- The same event published again, under another sequence, is known already.
WHERE NOT EXISTS (SELECT 1 FROM parked p WHERE p.event_id = u.event_id AND p.body = u.body)
ORDER BY u.n
ON CONFLICT (stream, stream_seq) DO NOTHING RETURNING stream_seq
"""
_NOTE = """
INSERT INTO inbox (event_id, stream, stream_seq)
SELECT * FROM unnest($1::uuid[], $2::text[], $3::bigint[]) ON CONFLICT DO NOTHING
"""
_MARK = "UPDATE parked SET letter_seq = $3 WHERE stream = $1 AND stream_seq = $2"
