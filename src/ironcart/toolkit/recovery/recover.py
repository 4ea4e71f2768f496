"""Compares a database with what was told, folds what it lacks, and starts its consumers over."""

import secrets
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager

import asyncpg
import msgspec
import structlog

from ironcart.toolkit import telemetry
from ironcart.toolkit.broker import Broker
from ironcart.toolkit.broker.provisioning import start_over
from ironcart.toolkit.broker.reader import Extent, Stored, extent, read
from ironcart.toolkit.database import Connection, Database
from ironcart.toolkit.envelope import decode, event_id
from ironcart.toolkit.history import Cause, History
from ironcart.toolkit.outcomes import Poison, Unavailable
from ironcart.toolkit.recovery.memory import SEEN_BY_INBOX, Memory, OwnFact, in_order, own_fact
from ironcart.toolkit.topology import Durable

# Enough of the newest commits to hold the one that was published last.
NEWEST_BATCHES_MAX = 2_000
# Facts of others that we adopt may lie before the last one of ours.
LOOK_BACK_MESSAGES = 10_000
# Facts are folded so many at a time: what follows from each other is mostly in one of these.
FOLD_FACTS = 20_000
# A consumer's floor is at most about this far above a message that it reads.
FLOOR_MESSAGES = 500
# Any number does, as long as it is ours alone.
LOCK_SPACE = 0x1204CA28


