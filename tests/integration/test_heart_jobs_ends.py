"""Jobs that wait for a breaker, go on, are stopped, or fail to settle."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from heart_jobs import Errands, add, at_work, holds, no_jobs, rows, scheduler
from heart_parts import Bench, bench, until
from ironcart.toolkit import jobs as jobs_module
from ironcart.toolkit.database import Connection, Transaction
from ironcart.toolkit.jobs import Settled
from ironcart.toolkit.outcomes import Refused
from ironcart.toolkit.resilience import BreakerOpen


@pytest.fixture
async def parts(broker_url: str, database_url: str) -> AsyncIterator[Bench]:
    async with bench(broker_url, database_url) as found:
        yield found


async def test_an_open_breaker_calls_nothing_and_counts_nothing(parts: Bench) -> None:
    work, closed_for_s = Errands(), 1_000.0
    found = scheduler(parts, work, closed_for_s=lambda: closed_for_s)
    await add(parts, found, "a")
    assert (await rows(parts))["a"]["lease"] is None
    async with at_work(found):
        await until(lambda: asyncio.sleep(0.2, True))
        assert not work.calls
        closed_for_s = 0.0
        await until(no_jobs(parts))
    assert work.calls == {"a": 1}


async def test_a_breaker_that_opens_during_a_call_counts_nothing(parts: Bench) -> None:
    refusals = 3

    async def guarded(payload: str, attempts: int) -> str:
        nonlocal refusals
        assert attempts == 0
        if refusals:
            refusals -= 1
            raise BreakerOpen("breaker gateway is open", 0.01)
        return "done"

    work = Errands(guarded)
    found = scheduler(parts, work)
    await add(parts, found, "a")
    async with at_work(found):
        await until(no_jobs(parts))
    assert work.calls == {"a": 4}
    assert work.settled == ["a"]


async def test_a_job_that_was_hastened_is_called_at_once(parts: Bench) -> None:
    work = Errands()
    found = scheduler(parts, work)
    await parts.database.execute(
        "INSERT INTO jobs VALUES ('late', now() + interval '1 hour', NULL, 3),"
        " ('held', now() + interval '1 hour', gen_random_uuid(), 0)"
    )
    async with parts.database.transaction() as connection:
        transaction = Transaction(connection)
        assert await found.hasten(transaction, ["late", "held", "new"]) == {"late", "new"}
    async with at_work(found):
        for then in transaction.after_commit:
            then()

        async def only_the_held_one_is_left() -> bool:
            return set(await rows(parts)) == {"held"}

        await until(only_the_held_one_is_left)
    assert sorted(work.settled) == ["late", "new"]


async def test_a_job_that_goes_on_keeps_its_lease_and_is_called_again(parts: Bench) -> None:
    work = Errands()
    work.again = {"a"}
    found = scheduler(parts, work)
    await add(parts, found, "a", "b")
    async with at_work(found):
        await until(no_jobs(parts))
    assert work.calls == {"a": 2, "b": 1}
    assert sorted(work.settled) == ["a", "b"]


async def test_a_job_with_nothing_to_do_is_dropped(parts: Bench) -> None:
    work = Errands()
    work.idle = {"a"}
    await parts.database.execute("INSERT INTO jobs (key, due_at) VALUES ('a', now())")
    async with at_work(scheduler(parts, work)):
        await until(no_jobs(parts))
    assert not work.calls


async def test_stopping_finishes_the_calls_under_way_and_gives_the_others_back(
    parts: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs_module, "CALLS_IN_FLIGHT_MAX", 2)
    answer = asyncio.Event()

    async def slow(payload: str, attempts: int) -> str:
        await answer.wait()
        return "done"

    work = Errands(slow)
    work.again = {"a"}
    found = scheduler(parts, work)
    async with at_work(found) as (task,):
        await add(parts, found, "a", "b", "c", "d")
        await until(lambda: holds(lambda: len(work.calls) == 2))
        found.stop()
        await add(parts, found, "e")  # A consumer may still be finishing its last batch.
        answer.set()
        await asyncio.wait_for(task, 20)

    assert set(work.calls) == {"a", "b"}
    assert work.settled == ["b"]
    left = await rows(parts)
    assert set(left) == {"a", "c", "d", "e"}
    # Nobody has to wait for a lease to run out.
    assert all(row["lease"] is None and row["attempts"] == 0 for row in left.values())
    assert all(row["wait"].total_seconds() <= 0 for row in left.values())


async def test_no_more_jobs_are_in_hand_than_there_is_room_for(
    parts: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs_module, "JOBS_IN_HAND_MAX", 10)
    monkeypatch.setattr(jobs_module, "CALLS_IN_FLIGHT_MAX", 3)
    answer = asyncio.Event()

    async def slow(payload: str, attempts: int) -> str:
        await answer.wait()
        return "done"

    work = Errands(slow)
    found = scheduler(parts, work)
    await add(parts, found, *(f"k-{n:02}" for n in range(40)))
    assert await parts.count("jobs", "lease IS NOT NULL") == 10
    async with at_work(found):
        await until(lambda: holds(lambda: len(work.calls) == 3))
        assert await parts.count("jobs", "lease IS NOT NULL") <= 13
        answer.set()
        await until(no_jobs(parts))
    assert set(work.calls.values()) == {1}
    assert len(work.settled) == 40


async def test_a_settlement_that_fails_stops_neither_the_scheduler_nor_its_neighbours(
    parts: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clumsy(Errands):
        async def settle(
            self, connection: Connection, results: Sequence[tuple[str, str]]
        ) -> Sequence[Settled[str]]:
            if any(key == "bad" for key, _ in results):
                raise KeyError("a bug")
            return await super().settle(connection, results)

    work = Clumsy()
    found = scheduler(parts, work)
    await add(parts, found, "a", "bad", "b")
    async with at_work(found):

        async def only_the_bad_one_is_left() -> bool:
            left = await rows(parts)
            return set(left) == {"bad"} and left["bad"]["attempts"] > 0

        await until(only_the_bad_one_is_left)
    assert sorted(work.settled) == ["a", "b"]


async def test_a_refused_credential_ends_the_scheduler(parts: Bench) -> None:
    async def refused(payload: str, attempts: int) -> str:
        raise Refused("the gateway refuses our key")

    found = scheduler(parts, Errands(refused))
    await add(parts, found, "a")
    with pytest.raises(BaseExceptionGroup) as caught:
        async with at_work(found) as (task,):
            await task
    assert caught.group_contains(Refused)


async def test_a_refusal_while_settling_ends_the_scheduler_and_counts_nothing(
    parts: Bench,
) -> None:
    class Forbidden(Errands):
        async def settle(
            self, connection: Connection, results: Sequence[tuple[str, str]]
        ) -> Sequence[Settled[str]]:
            raise Refused("permission denied for table payments")

    found = scheduler(parts, Forbidden())
    await add(parts, found, "a")
    with pytest.raises(BaseExceptionGroup) as caught:
        async with asyncio.timeout(5), at_work(found) as (task,):
            await task
    assert caught.group_contains(Refused)
    assert (await rows(parts))["a"]["attempts"] == 0
