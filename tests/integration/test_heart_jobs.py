"""Jobs on a real database: leased, called outside any transaction, settled under their lease."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest

from heart_jobs import Errands, add, at_work, no_jobs, rows, scheduler
from heart_parts import Bench, bench, until
from ironcart.toolkit import jobs as jobs_module
from ironcart.toolkit import leases
from ironcart.toolkit.database import Database, Transaction
from ironcart.toolkit.outcomes import Unavailable


@pytest.fixture(autouse=True)
def _polling_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_module, "POLL_S", 0.05)


@pytest.fixture
async def parts(broker_url: str, database_url: str) -> AsyncIterator[Bench]:
    async with bench(broker_url, database_url) as found:
        yield found


async def test_a_job_is_leased_when_it_is_added_and_handed_over_after_the_commit(
    parts: Bench,
) -> None:
    work = Errands()
    found = scheduler(parts, work)
    async with at_work(found):
        async with parts.database.transaction() as connection:
            transaction = Transaction(connection)
            await found.add(transaction, {"a": "a", "b": "b"})
            row = await connection.fetchrow("SELECT count(lease) AS leased FROM jobs")
            assert row is not None
            assert row["leased"] == 2
        assert not work.calls
        for then in transaction.after_commit:
            then()
        await until(no_jobs(parts))

    assert sorted(work.settled) == ["a", "b"]
    assert work.calls == {"a": 1, "b": 1}
    assert await parts.count("events") == 2


async def test_a_key_with_an_open_job_is_left_as_itholds(parts: Bench) -> None:
    work = Errands()
    found = scheduler(parts, work)
    await add(parts, found, "a")
    before = await rows(parts)
    await add(parts, found, "a")
    assert (await rows(parts))["a"]["lease"] == before["a"]["lease"]
    async with at_work(found):
        await until(no_jobs(parts))
    assert work.calls == {"a": 1}


async def test_no_transaction_is_open_while_a_call_is_made(parts: Bench) -> None:
    begun, answer = asyncio.Event(), asyncio.Event()

    async def slow(payload: str, attempts: int) -> str:
        begun.set()
        await answer.wait()
        return "done"

    found = scheduler(parts, Errands(slow))
    await add(parts, found, "a")
    async with at_work(found):
        await begun.wait()
        row = await parts.database.fetchrow(
            "SELECT count(*) AS n FROM pg_stat_activity WHERE datname = current_database()"
            " AND state LIKE 'idle in transaction%'"
        )
        assert row is not None
        assert row["n"] == 0
        answer.set()
        await until(no_jobs(parts))


async def test_nothing_is_settled_by_who_lost_the_lease(parts: Bench) -> None:
    begun, answer, answered = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def slow(payload: str, attempts: int) -> str:
        begun.set()
        await answer.wait()
        answered.set()
        return "done"

    work = Errands(slow)
    found = scheduler(parts, work)
    await add(parts, found, "a")
    async with at_work(found) as (task,):
        await begun.wait()
        await parts.database.execute(
            "UPDATE jobs SET lease = gen_random_uuid(), due_at = now() + interval '1 hour'"
        )
        answer.set()
        await answered.wait()
        found.stop()
        await task

    assert work.settled == []
    assert await parts.count("events") == 0
    assert await parts.count("jobs", "lease IS NOT NULL AND attempts = 0") == 1


async def test_a_lease_that_ran_out_is_taken_by_another_scheduler(
    broker_url: str, database_url: str, parts: Bench
) -> None:
    dead, work = scheduler(parts, Errands()), Errands()
    await add(parts, dead, "a")  # Leased, and its process never calls.
    async with bench(broker_url, database_url, parts.topology) as other:
        found = scheduler(other, work)
        async with at_work(found):
            await add(other, found, "b")
            await until(lambda: other.count("events"))
            assert not work.calls["a"]  # Held by the one that died.
            await parts.database.execute("UPDATE jobs SET due_at = now()")
            await until(no_jobs(parts))
    assert sorted(work.settled) == ["a", "b"]


async def test_two_schedulers_call_each_job_once(
    broker_url: str, database_url: str, parts: Bench
) -> None:
    await parts.database.execute(
        "INSERT INTO jobs (key, due_at) SELECT 'k-' || n, now() FROM generate_series(1, 400) n"
    )
    first, second = Errands(), Errands()
    async with (
        bench(broker_url, database_url, parts.topology) as other,
        at_work(scheduler(parts, first), scheduler(other, second)),
    ):
        await until(no_jobs(parts))
    assert set((first.calls + second.calls).values()) == {1}
    assert len(first.calls + second.calls) == 400


async def test_a_call_without_an_outcome_is_made_again_later_and_later(
    parts: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    delays = iter((0.01, 0.02, 0.03))
    attempts_seen: list[int] = []

    class Noted:
        def delay_s(self, attempt: int) -> float:
            waits.append(attempt)
            return next(delays)

    async def fails_thrice(payload: str, attempts: int) -> str:
        attempts_seen.append(attempts)
        if attempts < 3:
            raise Unavailable("no answer") if attempts < 2 else KeyError("a bug")
        return "done"

    monkeypatch.setattr(jobs_module, "RETRY", Noted())
    work = Errands(fails_thrice)
    found = scheduler(parts, work)
    await add(parts, found, "a")
    async with at_work(found):
        await until(no_jobs(parts))

    assert attempts_seen == [0, 1, 2, 3]
    assert waits == [1, 2, 3]
    assert work.settled == ["a"]


async def test_a_wait_that_the_other_side_asked_for_is_kept_and_counted(parts: Bench) -> None:
    async def busy(payload: str, attempts: int) -> str:
        raise Unavailable("too many requests", retry_after_s=1_000.0)

    found = scheduler(parts, Errands(busy))
    await add(parts, found, "a")
    async with at_work(found):

        async def postponed() -> Any:
            row = (await rows(parts))["a"]
            return row if row["attempts"] else None

        row = await until(postponed)
    assert row["lease"] is None
    assert row["error"] == "too many requests"
    assert 990 < row["wait"].total_seconds() <= 1_000


async def test_jobs_are_postponed_in_the_order_in_which_others_lock_them(
    parts: Bench, database_url: str
) -> None:
    lease, keys = uuid.uuid4(), [f"k-{n:02}" for n in range(20)]
    await parts.database.execute(
        "INSERT INTO jobs SELECT key, now(), $2 FROM unnest($1::text[]) AS key", keys[::-1], lease
    )
    # What is a plan for many rows: it reads the jobs in any order.
    session = {"enable_nestloop": "off", "enable_mergejoin": "off", "enable_seqscan": "on"}
    many = Database(database_url, "beta", "test", session=session)
    no_time = [lease] * 20, [""] * 20, [0.0] * 20, [1] * 20
    async with parts.database.transaction() as connection:
        await connection.execute("SELECT FROM jobs WHERE key = $1 FOR UPDATE", keys[0])
        postponing = asyncio.create_task(many.execute(leases.POSTPONE, keys, *no_time))

        async def waits() -> bool:
            row = await parts.database.fetchrow(
                "SELECT 1 FROM pg_stat_activity"
                " WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )
            return row is not None

        await until(waits)
        free = await parts.database.fetch("SELECT key FROM jobs FOR UPDATE SKIP LOCKED")
    await postponing
    await many.close()

    assert len(free) == len(keys) - 1
    assert await parts.count("jobs", "attempts = 1 AND lease IS NULL") == len(keys)


async def test_jobs_are_counted_more_seldom_than_they_are_leased(
    parts: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Errands()
    found = scheduler(parts, work)
    counted: list[str] = []
    fetchrow = parts.database.fetchrow

    async def noted(statement: str, *arguments: Any) -> Any:
        counted.append(statement)
        return await fetchrow(statement, *arguments)

    monkeypatch.setattr(parts.database, "fetchrow", noted)
    async with at_work(found):
        for key in ("a", "b", "c", "d"):
            await add(parts, found, key)
            await until(no_jobs(parts))
    assert counted.count(leases.MEASURE) == 1
