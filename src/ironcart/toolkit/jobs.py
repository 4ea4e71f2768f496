"""Jobs: calls to the outside, never inside a transaction nor inside a message's ack window.

A handler adds a job in its transaction, already leased to its own process, and the message is
acked. The scheduler makes one call at a time for each job, outside any transaction, and settles it
in a second one, if the lease still holds. A job whose call came to nothing is due again later; one
whose process died is leased by another within seconds, and one whose process hangs when the lease
has run out, by the database's clock.
"""

import asyncio
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Generic, Protocol, TypeVar

import structlog
from msgspec import Struct

from ironcart.toolkit import leases, telemetry
from ironcart.toolkit.collector import Collector
from ironcart.toolkit.database import Connection, Database, Transaction
from ironcart.toolkit.history import Cause, Commit, History, Outbox
from ironcart.toolkit.outcomes import Fact, LostRace, Refused, Unavailable
from ironcart.toolkit.resilience import Backoff, BreakerOpen
from ironcart.toolkit.unending import unending

LEASE_S = 60.0
# A call must be over well before its lease is: adapters set their deadlines below this.
CALL_S_MAX = LEASE_S / 2
# A job that has waited this long since it was leased is given back rather than begun.
LEASE_LEFT_MIN_S = CALL_S_MAX + 5
# A job that goes on keeps its lease while that is younger than this: most are called again at once.
RENEW_AFTER_S = 5.0
JOBS_IN_HAND_MAX = 2_000
# A call holds its place until it is settled: so many make up the batches behind it, too.
CALLS_IN_FLIGHT_MAX = 256
LEASE_BATCH_MAX = 500
SETTLE_BATCH_MAX = 500
POLL_S = 0.5
MEASURE_EVERY_S = 5.0
# Measuring counts every job: it takes at most a hundredth of the time, however many there are.
REST_FOR_EACH_MEASURE = 99.0
SETTLE_AGAIN_S = 0.5
ERROR_CHARACTERS_MAX = 500
RACES_MAX = 5
LINGER_S_MAX = 0.1
RETRY = Backoff(attempts_max=2**31, first_s=0.5, max_s=60.0)

P = TypeVar("P")
R = TypeVar("R")


class Settled(Struct, Generic[P], frozen=True):
    """What a settled call leads to: facts to emit, and what goes on, if the job does.

    `after_commit` runs once that is written for good, for logs and metrics.
    """

    facts: tuple[Fact, ...] = ()
    cause: Cause | None = None
    again: P | None = None
    after_commit: Callable[[], None] | None = None


class Work(Protocol[P, R]):
    """What a service says about its jobs; `P` is what a call needs, `R` what it learned."""

    async def load(self, connection: Connection, keys: Sequence[str]) -> Mapping[str, P]:
        """Read what the calls of these jobs need; a key that is left out has nothing to do."""

    async def call(self, payload: P, attempts: int) -> R:
        """Make one call to the outside; raises `Unavailable` when its outcome is not known.

        `attempts` counts the earlier ones that came to nothing.
        """

    async def settle(
        self, connection: Connection, results: Sequence[tuple[P, R]]
    ) -> Sequence[Settled[P]]:
        """Write down what was learned, inside a transaction in which the leases hold."""


class _Job(Struct, Generic[P]):
    key: str
    lease: uuid.UUID
    payload: P
    attempts: int = 0
    leased_at: float = 0.0