class Recovery:
    """Compares one service's database with what the broker has of it, and repairs the database."""

    def __init__(
        self,
        history: History,
        broker: Broker,
        database: Database,
        durables: Sequence[Durable],
        memory: Memory | None,
    ) -> None:
        self._history, self._broker, self._database = history, broker, database
        self._durables, self._memory = durables, memory

    async def behind(self) -> bool:
        """Say whether the database lacks what was told or acknowledged; changes nothing.

        Raises `Unavailable` when nobody can tell, and when the broker is the one that lacks it.
        """
        return bool(await self._untold(1)) or await self._forgotten_inputs()

    async def run(self) -> bool:
        """Bring the database to what was told; True when it had to be. Safe to repeat, alone."""
        async with self._alone():
            row = await self._database.fetchrow(_CUT_SHORT)
            if row is None and not await self.behind():
                return False
            log = structlog.get_logger()
            log.error("The database is older than what was published: recovering")
            await self._database.execute(_BEGIN)
            await self._database.execute(_VOID_LEASES)
            folded = await self._fold(again=row is not None)
            until = await self._rewind()
            await self._database.execute(_REWOUND, folded, msgspec.json.encode(until).decode())
            log.warning("Folded what was published since", events=folded)
        return True

    async def finish(self) -> None:
        """Do what a recovery that was cut short has left to be done."""
        if await self._database.fetchrow(_CUT_SHORT) is not None:
            await self.run()

    async def unfinished(self) -> bool:
        """Whether some replica has begun a recovery that is not over."""
        return await self._database.fetchrow(_UNFINISHED) is not None

    async def watch(self) -> bool:
        """Say whether a recovery is still open, ending it once every consumer has caught up."""
        row = await self._database.fetchrow(_UNFINISHED)
        if row is None:
            self._show(False)
            return False
        until = msgspec.json.decode(row["until"] or "{}", type=dict[str, int])
        for durable in self._durables:
            info = await self._broker.api(f"CONSUMER.INFO.{durable.stream}.{durable.name}")
            idle = not info["num_pending"] + info["num_ack_pending"]
            if not idle and info["ack_floor"]["stream_seq"] < until.get(durable.stream, 0):
                self._show(True)
                return True
        await self._database.execute(_END)
        structlog.get_logger().warning("Recovered")
        self._show(False)
        return False

    def _show(self, recovering: bool) -> None:
        self._history.recovering = recovering
        telemetry.recovering.set(recovering)

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        async with self._database.acquire() as connection:
            if not await connection.fetchval(_TRY_LOCK, LOCK_SPACE, self._history.owner):
                raise Unavailable("another replica is comparing the database with the stream")
            try:
                yield
            finally:
                if not connection.is_closed():
                    await connection.execute(_UNLOCK, LOCK_SPACE, self._history.owner)

    async def _published(self, memory: Memory) -> tuple[int, Extent]:
        """The highest own sequence that the database knows, and what the stream holds."""
        row = await self._database.fetchrow(_KNOWN, list(memory.kinds), NEWEST_BATCHES_MAX)
        known = (row and row["seq"]) or 0
        held = await extent(self._broker, memory.stream)
        if held.last_seq < known:
            raise Unavailable(
                f"stream {memory.stream} ends at {held.last_seq}, and we have published up to"
                f" {known}: it was lost or rolled back; run `ironcart republish`"
            )
        return known, held

    async def _untold(self, enough: int) -> list[OwnFact]:
        """Own facts of the stream that the database lacks, up to `enough`."""
        if (memory := self._memory) is None or not memory.kinds:
            return []
        known, held = await self._published(memory)
        found: list[OwnFact] = []
        first = max(known + 1, held.first_seq)
        async for chunk in read(self._broker, memory.stream, first, held.last_seq):
            own = [fact for fact in self._read(memory, chunk) if self._is_own(fact)]
            found += await self._lacking(own)
            if len(found) >= enough:
                break
        return found

    async def _forgotten_inputs(self) -> bool:
        """Whether a message that we have acknowledged is unknown to the database.

        The floor of a consumer may lie on a message that it does not read.
        """
        for durable in self._durables:
            name = f"{durable.stream}.{durable.name}"
            floor = (await self._broker.api(f"CONSUMER.INFO.{name}"))["ack_floor"]["stream_seq"]
            held = await extent(self._broker, durable.stream)
            if not held.first_seq <= floor <= held.last_seq:
                continue
            first = max(held.first_seq, floor - FLOOR_MESSAGES)
            last: Stored | None = None
            async for chunk in read(self._broker, durable.stream, first, floor):
                mine = [each for each in chunk if _reads(durable, each.subject)]
                last = mine[-1] if mine else last
            if last is not None and not await self._saw(durable.stream, last):
                structlog.get_logger().error(
                    "Acknowledged, and unknown to the database",
                    stream=durable.stream,
                    stream_seq=last.seq,
                )
                return True
        return False

    async def _saw(self, stream: str, message: Stored) -> bool:
        seen = SEEN_BY_INBOX if self._memory is None else self._memory.seen
        try:
            envelope = decode(message.body)
        except Poison:
            return True  # It was set aside, or kept as it is: nothing was decided on it.
        key, place = envelope.key, (envelope.aggregate_id, envelope.version or 0)
        if key == event_id(self._history.owner, *place):
            return place in await self._there([place])
        return await self._database.fetchrow(seen, key, stream, message.seq) is not None

    async def _fold(self, *, again: bool) -> int:
        """Fold what is lacking into the tables, in order; returns how many facts that were.

        Of what was begun before nobody knows any more which facts were left waiting, nor where.
        """
        if (memory := self._memory) is None or not memory.kinds:
            return 0
        known, held = await self._published(memory)
        folded = 0
        waiting: list[OwnFact] = []
        first = held.first_seq if again else max(known + 1 - LOOK_BACK_MESSAGES, held.first_seq)
        enough = FOLD_FACTS
        async for chunk in read(self._broker, memory.stream, first, held.last_seq):
            waiting += self._read(memory, chunk)
            if len(waiting) >= enough:
                count, waiting = await self._fold_what_is_whole(memory, waiting)
                folded, enough = folded + count, len(waiting) + FOLD_FACTS
        folded += await self._fold_these(memory, waiting)
        if memory.after_fold is not None:
            trace_id = secrets.token_hex(16)
            cause = Cause(trace_id, telemetry.context({}, trace_id))
            async with self._database.transaction() as connection:
                facts = await memory.after_fold(connection) or ()
                await self._history.record(connection, [(fact, cause) for fact in facts])
        return folded

    async def _fold_what_is_whole(
        self, memory: Memory, facts: list[OwnFact]
    ) -> tuple[int, list[OwnFact]]:
        """Fold what lacks nothing that came before it; returns how many, and what has to wait."""
        here = {(fact.aggregate_id, fact.version) for fact in facts}
        before = {(name, version - 1) for name, version in here if version > 1} - here
        early = {name for name, _ in before - await self._there(before)}
        whole = [fact for fact in facts if fact.aggregate_id not in early]
        try:
            count = await self._fold_these(memory, whole)
        except asyncpg.CheckViolationError:
            return 0, facts  # What makes it right was published later: take more of it at once.
        return count, [fact for fact in facts if fact.aggregate_id in early]

    async def _fold_these(self, memory: Memory, facts: Sequence[OwnFact]) -> int:
        lacking = in_order(await self._lacking(facts))
        async with self._database.transaction() as connection:
            if lacking:
                recorded = [fact.recorded for fact in lacking]
                seqs = [fact.stream_seq for fact in lacking]
                await self._history.adopt(connection, recorded, seqs)
                await memory.fold(lacking, connection)
            await self._mark(connection, facts)
        return len(lacking)

    async def _lacking(self, facts: Sequence[OwnFact]) -> list[OwnFact]:
        there = await self._there([(fact.aggregate_id, fact.version) for fact in facts])
        lacking: dict[tuple[str, int], OwnFact] = {}
        for fact in facts:
            if (place := (fact.aggregate_id, fact.version)) not in there:
                lacking.setdefault(place, fact)
        return list(lacking.values())

    async def _there(self, places: Collection[tuple[str, int]]) -> set[tuple[str, int]]:
        """Which of these aggregates' versions the history has."""
        if not places:
            return set()
        names, versions = zip(*places, strict=True)
        rows = await self._database.fetch(_THERE, names, versions)
        return {(row["aggregate_id"], row["version"]) for row in rows}

    async def _mark(self, connection: Connection, facts: Sequence[OwnFact]) -> None:
        """Note where the stream has what we thought unpublished, so that it is not sent again."""
        await connection.execute(
            _MARK_EVENTS,
            [fact.recorded.id for fact in facts],
            [fact.stream_seq for fact in facts],
            [fact.aggregate_id for fact in facts],
            [fact.version for fact in facts],
        )
        await connection.execute(_MARK_BATCHES)

    def _is_own(self, fact: OwnFact) -> bool:
        key = event_id(self._history.owner, fact.aggregate_id, fact.version)
        return key == fact.recorded.id

    def _read(self, memory: Memory, chunk: Sequence[Stored]) -> list[OwnFact]:
        """What of these messages belongs into our history."""
        found = []
        for message in chunk:
            fact = own_fact(memory.kinds, message.subject, message.body, message.seq)
            if fact is None:
                continue
            kind = type(fact.data).__name__
            if self._is_own(fact) or (kind in memory.adopts and fact.version == 1):
                found.append(fact)
        return found

    async def _rewind(self) -> dict[str, int]:
        """Have everything delivered again: what is known by the inbox changes nothing.

        Returns how far each stream has to be read until the recovery is over.
        """
        until = {}
        for durable in self._durables:
            until[durable.stream] = (await extent(self._broker, durable.stream)).last_seq
            await start_over(self._broker, durable)
        return until


