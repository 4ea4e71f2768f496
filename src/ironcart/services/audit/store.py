"""What audit keeps: one method is one statement, for a whole batch; only INSERT and SELECT."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from msgspec import Struct

from ironcart.toolkit.database import Connection, Database

# In the order of COPY, to which a row costs two thirds of what it costs to INSERT.
_ENTRY = (
    *("stream", "stream_seq", "subject", "event_id", "type", "aggregate_id", "headers", "body"),
    "stored_at",
)
_LINK = ("stream", "stream_seq", "hash", "version")
# How links are made now.
LINK_VERSION = 2
_EPOCH = datetime.fromtimestamp(0, UTC)


class Entry(Struct, frozen=True):
    """One message of a stream, as it was, and what could be read from it ("" where not)."""

    stream: str
    stream_seq: int
    subject: str
    event_id: str
    type: str
    aggregate_id: str
    headers: str
    body: bytes
    stored_at_us: int


class Sealed(Struct, frozen=True):
    """What of an entry goes into its hash; `digest` is of all of it (in version 1, of its body)."""

    stream_seq: int
    subject: str
    event_id: str
    digest: bytes


@dataclass(frozen=True, slots=True)
class Kept:
    """A place in a stream as it is stored: its entry or its link may have been taken away."""

    stream_seq: int
    entry: Sealed | None
    hash: bytes | None
    version: int


@dataclass(frozen=True, slots=True)
class Head:
    """How far a chain has come (sequence 0: nowhere), and how far its entries reach."""

    stream_seq: int
    hash: bytes | None
    last_entry_seq: int


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a stream's chain is behind, and for how long."""

    stream: str
    head_seq: int
    last_entry_seq: int
    waiting_s: float


@dataclass(frozen=True, slots=True)
class Found:
    """One entry about an aggregate; `position` orders entries by when the broker stored them."""

    stream: str
    stream_seq: int
    type: str
    body: bytes
    hash: bytes | None
    stored_at_us: int


@dataclass(frozen=True, slots=True)
class Last:
    """The last link of a chain."""

    stream: str
    stream_seq: int
    hash: bytes
    at: datetime


@dataclass(frozen=True, slots=True)
class Standing:
    """The end of each chain that has one, by stream; the newest checkpoint; and since when the
    database server runs, for another one may be an older copy."""

    heads: list[Last]
    line: str | None
    started_at: datetime