class Jobs(Generic[P, R]):
    """The jobs of one service: `add` from a handler, `run` as a loop beside the consumers."""

    def __init__(
        self,
        work: Work[P, R],
        database: Database,
        history: History,
        outbox: Outbox,
        *,
        closed_for_s: Callable[[], float] = lambda: 0.0,
        only: str = "",
        calls_max: int | None = None,
    ) -> None:
        """`closed_for_s` says for how long no call may be made: a breaker's wait.

        A service with several kinds of jobs has one of these for each, and `only` is the SQL
        condition on `key` that tells its own from the others': neither waits for the other.
        """
        self._work, self._database = work, database
        self._history, self._outbox = history, outbox
        self._closed_for_s = closed_for_s
        own = f"WHERE {only} AND due_at" if only else "WHERE due_at"
        self._lease_sql = leases.LEASE.replace("WHERE due_at", own)
        self._calls_max = calls_max or CALLS_IN_FLIGHT_MAX
        self._in_hand: asyncio.Queue[_Job[P]] = asyncio.Queue()
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()
        self._holder = leases.Holder(database, self._hurry.set)
        self._measure_at = 0.0
        self._settling: Collector[tuple[_Job[P], R], None] = Collector(
            self._settle, batch_max=SETTLE_BATCH_MAX, linger_s_max=LINGER_S_MAX
        )
        self._postponing: Collector[tuple[_Job[P], str, float, int], None] = Collector(
            self._postpone, batch_max=LEASE_BATCH_MAX
        )

    @property
    def _room(self) -> int:
        return JOBS_IN_HAND_MAX - self._in_hand.qsize()

    async def add(self, transaction: Transaction, payloads: Mapping[str, P]) -> None:
        """Record jobs in a handler's transaction, leased to this process while there is room.

        A key that has an open job is left as it is.
        """
        lease = self._holder.lease()
        keys = list(payloads)
        open_for_calls = self._closed_for_s() <= 0 and not self._stopping.is_set()
        leased = keys[: max(0, self._room)] if open_for_calls else []
        later = keys[len(leased) :]
        added: set[str] = set()
        if leased:
            rows = await transaction.connection.fetch(leases.ADD_LEASED, leased, LEASE_S, lease)
            added = {row["key"] for row in rows}
        if later:
            await transaction.connection.execute(leases.ADD_DUE, later)
        now = time.monotonic()

        def hand_over() -> None:
            for key in leased:
                if key in added:
                    self._in_hand.put_nowait(_Job(key, lease, payloads[key], 0, now))
            self._hurry.set()

        transaction.after_commit.append(hand_over)

    async def lock(self, connection: Connection, keys: Sequence[str]) -> set[str]:
        """Lock the jobs of these keys; returns those that somebody is working on."""
        held = await leases.lock(connection, keys)
        return {key for key, lease in held.items() if lease is not None}

    async def hasten(self, transaction: Transaction, keys: Sequence[str]) -> set[str]:
        """Make waiting jobs due now, adding those that have none; returns the keys nobody holds.

        A job that is being worked on is left to its holder, who sees the new state when it settles.
        """
        rows = await transaction.connection.fetch(leases.HASTEN, keys)
        transaction.after_commit.append(self._hurry.set)
        return {row["key"] for row in rows}

    async def drop(self, connection: Connection, keys: Sequence[str]) -> None:
        """Take back jobs that nobody holds: there is nothing left to do."""
        await connection.execute(
            "DELETE FROM jobs WHERE key = ANY($1::text[]) AND lease IS NULL", keys
        )

    def stop(self) -> None:
        """Begin no further call; `run` returns when those under way are settled."""
        self._stopping.set()
        self._hurry.set()

    async def run(self) -> None:
        """Make calls until stopped."""
        async with asyncio.TaskGroup() as group:
            beside = (self._holder, self._settling, self._postponing)
            background = [group.create_task(each.run()) for each in beside]
            over = self._stopping.is_set
            calling = (unending(self._caller, over) for _ in range(self._calls_max))
            callers = [group.create_task(each) for each in calling]
            try:
                await self._lease_what_is_due()
            finally:
                self._stopping.set()
            for _ in callers:  # One wake-up for each caller; those in a call finish it first.
                self._in_hand.put_nowait(_WAKE)
            await asyncio.wait(callers)
            for task in background:
                task.cancel()

    async def _lease_what_is_due(self) -> None:
        while not self._stopping.is_set():
            more = False
            try:
                if self._closed_for_s() <= 0 and (room := min(LEASE_BATCH_MAX, self._room)) > 0:
                    more = await self._lease(room) == room
                await self._measure()
            except Unavailable as error:
                structlog.get_logger().warning("Cannot lease jobs", error=str(error))
            if not more:
                self._hurry.clear()
                # Not wait_for: before Python 3.12 it may swallow a cancellation.
                with suppress(TimeoutError):
                    async with asyncio.timeout(POLL_S):
                        await self._hurry.wait()

    async def _lease(self, count_max: int) -> int:
        lease = self._holder.lease()
        leased_at = time.monotonic()
        async with self._database.transaction() as connection:
            rows = await connection.fetch(self._lease_sql, count_max, LEASE_S, lease)
            keys = [row["key"] for row in rows]
            payloads = await self._work.load(connection, keys) if keys else {}
            if idle := [key for key in keys if key not in payloads]:
                await connection.execute("DELETE FROM jobs WHERE key = ANY($1::text[])", idle)
        for row in rows:
            if (payload := payloads.get(row["key"])) is not None:
                job = _Job(row["key"], lease, payload, row["attempts"], leased_at)
                self._in_hand.put_nowait(job)
        return len(rows)

    async def _caller(self) -> None:
        while True:
            job = await self._in_hand.get()
            if self._stopping.is_set():
                if job is _WAKE:
                    return
                await self._later(job, "shutting down", 0.0, counts=False)
            elif time.monotonic() - job.leased_at > LEASE_S - LEASE_LEFT_MIN_S:
                await self._later(job, "waited too long", 0.0, counts=False)
            elif (wait_s := self._closed_for_s()) > 0:
                await self._later(job, "breaker open", wait_s, counts=False)
            else:
                await self._call(job)

    async def _call(self, job: _Job[P]) -> None:
        try:
            result = await self._work.call(job.payload, job.attempts)
        except BreakerOpen as error:
            await self._later(job, str(error), error.retry_after_s or 1.0, counts=False)
        except Unavailable as error:
            delay_s = error.retry_after_s or RETRY.delay_s(job.attempts + 1)
            await self._later(job, str(error), delay_s, counts=True)
        except Refused:  # Waiting will not mend it: the process ends and says so.
            raise
        except Exception as error:  # noqa: BLE001 - one job's bug must not stop the others
            structlog.get_logger().error("A job failed", exc_info=error, job=job.key)
            text = f"{type(error).__name__}: {error}"
            await self._later(job, text, RETRY.delay_s(job.attempts + 1), counts=True)
        else:
            await self._settle_one(job, result)

    async def _settle_one(self, job: _Job[P], result: R) -> None:
        """Settle with whoever else is ready; what cannot be settled is called again later.

        That is harmless: a repeat of the call finds it already done. But an outage of the database
        is waited out while the lease may hold, since a new one would be waited for much longer.
        """
        try:
            while not await self._settled(job, result):  # noqa: ASYNC110 - an outage has no event
                await asyncio.sleep(SETTLE_AGAIN_S)
        except Unavailable:
            return  # The lease runs out.
        except Refused:
            raise
        except Exception as error:  # noqa: BLE001 - a bug with one must not hold up its neighbours
            structlog.get_logger().error("Settling failed", exc_info=error, job=job.key)
            try:
                await self._settle([(job, result)])
            except Unavailable:
                return
            except Refused:
                raise
            except Exception as alone:  # noqa: BLE001 - the same, now it is known whose bug it is
                text = f"{type(alone).__name__}: {alone}"
                await self._later(job, text, RETRY.delay_s(job.attempts + 1), counts=True)

    async def _settled(self, job: _Job[P], result: R) -> bool:
        """Try to settle; False when that is worth trying again, else raises `Unavailable`."""
        try:
            await self._settling.submit((job, result))
        except Unavailable:
            if self._stopping.is_set() or time.monotonic() - job.leased_at > LEASE_S:
                raise
            return False
        return True

    async def _later(self, job: _Job[P], error: str, delay_s: float, *, counts: bool) -> None:
        clean = error.replace("\x00", "").encode("utf-8", "replace").decode()
        with suppress(Unavailable):  # Then the lease runs out instead.
            await self._postponing.submit((job, clean[:ERROR_CHARACTERS_MAX], delay_s, int(counts)))

    async def _postpone(self, jobs: Sequence[tuple[_Job[P], str, float, int]]) -> list[None]:
        jobs = sorted(jobs, key=lambda each: each[0].key)
        await self._database.execute(
            leases.POSTPONE,
            [job.key for job, *_ in jobs],
            [job.lease for job, *_ in jobs],
            [error for _, error, _, _ in jobs],
            [delay_s for *_, delay_s, _ in jobs],
            [counts for *_, counts in jobs],
        )
        return [None] * len(jobs)

    async def _settle(self, results: Sequence[tuple[_Job[P], R]]) -> list[None]:
        for race in range(1, RACES_MAX + 1):
            try:
                commit, again = await self._write(results)
                break
            except LostRace:
                if race == RACES_MAX:
                    raise
                await asyncio.sleep(RETRY.delay_s(race) / 10)
        if not self._stopping.is_set():  # Else somebody else has been given them.
            for job in again:
                self._in_hand.put_nowait(job)
        if commit is not None:
            self._outbox.hand_over(commit)
        return [None] * len(results)

    async def _write(
        self, results: Sequence[tuple[_Job[P], R]]
    ) -> tuple[Commit | None, list[_Job[P]]]:
        facts: list[tuple[Fact, Cause]] = []
        again: list[_Job[P]] = []
        done: list[str] = []
        async with self._database.transaction() as connection:
            held = await leases.lock(connection, [job.key for job, _ in results])
            live = [(job, result) for job, result in results if held.get(job.key) == job.lease]
            settled = await self._work.settle(
                connection, [(job.payload, result) for job, result in live]
            )
            now = time.monotonic()
            for (job, _), then in zip(live, settled, strict=True):
                if then.cause is not None:
                    facts += [(fact, then.cause) for fact in then.facts]
                if then.again is None:
                    done.append(job.key)
                else:
                    fresh = not job.attempts and now - job.leased_at < RENEW_AFTER_S
                    leased_at = job.leased_at if fresh else now
                    again.append(_Job(job.key, job.lease, then.again, 0, leased_at))
            if done:
                await connection.execute("DELETE FROM jobs WHERE key = ANY($1::text[])", done)
            if self._stopping.is_set():
                if again:
                    await connection.execute(leases.GIVE_BACK, [job.key for job in again])
            elif renewed := [job.key for job in again if job.leased_at == now]:
                await connection.execute(leases.RENEW, renewed, LEASE_S)
            commit = await self._history.record(connection, facts)
        for then in settled:
            if then.after_commit is not None:
                then.after_commit()
        return commit, again

    async def _measure(self) -> None:
        began = time.monotonic()
        if began < self._measure_at:
            return
        row = await self._database.fetchrow(leases.MEASURE)
        assert row is not None
        telemetry.jobs_open.set(row["open"])
        telemetry.jobs_due.set(row["due"])
        telemetry.jobs_oldest.set(row["oldest_s"])
        ended = time.monotonic()
        self._measure_at = ended + max(MEASURE_EVERY_S, (ended - began) * REST_FOR_EACH_MEASURE)


_WAKE: Any = _Job("", uuid.UUID(int=0), None)
