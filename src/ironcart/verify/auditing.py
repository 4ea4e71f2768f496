"""The audit trail, judged by an outsider: recomputed from its bytes, and held against what was
signed. It takes nothing from the service but its tables and its exported checkpoints.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg

from ironcart.verify.checkpoints import (
    BadCheckpoint,
    Checkpoint,
    Lines,
    Succession,
    files_of,
    read_keys,
)
from ironcart.verify.facts import CannotReadError
from ironcart.verify.objects import Store
from ironcart.verify.tables import faults_of
from ironcart.verify.walk import Connection, Walk

CONNECT_TIMEOUT_S = 10.0
COMMAND_TIMEOUT_S = 3_600.0
# What is chained is signed, and what is signed is exported, much sooner than that.
LATE_S = 300
COPIES_AT_ONCE = 1_000
# Whoever rules the database may have put his own functions and operators before Postgres's.
SETTINGS = {"search_path": "pg_catalog"}
# Statements are few and long, and each is to begin at once.
PLANS = {"enable_seqscan": "off", "enable_bitmapscan": "off", "enable_sort": "off", "jit": "off"}
STREAMS = """
WITH RECURSIVE e(stream) AS (
  SELECT min(stream) FROM audit.{0} UNION ALL
  SELECT (SELECT min(stream) FROM audit.{0} WHERE stream > e.stream) FROM e
  WHERE stream IS NOT NULL)
SELECT stream FROM e WHERE stream IS NOT NULL"""
COPIES = "SELECT line FROM audit.checkpoints WHERE number > $1 ORDER BY number"
COPY = "SELECT line FROM audit.checkpoints WHERE number = $1"


def _clock() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is judged, and by what: `checkpoints` is a folder, a file or a URL; `expect` is the
    number and the digest of a checkpoint that somebody remembers."""

    database_url: str
    checkpoints: str
    public_keys: Sequence[Path]
    first: int = 1
    headers: Mapping[str, str] = field(default_factory=dict)
    expect: tuple[int, str] | None = None
    now: Callable[[], datetime] = _clock