def _reads(durable: Durable, subject: str) -> bool:
    wide = (each.rstrip(">*") for each in durable.subjects if each[-1] in ">*")
    return subject in durable.subjects or subject.startswith(tuple(wide))


_TRY_LOCK = "SELECT pg_try_advisory_lock($1, hashtext($2))"
_UNLOCK = "SELECT pg_advisory_unlock($1, hashtext($2))"
_UNFINISHED = "SELECT until FROM recoveries WHERE ended_at IS NULL"
_CUT_SHORT = "SELECT 1 FROM recoveries WHERE ended_at IS NULL AND rewound_at IS NULL"
_BEGIN = """
INSERT INTO recoveries (began_at)
SELECT now() WHERE NOT EXISTS (SELECT 1 FROM recoveries WHERE rewound_at IS NULL)
"""
# Whoever holds a lease from before knows a later state than the rows do.
_VOID_LEASES = "UPDATE jobs SET lease = NULL, due_at = now() WHERE lease IS NOT NULL"
_REWOUND = """
UPDATE recoveries SET rewound_at = now(), events = events + $1, until = $2 WHERE ended_at IS NULL
"""
_END = "UPDATE recoveries SET ended_at = now() WHERE ended_at IS NULL AND rewound_at IS NOT NULL"
_KNOWN = """
SELECT max(coalesce(e.stream_seq, b.first_seq + e.batch_pos)) AS seq
FROM (SELECT batch_no, first_seq FROM batches WHERE first_seq IS NOT NULL
      ORDER BY batch_no DESC LIMIT $2) AS b
JOIN events e USING (batch_no) WHERE e.subject = ANY($1::text[])
"""
_THERE = """
SELECT e.aggregate_id, e.version FROM events e
JOIN unnest($1::text[], $2::int[]) AS u(aggregate_id, version)
  ON e.aggregate_id = u.aggregate_id AND e.version = u.version
"""
_MARK_EVENTS = """
UPDATE events e SET stream_seq = u.seq
FROM unnest($1::uuid[], $2::bigint[], $3::text[], $4::int[]) AS u(id, seq, aggregate_id, version)
WHERE e.aggregate_id = u.aggregate_id AND e.version = u.version AND e.id = u.id
  AND e.stream_seq IS NULL
  AND EXISTS (SELECT 1 FROM batches b WHERE b.batch_no = e.batch_no AND b.first_seq IS NULL)
"""
_MARK_BATCHES = """
UPDATE batches b SET first_seq = (SELECT min(stream_seq) FROM events e
                                  WHERE e.batch_no = b.batch_no)
WHERE b.first_seq IS NULL AND NOT EXISTS (
  SELECT 1 FROM events e WHERE e.batch_no = b.batch_no AND e.stream_seq IS NULL)
"""