class Store:
    """Speaks through one open transaction, or through the pool for single reads."""

    def __init__(self, connection: Connection | Database) -> None:
        self._connection = connection

    async def insert(self, entries: Sequence[Entry]) -> None:
        """Keep entries that are not there yet, as who has locked the chain can know."""
        rows = [
            (
                entry.stream,
                entry.stream_seq,
                entry.subject,
                entry.event_id,
                entry.type,
                entry.aggregate_id,
                entry.headers,
                entry.body,
                _EPOCH + timedelta(microseconds=entry.stored_at_us),
            )
            for entry in entries
        ]
        await self._copy("entries", _ENTRY, rows)

    async def insert_lost(self, stream: str, before_seq: int) -> int:
        """Fill every place before a sequence that has no entry; returns how many there were."""
        rows = await self._connection.fetch(_INSERT_LOST, stream, before_seq)
        return len(rows)

    async def sealed(self, stream: str, seqs: Sequence[int]) -> list[Sealed]:
        """Read what is stored at these sequences."""
        rows = await self._connection.fetch(
            f"SELECT stream_seq, subject, event_id, {_DIGEST} AS digest FROM entries"  # noqa: S608 - constants
            " WHERE stream = $1 AND stream_seq = ANY($2::bigint[])",
            stream,
            seqs,
        )
        return [_sealed(row) for row in rows]

    async def lock_chain(self, stream: str) -> None:
        """Be the only one to extend this stream's chain until the transaction ends."""
        await self._connection.execute(
            "SELECT pg_advisory_xact_lock(hashtext('ironcart.audit'), hashtext($1))", stream
        )

    async def head(self, stream: str) -> Head:
        """Read where a chain ends; a statement of its own, to see what the lock waited for."""
        row = await self._connection.fetchrow(_HEAD, stream)
        assert row is not None
        return Head(row["stream_seq"] or 0, row["hash"], row["last_entry_seq"])

    async def next_entries(self, stream: str, first_seq: int, count_max: int) -> list[Sealed]:
        """Read entries in order from `first_seq` on; nothing when that very one is missing."""
        rows = await self._connection.fetch(_NEXT, stream, first_seq, count_max)
        return [_sealed(row) for row in rows]

    async def insert_links(self, stream: str, links: Sequence[tuple[int, bytes]]) -> None:
        """Lengthen a chain by these sequences and hashes."""
        rows = [(stream, seq, hash_, LINK_VERSION) for seq, hash_ in links]
        await self._copy("links", _LINK, rows)

    async def _copy(
        self, table: str, columns: Sequence[str], rows: Sequence[tuple[Any, ...]]
    ) -> None:
        # The lock that makes sure of them is a transaction's.
        assert not isinstance(self._connection, Database)
        await self._connection.copy_records_to_table(table, columns=columns, records=rows)

    async def progress(self, streams: Sequence[str]) -> list[Progress]:
        """Say of each stream how far its chain is behind its entries."""
        rows = await self._connection.fetch(_PROGRESS, streams)
        return [
            Progress(row["stream"], row["head_seq"], row["last_entry_seq"], row["waiting_s"])
            for row in rows
        ]

    async def count(self, stream: str) -> int:
        """Count the entries of a stream."""
        row = await self._connection.fetchrow(
            "SELECT count(*) AS n FROM entries WHERE stream = $1", stream
        )
        assert row is not None
        return int(row["n"])

    async def link(self, stream: str, seq: int) -> bytes | None:
        """Read one link."""
        row = await self._connection.fetchrow(
            "SELECT hash FROM links WHERE stream = $1 AND stream_seq = $2", stream, seq
        )
        return row["hash"] if row is not None else None

    async def kept(self, stream: str, first_seq: int, last_seq: int, count_max: int) -> list[Kept]:
        """Read up to `count_max` places of a stream in order, with entry and link side by side."""
        rows = await self._connection.fetch(_KEPT, stream, first_seq, last_seq, count_max)
        return [
            Kept(
                row["at"],
                _sealed(row) if row["stream_seq"] else None,
                row["hash"],
                row["version"] or 0,
            )
            for row in rows
        ]

    async def about(
        self, aggregate_id: str, after: tuple[int, str, int], count_max: int
    ) -> list[Found]:
        """Read entries about an aggregate, oldest first, after `(stored_at_us, stream, seq)`."""
        rows = await self._connection.fetch(_ABOUT, aggregate_id, *after, count_max)
        return [
            Found(
                row["stream"],
                row["stream_seq"],
                row["type"],
                row["body"],
                row["hash"],
                row["stored_at_us"],
            )
            for row in rows
        ]

    async def links_at(self, places: Sequence[tuple[str, int]]) -> dict[str, bytes]:
        """Read the links at these places, one for each stream, as far as they are there."""
        streams, seqs = [stream for stream, _ in places], [seq for _, seq in places]
        rows = await self._connection.fetch(_LINKS_AT, streams, seqs)
        return {row["stream"]: row["hash"] for row in rows}

    async def lock_checkpoints(self) -> None:
        """Be the only one to sign until the transaction ends."""
        await self._connection.execute(
            "SELECT pg_advisory_xact_lock(hashtext('ironcart.audit.checkpoints'), 0)"
        )

    async def standing(self, streams: Sequence[str]) -> Standing:
        """Read where the chains stand, what was signed last, and since when the database runs."""
        rows = await self._connection.fetch(_STANDING, streams)
        heads = [
            Last(row["stream"], row["stream_seq"], row["hash"], row["linked_at"])
            for row in rows
            if row["hash"] is not None
        ]
        return Standing(heads, rows[0]["line"], rows[0]["started_at"])

    async def last_line(self) -> str | None:
        """Read the newest checkpoint."""
        row = await self._connection.fetchrow(
            "SELECT line FROM checkpoints ORDER BY number DESC LIMIT 1"
        )
        return row["line"] if row is not None else None

    async def checkpoints_before(self, number: int, count_max: int) -> list[str]:
        """Read checkpoints below a number, newest first."""
        rows = await self._connection.fetch(
            "SELECT line FROM checkpoints WHERE number < $1 ORDER BY number DESC LIMIT $2",
            number,
            count_max,
        )
        return [row["line"] for row in rows]

    async def checkpoints_after(self, number: int, count_max: int) -> list[str]:
        """Read checkpoints above a number, oldest first."""
        rows = await self._connection.fetch(
            "SELECT line FROM checkpoints WHERE number > $1 ORDER BY number LIMIT $2",
            number,
            count_max,
        )
        return [row["line"] for row in rows]

    async def has_signed(self, key_id: str) -> bool:
        """Whether a key has signed any checkpoint."""
        row = await self._connection.fetchrow(
            "SELECT 1 FROM checkpoints WHERE key_id = $1 LIMIT 1", key_id
        )
        return row is not None

    async def insert_checkpoint(self, number: int, key_id: str, line: str) -> bool:
        """Keep a checkpoint; False when there is one of this number."""
        row = await self._connection.fetchrow(
            "INSERT INTO checkpoints (number, key_id, line) VALUES ($1, $2, $3)"
            " ON CONFLICT DO NOTHING RETURNING number",
            number,
            key_id,
            line,
        )
        return row is not None


def _sealed(row: Any) -> Sealed:
    return Sealed(row["stream_seq"], row["subject"], row["event_id"], row["digest"])