@dataclass(slots=True)
class Report:
    """What was found: `faults` are proof that something was changed, the first one first;
    `unjudged` says what cannot be known."""

    checkpoints: dict[str, Any] = field(default_factory=dict)
    streams: list[dict[str, Any]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    unjudged: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether everything holds, as far as it can be judged."""
        return not self.faults and not self.unjudged

    def as_json(self) -> dict[str, Any]:
        """Return the report for a machine to read."""
        return {
            "ok": self.ok,
            "checkpoints": self.checkpoints,
            "streams": self.streams,
            "faults": self.faults,
            "unjudged": self.unjudged,
        }

    def lines(self) -> list[str]:
        """Return the report for a person to read."""
        found = self.checkpoints
        last = f"the newest {found['last']} of {found['at']}" if found["last"] else "none"
        told = [f"checkpoints from {found['first']} on: {last}"]
        if found["last"] and self.ok:
            told.append(f"remember it: --expect {found['last']}:{found['hash']}")
        told += [
            f"{each['stream']}: {each['entries']:,} entries to {each['seq']}, signed to"
            f" {each['signed']}"
            for each in self.streams
        ]
        told += [f"CHANGED {fault}" for fault in self.faults]
        told += [f"NOT JUDGED {each}" for each in self.unjudged]
        return [*told, "everything holds" if self.ok else "it does not all hold"]


async def judge(request: Request) -> Report:
    """Judge the whole trail; raises `CannotReadError` when it cannot be read."""
    keys = read_keys(request.public_keys)
    async with _database(request.database_url) as connection:
        # First the export, then the tables: what was exported is in the tables for longer.
        lines = await _lines(request, connection)
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            for name, value in PLANS.items():
                await connection.execute("SELECT set_config($1, $2, true)", name, value)
            return await _Judge(connection, Succession(keys, request.first), request).judge(lines)


class _Judge:
    def __init__(self, connection: Connection, succession: Succession, request: Request) -> None:
        self._connection, self._succession = connection, succession
        # Ours: what the database says of the time is not under any hash.
        self._now, self._expect = request.now(), request.expect
        self._walks: dict[str, Walk] = {}
        self._report = Report()

    async def judge(self, lines: AsyncIterator[tuple[bytes, str]]) -> Report:
        report, succession = self._report, self._succession
        report.faults += await faults_of(self._connection)
        whole = await self._take_all(lines)
        exported = succession.last.number if succession.last else 0
        if whole and not exported and succession.first > 1:
            report.faults.append(f"checkpoint {succession.first} is not there")
            whole = False
        if whole:
            whole = await self._take_copies(exported)
        if not self._walks:
            await self._begin({})
        for walk in self._walks.values():
            await walk.finish()
            self._tell(walk)
        last = succession.last
        if whole:
            self._weigh(last)
        report.checkpoints = {
            "first": succession.first,
            "last": last.number if last else 0,
            "exported": exported,
            "at": last.at if last else None,
            "hash": last.digest if last else None,
        }
        return report

    async def _take_all(self, lines: AsyncIterator[tuple[bytes, str]]) -> bool:
        """Hold the chains against each checkpoint; False when one of them is bad."""
        try:
            async for line, where in lines:
                await self._take(line, where)
        except BadCheckpoint as error:
            self._report.faults.append(str(error))
            return False
        return True

    async def _take(self, line: bytes, where: str) -> Checkpoint:
        checkpoint = self._succession.take(line, where)
        number, digest = self._expect or (0, "")
        if checkpoint.number == number and checkpoint.digest != digest:
            self._report.faults.append(
                f"checkpoint {number} is not the one that was expected: it was signed again"
                f" ({where})"
            )
        if not self._walks:
            trusted = checkpoint.heads if self._succession.first > 1 else {}
            await self._begin(trusted)
            for stream in trusted:
                await self._walks[stream].look_at_head(checkpoint.number)
        for stream, (seq, hash_) in checkpoint.heads.items():
            if stream not in self._walks:
                self._walks[stream] = Walk(self._connection, stream, 0, b"")
            walk = self._walks[stream]
            if not walk.bad and seq > walk.signed:
                await walk.reach(seq, hash_, checkpoint.number)
                self._note(walk)
        return checkpoint

    async def _begin(self, heads: Mapping[str, tuple[int, bytes]]) -> None:
        """Begin each stream where it is trusted: at its beginning, or as a checkpoint has it."""
        found = {
            row["stream"]
            for table in ("entries", "links")
            for row in await self._connection.fetch(STREAMS.format(table))
        }
        for stream in sorted(found | heads.keys()):
            after, digest = heads.get(stream, (0, b""))
            self._walks[stream] = Walk(self._connection, stream, after, digest)
            await self._walks[stream].look_below()

    async def _take_copies(self, exported: int) -> bool:
        """What was signed and has not been exported is in the database; its signatures count.
        False when one of them is bad."""
        last = self._succession.last
        kept = await self._connection.fetchval(COPY, exported)
        if last is not None and kept is not None:
            try:
                again = Succession(self._succession.keys, exported)
                if again.take(kept.encode(), "in the database").text != last.text:
                    raise BadCheckpoint(f"checkpoint {exported} is another one in the database")
            except BadCheckpoint as error:
                self._report.faults.append(str(error))
                return False
        rows = self._connection.cursor(COPIES, exported, prefetch=COPIES_AT_ONCE)
        waits_since = None
        try:
            async for row in rows:
                checkpoint = await self._take((row["line"] or "").encode(), "in the database")
                waits_since = waits_since or datetime.fromisoformat(checkpoint.at)
        except BadCheckpoint as error:
            self._report.faults.append(str(error))
            return False
        if waits_since is not None and self._is_long_ago(waits_since):
            self._report.unjudged.append(
                f"exported checkpoints end at {exported}, and the database has more since"
                f" {waits_since.isoformat()}: exporting fails, or the end of the export was removed"
            )
        return True

    def _is_long_ago(self, at: datetime) -> bool:
        return self._now - at > timedelta(seconds=LATE_S)

    def _note(self, walk: Walk) -> None:
        if walk.bad:
            self._report.faults.append(f"{walk.stream} {walk.bad_seq}: {walk.bad}")

    def _tell(self, walk: Walk) -> None:
        told = f"{walk.stream} {walk.bad_seq}: {walk.bad}"
        if walk.bad and told not in self._report.faults:
            self._report.faults.append(told)
        self._report.streams.append(
            {
                "stream": walk.stream,
                "entries": walk.walked,
                "seq": walk.seq,
                "signed": walk.signed,
                "first_bad": walk.bad_seq if walk.bad else None,
            }
        )

    def _weigh(self, last: Checkpoint | None) -> None:
        """Say what the newest checkpoint does not vouch for."""
        unjudged = self._report.unjudged
        if last is None:
            unjudged.append("there is no checkpoint: nothing is signed, or all were removed")
            return
        if self._expect is not None and last.number < self._expect[0]:
            self._report.faults.append(
                f"checkpoint {self._expect[0]}, which was expected, is not there: they end at"
                f" {last.number}"
            )
        stale = self._is_long_ago(datetime.fromisoformat(last.at))
        for walk in self._walks.values():
            if walk.bad:
                continue
            if walk.stream not in last.heads:
                unjudged.append(
                    f"{walk.stream}: under no checkpoint: it began after number {last.number}, or"
                    " somebody added it"
                )
                continue
            if stale and walk.seq > walk.signed:
                unjudged.append(
                    f"{walk.stream} {walk.signed + 1} and later: chained, and under no checkpoint"
                    f" since {last.at}: they came just now, nothing is signed, or the newest"
                    " checkpoints were removed"
                )
            if walk.beyond:
                unjudged.append(
                    f"{walk.stream} {walk.beyond} and later: not chained, since {walk.seq + 1} has"
                    " not come yet, or somebody added them"
                )


async def _lines(request: Request, connection: Connection) -> AsyncIterator[tuple[bytes, str]]:
    """Fix how far the export goes now."""
    where, first = request.checkpoints, request.first
    if not where.startswith(("http://", "https://")):
        return aiter(Lines(files_of(Path(where)), first))
    known = await connection.fetchval("SELECT max(number) FROM audit.checkpoints")
    known = max(known or 0, request.expect[0] if request.expect else 0)
    store = Store(where, request.headers)
    return store.lines(first, await store.last(first, known))


@asynccontextmanager
async def _database(url: str) -> AsyncIterator[Connection]:
    shown = url.rpartition("@")[2]
    try:
        connection = await asyncpg.connect(
            url,
            timeout=CONNECT_TIMEOUT_S,
            command_timeout=COMMAND_TIMEOUT_S,
            server_settings=SETTINGS,
        )
    except (OSError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise CannotReadError(f"the database at {shown}: {error}") from None
    try:
        yield connection
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError) as error:
        raise CannotReadError(f"the database at {shown}: {error}") from error
    finally:
        await connection.close()
