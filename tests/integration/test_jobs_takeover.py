"""Jobs of a process that died: taken over at once, while those of one that lives are left alone."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from heart_jobs import Errands, add, at_work, holds, no_jobs, rows, scheduler
from heart_parts import Bench, bench, until
from ironcart.toolkit import leases
from ironcart.toolkit.jobs import Jobs

# Far below what is left of a lease.
SOON_S = 10.0


@pytest.fixture
async def parts(broker_url: str, database_url: str) -> AsyncIterator[Bench]:
    async with bench(broker_url, database_url) as found:
        yield found


async def never(payload: str, attempts: int) -> str:
    await asyncio.Event().wait()
    return ""


async def sessions(parts: Bench) -> list[int]:
    """The server's processes whose sessions show that somebody lives."""
    found = await parts.database.fetch(
        "SELECT pid FROM pg_locks JOIN pg_database d ON d.oid = database"
        " WHERE locktype = 'advisory' AND classid = $1::oid AND datname = current_database()",
        leases.HOLDERS_SPACE,
    )
    return [row["pid"] for row in found]


def lives(parts: Bench, count: int = 1) -> Callable[[], "asyncio.Future[bool]"]:
    async def there() -> bool:
        return len(await sessions(parts)) == count

    return lambda: asyncio.ensure_future(there())


async def leased_by_the_dead(parts: Bench, key: str) -> None:
    """A job that somebody has leased who shows no life: who does not is known once it is taken."""
    lease = "00000000-0000-8000-8000-000000000000"
    await parts.database.execute(
        "INSERT INTO jobs VALUES ($1, now() + interval '1 minute', $2::text::uuid)", key, lease
    )


async def held(parts: Bench, found: Jobs[str, str], work: Errands, *keys: str) -> None:
    """Have these keys leased by a scheduler at work, and called."""
    await until(lives(parts))
    await add(parts, found, *keys)
    await until(lambda: holds(lambda: len(work.calls) == len(keys)))


async def test_what_a_dead_process_had_in_hand_is_taken_over_long_before_its_lease_ends(
    broker_url: str, database_url: str, parts: Bench
) -> None:
    begun, work = Errands(never), Errands()
    dying = scheduler(parts, begun)
    async with bench(broker_url, database_url, parts.topology) as other:
        async with at_work(dying):
            await held(parts, dying, begun, "a", "b")
        async with at_work(scheduler(other, work)):
            await until(no_jobs(other), SOON_S)
    assert sorted(work.settled) == ["a", "b"]


async def test_what_a_living_process_has_in_hand_is_left_to_it(
    broker_url: str, database_url: str, parts: Bench
) -> None:
    begun, work = Errands(never), Errands()
    living = scheduler(parts, begun)
    async with bench(broker_url, database_url, parts.topology) as other, at_work(living):
        await held(parts, living, begun, "a")
        async with at_work(scheduler(other, work)):
            await leased_by_the_dead(parts, "b")
            await until(lambda: holds(lambda: "b" in begun.calls or "b" in work.calls))
            row = (await rows(parts))["a"]
    assert begun.calls["a"] == 1
    assert not work.calls["a"]
    assert row["wait"].total_seconds() > SOON_S


async def test_a_session_that_is_lost_is_opened_again_and_nothing_is_taken_from_its_process(
    broker_url: str, database_url: str, parts: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "GONE_AFTER_AN_OUTAGE_S", 3 * leases.GONE_AFTER_S)
    begun, work = Errands(never), Errands()
    living = scheduler(parts, begun)
    async with (
        bench(broker_url, database_url, parts.topology) as other,
        at_work(living, scheduler(other, work)),
    ):
        await until(lives(parts, 2))
        await add(parts, living, "a")
        await until(lambda: holds(lambda: bool(begun.calls)))
        lost = await sessions(parts)
        for pid in lost:
            await other.database.execute("SELECT pg_terminate_backend($1)", pid)

        async def opened_again() -> bool:
            found = await sessions(other)
            return len(found) == 2 and not set(found) & set(lost)

        await until(opened_again)
        await leased_by_the_dead(other, "b")
        await until(lambda: holds(lambda: "b" in begun.calls or "b" in work.calls))
        assert not work.calls["a"]
        assert (await rows(other))["a"]["wait"].total_seconds() > SOON_S


async def test_leases_of_a_process_that_shows_no_life_at_all_end_by_time_alone(
    parts: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(leases, "GONE_AFTER_S", 0.1)
    work, dead = Errands(), Errands(never)
    dying = scheduler(parts, dead)
    # As a release before this one leased it, and as one does that has lost its session.
    await parts.database.execute(
        "INSERT INTO jobs VALUES ('old', now() + interval '1 minute', gen_random_uuid())"
    )
    async with at_work(dying):
        await held(parts, dying, dead, "new")
    async with at_work(scheduler(parts, work)):
        await until(lambda: holds(lambda: "new" in work.settled))
    assert not work.calls["old"]


async def test_looking_for_the_dead_walks_an_index_whatever_jobs_have_left_there(
    parts: Bench,
) -> None:
    async with parts.database.transaction() as connection:
        await connection.execute(
            "INSERT INTO jobs (key, due_at) SELECT md5(n::text), now() + n * interval '1 second'"
            " FROM generate_series(1, 5000) n"
        )
        await connection.execute("ANALYZE jobs")
        await connection.fetch(leases.LIVE, leases.HOLDERS_SPACE, 1)
        plan = "".join(row[0] for row in await connection.fetch(f"EXPLAIN {leases.HOLDERS}"))
        await connection.execute("SET enable_bitmapscan TO DEFAULT")
    assert "Index" in plan
    assert "Bitmap" not in plan


async def test_whoever_ends_as_it_should_leaves_no_session_behind(parts: Bench) -> None:
    found = scheduler(parts, Errands())
    async with at_work(found) as (task,):
        await until(lives(parts))
        found.stop()
        await task
        await until(lives(parts, 0))
