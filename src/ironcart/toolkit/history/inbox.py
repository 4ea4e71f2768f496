"""Inbox: what was already dealt with, and how often something failed."""

import uuid
from collections.abc import Sequence

from ironcart.toolkit.database import Connection

ERROR_CHARACTERS_MAX = 1_000


async def admit(
    connection: Connection, stream: str, arrivals: Sequence[tuple[uuid.UUID, int]]
) -> set[uuid.UUID]:
    """Note `(event id, stream sequence)` pairs; returns the ids that were not there before.

    Another replica's open transaction with the same id is waited for. Ids are taken in order, so
    that overlapping batches cannot deadlock.
    """
    arrivals = sorted(arrivals)
    rows = await connection.fetch(
        "INSERT INTO inbox (event_id, stream, stream_seq)"
        " SELECT id, $1, seq FROM unnest($2::uuid[], $3::bigint[]) AS u(id, seq)"
        " ON CONFLICT DO NOTHING RETURNING event_id",
        stream,
        [key for key, _ in arrivals],
        [seq for _, seq in arrivals],
    )
    return {row["event_id"] for row in rows}


async def withdraw(connection: Connection, keys: Sequence[uuid.UUID]) -> None:
    """Take back ids whose messages were not dealt with after all."""
    await connection.execute("DELETE FROM inbox WHERE event_id = ANY($1::uuid[])", keys)


async def count_failure(connection: Connection, stream: str, stream_seq: int, error: str) -> int:
    """Count one more failed attempt at a message; returns how many there have been."""
    attempts: int = await connection.fetchval(
        "INSERT INTO failures AS f (stream, stream_seq, attempts, error) VALUES ($1, $2, 1, $3)"
        " ON CONFLICT (stream, stream_seq) DO UPDATE"
        " SET attempts = f.attempts + 1, error = $3, last_failed_at = now() RETURNING attempts",
        stream,
        stream_seq,
        error.replace("\x00", "")[:ERROR_CHARACTERS_MAX],
    )
    return attempts
