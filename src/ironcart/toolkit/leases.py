"""Rows of jobs: who may work on which until when, one statement each, and who is alive to do so.

A lease's token names its holder, and a holder shows that it lives by a lock that ends with a
session of its own. So what a dead process held is due at once; a lease's time is for a holder that
hangs, or that is cut off.
"""

import asyncio
import time
import uuid
from collections.abc import Callable, Sequence

import structlog

from ironcart.toolkit.database import Connection, Database
from ironcart.toolkit.outcomes import Unavailable

# Any number does, as long as it is ours alone; those of recovery and provision are others.
HOLDERS_SPACE = 0x1204CA29
LOOK_EVERY_S = 0.5
# A holder that has lost its session opens another one sooner than this.
GONE_AFTER_S = 1.0
# Whoever has lost its own was not alone in that: others may still be about to come back.
GONE_AFTER_AN_OUTAGE_S = 10.0
# Looking takes at most a twentieth of the time, however many jobs there are.
REST_FOR_EACH_LOOK = 19.0

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
JOIN (SELECT key, lease FROM jobs WHERE key = ANY($1::text[]) ORDER BY key FOR UPDATE) AS held
  USING (key, lease)
WHERE j.key = held.key
"""
MEASURE = """
SELECT count(*) AS open, count(*) FILTER (WHERE due_at <= now()) AS due,
       coalesce(extract(epoch FROM now() - min(created_at)), 0)::float8 AS oldest_s FROM jobs
"""
# A token of version 8 begins with its holder; others name nobody, and end by time alone.
# Many jobs share a token: only what is left of them is taken apart.
HOLDERS = """
WITH held AS MATERIALIZED (SELECT DISTINCT lease FROM jobs WHERE due_at > now())
SELECT DISTINCT left(lease::text, 8) AS holder FROM held WHERE substr(lease::text, 15, 1) = '8'
"""
# Shared: a session that the server has not yet missed must not keep its process from another one.
# And looking is to walk an index, which forgets as it goes what jobs that have ended leave there; a
# bitmap would fetch all of that each time.
LIVE = """
SELECT pg_try_advisory_lock_shared($1::int, $2::int), set_config('enable_bitmapscan', 'off', false)
"""
LIVING = """
SELECT lpad(to_hex(objid::bigint), 8, '0') AS holder FROM pg_locks
WHERE locktype = 'advisory' AND classid = $1::oid AND objsubid = 2 AND granted
  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
# The token stays: until somebody else has leased it, a holder that lives after all may settle.
DUE_AT_ONCE = """
UPDATE jobs SET due_at = now() WHERE key IN (
  SELECT key FROM jobs
  WHERE due_at > now() AND substr(lease::text, 15, 1) = '8' AND left(lease::text, 8) = ANY($1)
  ORDER BY key FOR UPDATE SKIP LOCKED)
RETURNING key
"""


class Holder:
    """Whoever works on the leases that it makes: shows that it lives, and sees who does not.

    Nothing rests on its being right: a lease that ends early is as one that runs out under its
    holder, who then cannot settle.
    """

    def __init__(self, database: Database, on_due: Callable[[], None]) -> None:
        """`on_due` is called when leases of the dead have been made due."""
        self._database, self._on_due = database, on_due
        self._name = uuid.uuid4().bytes[:4]
        self._shown = False

    def lease(self) -> uuid.UUID:
        """Make a token; it names this holder while others can see that it lives."""
        token = uuid.uuid4()
        if not self._shown:
            return token
        raw = token.bytes
        return uuid.UUID(bytes=self._name + raw[4:6] + bytes([0x80 | raw[6] & 0x0F]) + raw[7:])

    async def run(self) -> None:
        """Show that this process lives, and look after the dead, until cancelled."""
        gone_after_s = GONE_AFTER_S
        while True:
            try:
                await self._live(gone_after_s)
            except Unavailable as error:
                structlog.get_logger().debug("Shows no life to others", error=str(error))
            if self._shown:  # Others wait only so long: try at once to be back.
                self._shown, gone_after_s = False, GONE_AFTER_AN_OUTAGE_S
            else:
                await asyncio.sleep(LOOK_EVERY_S)

    async def _live(self, gone_after_s: float) -> None:
        async with self._database.acquire() as session:
            try:
                number = int.from_bytes(self._name, "big", signed=True)
                await session.fetch(LIVE, HOLDERS_SPACE, number)
                self._shown = True
                gone_since: dict[str, float] = {}
                while True:
                    began = time.monotonic()
                    gone_since = await self._look(session, gone_since, began - gone_after_s)
                    took_s = time.monotonic() - began
                    await asyncio.sleep(max(LOOK_EVERY_S, took_s * REST_FOR_EACH_LOOK))
            finally:
                session.terminate()  # In the pool, it would go on showing life.

    async def _look(
        self, session: Connection, gone_since: dict[str, float], gone_before: float
    ) -> dict[str, float]:
        """Make due what is held by those who have been gone long enough; returns since when."""
        # In this order: whoever holds a lease that can be seen was alive before it made that.
        named = {row["holder"] for row in await session.fetch(HOLDERS)}
        if named <= {self._name.hex()}:  # Nobody else's: this session shows that we live.
            return {}
        living = {row["holder"] for row in await session.fetch(LIVING, HOLDERS_SPACE)}
        now = time.monotonic()
        gone = {holder: gone_since.get(holder, now) for holder in named - living}
        dead = [holder for holder, since in gone.items() if since <= gone_before]
        if dead and await session.fetch(DUE_AT_ONCE, dead):
            structlog.get_logger().info("Takes over from who is gone", holders=len(dead))
            self._on_due()
        return gone


async def lock(connection: Connection, keys: Sequence[str]) -> dict[str, uuid.UUID | None]:
    """Lock jobs, in order; returns whose each one is."""
    return {row["key"]: row["lease"] for row in await connection.fetch(LOCK, keys)}