_MICROSECONDS = "(extract(epoch FROM stored_at) * 1000000)::bigint"
# Of everything that was stored of a message, as handlers.chain.digest_of makes it.
_DIGEST = rf"""sha256(
  convert_to(subject, 'UTF8') || '\x00'::bytea || convert_to(event_id, 'UTF8') || '\x00'::bytea ||
  convert_to(type, 'UTF8') || '\x00'::bytea || convert_to(aggregate_id, 'UTF8') || '\x00'::bytea ||
  convert_to(headers, 'UTF8') || '\x00'::bytea || convert_to({_MICROSECONDS}::text, 'UTF8') ||
  '\x00'::bytea || body)"""
# Told again after a restore, a loss has to have the same hash: nothing in it is of that day.
_INSERT_LOST = """
INSERT INTO entries (stream, stream_seq, subject, event_id, type, aggregate_id, headers, body,
                     stored_at)
SELECT $1, seq, '', '', 'lost', '', '{}', '', 'epoch'
FROM (SELECT stream_seq, lag(stream_seq, 1, 0) OVER (ORDER BY stream_seq) AS before FROM (
        SELECT stream_seq FROM entries WHERE stream = $1 AND stream_seq < $2
        UNION ALL SELECT $2) AS kept) AS places,
     generate_series(before + 1, stream_seq - 1) AS seq
ON CONFLICT DO NOTHING RETURNING stream_seq
"""
_HEAD = """
SELECT l.stream_seq, l.hash,
       coalesce((SELECT max(stream_seq) FROM entries WHERE stream = $1), 0) AS last_entry_seq
FROM (SELECT 1) AS always
LEFT JOIN (SELECT stream_seq, hash FROM links WHERE stream = $1
           ORDER BY stream_seq DESC LIMIT 1) AS l ON true
"""
_NEXT = f"""
SELECT stream_seq, subject, event_id, {_DIGEST} AS digest FROM entries
WHERE stream = $1 AND stream_seq >= $2
  AND EXISTS (SELECT 1 FROM entries WHERE stream = $1 AND stream_seq = $2)
ORDER BY stream_seq LIMIT $3
"""  # noqa: S608 - ours
_PROGRESS = """
SELECT s.stream, h.seq AS head_seq, e.seq AS last_entry_seq,
       coalesce(extract(epoch FROM now() - w.received_at), 0)::float8 AS waiting_s
FROM unnest($1::text[]) AS s(stream)
CROSS JOIN LATERAL (
  SELECT coalesce(max(stream_seq), 0) AS seq FROM links WHERE stream = s.stream) AS h
CROSS JOIN LATERAL (
  SELECT coalesce(max(stream_seq), 0) AS seq FROM entries WHERE stream = s.stream) AS e
LEFT JOIN LATERAL (
  SELECT received_at FROM entries WHERE stream = s.stream AND stream_seq > h.seq
  ORDER BY stream_seq LIMIT 1) AS w ON true
ORDER BY s.stream
"""
_KEPT = f"""
SELECT coalesce(e.stream_seq, l.stream_seq) AS at, e.stream_seq, e.subject, e.event_id,
       CASE l.version WHEN 1 THEN e.body_digest ELSE e.digest END AS digest, l.hash, l.version
FROM (SELECT stream_seq, subject, event_id, sha256(body) AS body_digest, {_DIGEST} AS digest
      FROM entries
      WHERE stream = $1 AND stream_seq BETWEEN $2 AND $3 ORDER BY stream_seq LIMIT $4) AS e
FULL JOIN (SELECT stream_seq, hash, version FROM links
           WHERE stream = $1 AND stream_seq BETWEEN $2 AND $3 ORDER BY stream_seq LIMIT $4) AS l
  ON e.stream_seq = l.stream_seq
ORDER BY at LIMIT $4
"""  # noqa: S608 - ours
_ABOUT = """
SELECT e.stream, e.stream_seq, e.type, e.body, l.hash,
       (extract(epoch FROM e.stored_at) * 1000000)::bigint AS stored_at_us
FROM entries e LEFT JOIN links l ON l.stream = e.stream AND l.stream_seq = e.stream_seq
WHERE e.aggregate_id = $1 AND e.aggregate_id <> ''
  AND (e.stored_at, e.stream, e.stream_seq)
      > ('epoch'::timestamptz + $2::bigint * interval '1 microsecond', $3::text, $4::bigint)
ORDER BY e.stored_at, e.stream, e.stream_seq LIMIT $5
"""
_STANDING = """
SELECT s.stream, l.stream_seq, l.hash, l.linked_at, pg_postmaster_start_time() AS started_at,
       (SELECT line FROM checkpoints ORDER BY number DESC LIMIT 1) AS line
FROM unnest($1::text[]) AS s(stream)
LEFT JOIN LATERAL (
  SELECT stream_seq, hash, linked_at FROM links WHERE stream = s.stream
  ORDER BY stream_seq DESC LIMIT 1) AS l ON true
ORDER BY s.stream
"""
_LINKS_AT = """
SELECT l.stream, l.hash FROM unnest($1::text[], $2::bigint[]) AS p(stream, stream_seq)
JOIN links l USING (stream, stream_seq)
"""
