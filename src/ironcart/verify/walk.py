"""One stream's entries and links, walked from a known hash on; it stops at the first bad place."""

from collections.abc import Sequence
from typing import Any

from ironcart.verify.chain import VERSION_OF_BODIES, VERSIONS, Entry, genesis, is_named_right, link

# Of each table at a time: a body may have a megabyte.
ROWS_AT_ONCE = 256

ENTRIES = """
SELECT stream_seq, subject, event_id, body, type, aggregate_id, headers,
       CASE WHEN isfinite(stored_at)
            THEN (extract(epoch FROM stored_at) * 1000000)::bigint END AS stored_at_us
FROM audit.entries WHERE stream = $1 AND stream_seq > $2 ORDER BY stream_seq"""
LINKS = """
SELECT stream_seq, hash, version FROM audit.links
WHERE stream = $1 AND stream_seq > $2 ORDER BY stream_seq"""
# A walk begins at place 1, and would not come by.
BELOW = """
SELECT min(seq) FROM (
  SELECT min(stream_seq) AS seq FROM audit.entries WHERE stream = $1 AND stream_seq < 1
  UNION ALL SELECT min(stream_seq) FROM audit.links WHERE stream = $1 AND stream_seq < 1
  UNION ALL SELECT 0 WHERE EXISTS (
    SELECT FROM audit.entries WHERE stream = $1 AND stream_seq IS NULL)
  UNION ALL SELECT 0 WHERE EXISTS (
    SELECT FROM audit.links WHERE stream = $1 AND stream_seq IS NULL)) AS found"""

# A walk that begins later comes after what it trusts, which is to be there all the same.
HEAD = """
SELECT EXISTS (SELECT FROM audit.entries WHERE stream = $1 AND stream_seq = $2) AS kept,
       EXISTS (SELECT FROM audit.links WHERE stream = $1 AND stream_seq = $2 AND hash = $3)
       AS linked
"""

Connection = Any


class Rows:
    """Rows of a query one after the other, by a cursor of the open transaction."""

    def __init__(self, connection: Connection, query: str, stream: str, after: int) -> None:
        self._connection, self._query, self._arguments = connection, query, (stream, after)
        self._cursor: Any = None
        self._rows: Sequence[Any] = ()
        self._at = 0

    async def peek(self) -> Any:
        """The next row; None after the last."""
        if self._at == len(self._rows):
            if self._cursor is None:
                self._cursor = await self._connection.cursor(self._query, *self._arguments)
            self._rows, self._at = await self._cursor.fetch(ROWS_AT_ONCE), 0
        return self._rows[self._at] if self._rows else None

    def step(self) -> None:
        """Go past the row that was looked at."""
        self._at += 1


class Walk:
    """How far a stream has been found good: `seq` and its hash; `signed` is covered as well.

    `bad` says what is wrong at `bad_seq`, the first place that does not add up. After `finish`,
    `beyond` is where entries go on without links, or 0.
    """

    def __init__(self, connection: Connection, stream: str, after: int, digest: bytes) -> None:
        self.stream, self.seq, self.signed = stream, after, after
        self.digest = digest or genesis(stream)
        self.walked = 0
        self.bad, self.bad_seq = "", 0
        self.beyond = 0
        self._connection = connection
        self._entries = Rows(connection, ENTRIES, stream, after)
        self._links = Rows(connection, LINKS, stream, after)

    async def look_below(self) -> None:
        """See that nothing is before the first place."""
        found = await self._connection.fetchval(BELOW, self.stream)
        if found is not None:
            self._find(found, "no entry or link can be there")

    async def look_at_head(self, checkpoint: int) -> None:
        """See that the place which a checkpoint vouches for, and where this begins, is there."""
        if self.bad:
            return
        found = await self._connection.fetchrow(HEAD, self.stream, self.seq, self.digest)
        if not found["kept"]:
            self._find(self.seq, f"its entry is gone, and checkpoint {checkpoint} has it")
        elif not found["linked"]:
            self._find(self.seq, f"its link is not the one that checkpoint {checkpoint} has")

    async def reach(self, target: int, hash_: bytes, checkpoint: int) -> None:
        """Go on to where a checkpoint says that the chain has this hash."""
        await self._go(target)
        if self.bad or target <= self.signed:
            return
        if self.seq < target:
            self._end_early(target, checkpoint, await self._entries.peek())
        elif self.seq == target and self.digest != hash_:
            self.bad_seq = self.signed + 1
            places = f"places {self.bad_seq} to {target}" if target > self.bad_seq else "it"
            self.bad = (
                f"the chain adds up, but checkpoint {checkpoint} signed another one:"
                f" {places} had other entries"
            )
        else:
            self.signed = target

    async def finish(self) -> None:
        """Go on to the end, where no checkpoint has been yet."""
        await self._go(None)
        if not self.bad and (row := await self._entries.peek()) is not None:
            self.beyond = row["stream_seq"]

    async def _go(self, target: int | None) -> None:
        entries, links = self._entries, self._links
        while not self.bad and (target is None or self.seq < target):
            expected = self.seq + 1
            found, chained = await entries.peek(), await links.peek()
            for row, what in ((found, "entries"), (chained, "links")):
                if row is not None and row["stream_seq"] < expected:
                    self._find(row["stream_seq"], f"there are two {what}")
                    return
            if chained is None:
                return
            if found is None or found["stream_seq"] > expected:
                both = chained["stream_seq"] > expected
                self._stop("its entry and its link are gone" if both else "its entry is gone")
            elif chained["stream_seq"] > expected:
                self._stop("its link is gone")
            else:
                self._add(found, chained)
                entries.step()
                links.step()

    def _add(self, found: Any, chained: Any) -> None:
        if None in found.values():
            self._stop("its entry has lost a value")
            return
        if chained["version"] not in VERSIONS:
            self._stop(f"its link says version {chained['version']}, and there is none")
            return
        entry = Entry(
            self.stream,
            found["stream_seq"],
            found["subject"],
            found["event_id"],
            found["body"],
            chained["hash"],
            chained["version"],
            found["type"],
            found["aggregate_id"],
            found["headers"],
            found["stored_at_us"],
        )
        digest = link(self.digest, entry)
        if digest != entry.hash:
            self._stop("its entry or its link is not what it was")
            return
        if entry.version == VERSION_OF_BODIES and not is_named_right(entry):
            self._stop("its type or its aggregate is not what its body says")
            return
        self.seq, self.digest = entry.seq, digest
        self.walked += 1

    def _end_early(self, target: int, checkpoint: int, following: Any) -> None:
        what = "links are" if following is not None else "entries and links are"
        self._stop(
            f"the chain ends before it, and checkpoint {checkpoint} has it to {target}: {what} gone"
        )

    def _stop(self, why: str) -> None:
        self._find(self.seq + 1, why)

    def _find(self, seq: int, why: str) -> None:
        self.bad, self.bad_seq = why, seq
