"""Rows of jobs: who may work on which until when, one statement each."""

import uuid
from collections.abc import Sequence

from ironcart.toolkit.database import Connection

ADD_LEASED = """
INSERT INTO jobs (key, due_at, lease)
SELECT key, now() + make_interval(secs => $2), $3 FROM unnest($1::text[]) AS key ORDER BY key
ON CONFLICT DO NOTHING RETURNING key
"""
ADD_DUE = """
INSERT INTO jobs (key, due_at) SELECT key, now() FROM unnest($1::text[]) AS key ORDER BY key
ON CONFLICT DO NOTHING
"""
HASTEN = """
INSERT INTO jobs AS j (key, due_at) SELECT key, now() FROM unnest($1::text[]) AS key ORDER BY key
ON CONFLICT (key) DO UPDATE SET due_at = now() WHERE j.lease IS NULL RETURNING key
"""
# Fewest attempts first: jobs that fail again and again must not win every probe of a breaker.
LEASE = """
UPDATE jobs SET lease = $3, due_at = now() + make_interval(secs => $2) WHERE key IN (
  SELECT key FROM jobs WHERE due_at <= now() ORDER BY attempts, due_at LIMIT $1
  FOR UPDATE SKIP LOCKED)
RETURNING key, attempts
"""
LOCK = "SELECT key, lease FROM jobs WHERE key = ANY($1::text[]) ORDER BY key FOR UPDATE"
RENEW = """
UPDATE jobs SET due_at = now() + make_interval(secs => $2), attempts = 0, error = NULL
WHERE key = ANY($1::text[])
"""
GIVE_BACK = """
UPDATE jobs SET lease = NULL, due_at = now(), attempts = 0, error = NULL
WHERE key = ANY($1::text[])
"""
POSTPONE = """
UPDATE jobs j SET lease = NULL, due_at = now() + make_interval(secs => p.delay_s),
                  error = p.error, attempts = j.attempts + p.counts
FROM unnest($1::text[], $2::uuid[], $3::text[], $4::float8[], $5::int[])
  AS p(key, lease, error, delay_s, counts)
WHERE j.key = p.key AND j.lease = p.lease
"""
MEASURE = """
SELECT count(*) AS open, count(*) FILTER (WHERE due_at <= now()) AS due,
       coalesce(extract(epoch FROM now() - min(created_at)), 0)::float8 AS oldest_s FROM jobs
"""


async def lock(connection: Connection, keys: Sequence[str]) -> dict[str, uuid.UUID | None]:
    """Lock jobs, in order; returns whose each one is."""
    return {row["key"]: row["lease"] for row in await connection.fetch(LOCK, keys)}
