"""Outages on real parts: work waits, no message loses an attempt, and all of it is done after."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import asyncpg

from heart_parts import Bench, answered, bench, echo, until, working
from ironcart.embedded.nats_server import NatsServer
from ironcart.embedded.postgres import Postgres
from ironcart.toolkit.database import Transaction
from ironcart.toolkit.loop import Message
from ironcart.toolkit.outcomes import LostRace, Outcome, Unavailable
from ironcart.toolkit.resilience import BreakerOpen
from ironcart.toolkit.topology import ACK_WAIT_S

Condition = Callable[[], Awaitable[Any]]


def said(parts: Bench, text: str) -> Condition:
    async def found() -> bool:
        return any(line["event"] == text for line in parts.logs)

    return found


async def nothing_was_counted(parts: Bench) -> None:
    assert await parts.count("failures") == 0
    assert await parts.dead_letters() == []


async def test_a_killed_database_pauses_the_loop_and_costs_no_attempt(
    broker_url: str, own_postgres: Postgres
) -> None:
    async with bench(broker_url, own_postgres.url) as parts, working(parts, sweeping=True):
        await parts.send(*(parts.topology.ping(f"a-{n}") for n in range(50)))
        await parts.ponged(50)
        await asyncio.to_thread(own_postgres.kill)
        await parts.send(*(parts.topology.ping(f"b-{n}") for n in range(50)))
        await until(said(parts, "Waiting for the outage to end"))
        more = [parts.topology.ping(f"c-{n}") for n in range(50)]
        await parts.send(*more)
        own_postgres.start()
        pongs = await parts.ponged(150)
        await parts.settled()

        by_id = {each.event["id"]: each.seq for each in pongs}
        assert dict(await parts.marked()) == by_id
        assert len(by_id) == len(pongs) == await parts.count("inbox") == 150
        await nothing_was_counted(parts)


async def test_a_broker_killed_under_load_loses_nothing_and_repeats_no_effect(
    own_broker: NatsServer, database_url: str
) -> None:
    handled: Counter[str] = Counter()

    async def handle(messages: Sequence[Message], _: Transaction) -> list[Outcome]:
        handled.update(message.envelope.id for message in messages)
        return [answered(message) for message in messages]

    async with bench(own_broker.url, database_url) as parts:
        await parts.deliver_again_after(2)
        async with working(parts, handle, sweeping=True):
            await parts.send(*(parts.topology.ping(f"a-{n}") for n in range(400)))
            await until(lambda: parts.count("inbox"))
            own_broker.kill()
            own_broker.start()

            async def back() -> bool:
                return bool(parts.broker.client.stats["reconnects"] and parts.broker.connected)

            await until(back)
            await parts.send(*(parts.topology.ping(f"b-{n}") for n in range(100)))
            pongs = await parts.ponged(500)
            claimed = await parts.marked()

        by_id = {each.event["id"]: each.seq for each in pongs}
        assert dict(claimed) == by_id
        assert len(by_id) == len(pongs) == len(handled) == 500
        assert set(handled.values()) == {1}
        await nothing_was_counted(parts)


async def test_an_open_breaker_in_a_handler_costs_no_attempt(
    broker_url: str, database_url: str
) -> None:
    calls = 0

    async def handle(messages: Sequence[Message], transaction: Transaction) -> list[Outcome]:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise BreakerOpen("breaker gateway is open", 30.0)
        if calls == 2:
            raise Unavailable("the gateway is away")
        return await echo(messages, transaction)

    async with bench(broker_url, database_url) as parts:
        await parts.send(*(parts.topology.ping(f"a-{n}") for n in range(10)))
        async with working(parts, handle):
            await parts.ponged(10)
            info = await parts.settled()
        assert info["num_redelivered"] == 0
        await nothing_was_counted(parts)


async def test_a_lost_race_is_run_again_at_once(broker_url: str, database_url: str) -> None:
    calls = 0

    async def handle(messages: Sequence[Message], transaction: Transaction) -> list[Outcome]:
        nonlocal calls
        calls += 1
        if calls < 4:
            raise LostRace("serialization failure")
        return await echo(messages, transaction)

    async with bench(broker_url, database_url) as parts:
        await parts.send(parts.topology.ping("a"))
        async with working(parts, handle):
            await parts.ponged(1)
            info = await parts.settled()
        assert info["num_redelivered"] == 0
        assert not await said(parts, "Waiting for the outage to end")()
        await nothing_was_counted(parts)


async def test_the_victim_of_a_deadlock_is_run_again(broker_url: str, database_url: str) -> None:
    locked, go_on = asyncio.Event(), asyncio.Event()
    runs = 0

    async def handle(messages: Sequence[Message], transaction: Transaction) -> list[Outcome]:
        nonlocal runs
        runs += 1
        await transaction.connection.execute("SELECT pg_advisory_xact_lock(1)")
        if runs == 1:
            # Who waits longest finds the deadlock, and is its victim: that has to be us.
            await transaction.connection.execute("SET LOCAL deadlock_timeout = '50ms'")
            locked.set()
            await go_on.wait()
            await transaction.connection.execute("SELECT pg_advisory_xact_lock(2)")
        return await echo(messages, transaction)

    rival = await asyncpg.connect(database_url)
    try:
        async with bench(broker_url, database_url) as parts:
            await parts.send(parts.topology.ping("a"))
            async with working(parts, handle):
                await locked.wait()
                async with rival.transaction():
                    await rival.execute("SET LOCAL deadlock_timeout = '10s'")
                    await rival.execute("SELECT pg_advisory_xact_lock(2)")
                    waiting = asyncio.create_task(rival.execute("SELECT pg_advisory_xact_lock(1)"))
                    await until(lambda: _waits_for_a_lock(parts))
                    go_on.set()
                    await waiting
                await parts.ponged(1)
                await parts.settled()
            assert runs == 2
            await nothing_was_counted(parts)
    finally:
        await rival.close()


async def _waits_for_a_lock(parts: Bench) -> bool:
    row = await parts.database.fetchrow(
        "SELECT count(*) AS n FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    assert row is not None
    return bool(row["n"])


async def test_a_drain_during_an_outage_ends_and_leaves_its_messages_to_the_next(
    broker_url: str, database_url: str
) -> None:
    async def away(messages: Sequence[Message], _: Transaction) -> list[Outcome]:
        raise Unavailable("the gateway is away")

    async with bench(broker_url, database_url) as parts:
        await parts.send(parts.topology.ping("a"))
        async with working(parts, away) as running:
            await until(said(parts, "Waiting for the outage to end"))
            await asyncio.wait_for(running.drain(), 20)
        info = await parts.consumer_info()
        assert info["num_ack_pending"] + info["num_pending"] == 1
        await nothing_was_counted(parts)
        # It is given back: nobody waits until the broker finds that it was not acknowledged.
        async with working(parts), asyncio.timeout(ACK_WAIT_S / 4):
            await parts.ponged(1)
