"""The loop on real parts: batches in one transaction, and every message once, whatever repeats."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from heart_parts import Bench, answered, bench, echo, until, working
from ironcart.toolkit.broker import Delivery
from ironcart.toolkit.database import Connection, Transaction
from ironcart.toolkit.loop import Message, RawSubscription
from ironcart.toolkit.outcomes import Outcome

MANY = 300


@pytest.fixture
async def parts(broker_url: str, database_url: str) -> AsyncIterator[Bench]:
    async with bench(broker_url, database_url) as found:
        yield found


async def statements(parts: Bench) -> int:
    """How many statements this database has run for tables of the toolkit's."""
    row = await parts.database.fetchrow(
        "SELECT coalesce(sum(calls), 0)::int AS n FROM pg_stat_statements s"
        " JOIN pg_database d ON d.oid = s.dbid WHERE d.datname = current_database()"
        " AND query ~ 'inbox|events|batches|failures' AND query !~ 'pg_stat'"
    )
    assert row is not None
    return int(row["n"])


async def test_every_ping_is_answered_once_with_its_trace_and_its_cause(parts: Bench) -> None:
    pings = [parts.topology.ping(f"a-{n}") for n in range(MANY)]
    await parts.send(*pings)
    async with working(parts):
        found = await parts.ponged(MANY)
        await parts.settled()

    assert sorted(each.event["causation_id"] for each in found) == sorted(
        ping.message_id for ping in pings
    )
    assert {each.event["trace_id"] for each in found} == {"0af7651916cd43dd8448eb211c80319c"}
    assert {each.headers["traceparent"] for each in found} == {pings[0].headers["traceparent"]}
    assert all(each.headers["Nats-Msg-Id"] == each.event["id"] for each in found)
    assert dict(await parts.marked()) == {each.event["id"]: each.seq for each in found}
    assert await parts.count("inbox") == MANY


async def test_a_batch_costs_the_same_statements_however_many_messages_it_has(
    parts: Bench,
) -> None:
    await parts.database.execute("CREATE EXTENSION pg_stat_statements WITH SCHEMA beta")
    sizes: list[int] = []

    async def handle(messages: Sequence[Message], transaction: Transaction) -> list[Outcome]:
        sizes.append(len(messages))
        return await echo(messages, transaction)

    await parts.send(*(parts.topology.ping(f"a-{n}") for n in range(MANY)))
    before = await statements(parts)
    async with working(parts, handle):
        await parts.ponged(MANY)
        await parts.settled()

    # Inbox and history for each batch; one mark for each publish, of which there are no more.
    assert len(sizes) < MANY / 10
    assert 2 * len(sizes) < await statements(parts) - before <= 3 * len(sizes)


async def test_repeats_are_dropped_whether_in_one_batch_in_another_or_in_new_messages(
    parts: Bench,
) -> None:
    topology = parts.topology
    handled: list[str] = []

    async def handle(messages: Sequence[Message], _: Transaction) -> list[Outcome]:
        handled.extend(message.envelope.id for message in messages)
        return [answered(message) for message in messages]

    first = topology.ping("a")
    copies = [topology.raw(first.body, first.headers) for _ in range(10)]  # Own message ids.
    await parts.send(first, *copies, topology.ping("b"))
    async with working(parts, handle):
        await parts.ponged(2)
        await parts.send(*[topology.raw(first.body) for _ in range(5)], topology.ping("c"))
        found = await parts.ponged(3)
        info = await parts.settled()

    assert handled.count(first.message_id) == 1
    assert len(handled) == len(found) == 3
    assert info["num_redelivered"] == 0


async def test_a_crash_between_commit_and_ack_is_absorbed_by_the_inbox(
    broker_url: str, database_url: str, parts: Bench
) -> None:
    handled: list[str] = []

    async def handle(messages: Sequence[Message], _: Transaction) -> list[Outcome]:
        handled.extend(message.envelope.id for message in messages)
        return [answered(message) for message in messages]

    await parts.deliver_again_after(1)
    await parts.send(*(parts.topology.ping(f"a-{n}") for n in range(20)))
    never: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    with pytest.MonkeyPatch.context() as patch:
        # Publishing hangs, so the process dies after the commit and before any ack.
        patch.setattr(parts.outbox, "publish", lambda _: asyncio.shield(never))
        async with working(parts, handle):
            await until(lambda: parts.count("inbox"))
    committed = await parts.count("inbox")
    assert committed

    async with bench(broker_url, database_url, parts.topology) as other:
        async with working(other, handle, sweeping=True):
            found = await other.ponged(20)
            info = await other.settled()
        assert dict(await other.marked()) == {each.event["id"]: each.seq for each in found}

    assert len(found) == len(set(handled)) == len(handled) == 20
    assert info["delivered"]["consumer_seq"] >= 20 + committed


async def test_two_replicas_share_the_work_and_do_none_of_it_twice(
    broker_url: str, database_url: str, parts: Bench
) -> None:
    async with (
        bench(broker_url, database_url, parts.topology) as other,
        working(parts),
        working(other),
    ):
        await parts.send(*(parts.topology.ping(f"a-{n}") for n in range(600)))
        found = await parts.ponged(600)
        await parts.settled()

    assert len({each.event["id"] for each in found}) == len(found) == 600


async def test_a_drain_finishes_what_is_in_hand_and_leaves_the_rest_to_the_next(
    broker_url: str, database_url: str, parts: Bench
) -> None:
    await parts.send(*(parts.topology.ping(f"a-{n}") for n in range(800)))
    async with working(parts) as first:
        await parts.ponged(1)
        await first.drain()
        info = await parts.consumer_info()
        assert info["num_ack_pending"] == 0
        assert info["num_redelivered"] == 0
    async with bench(broker_url, database_url, parts.topology) as other, working(other):
        await parts.ponged(800)
        info = await parts.settled()

    assert info["num_redelivered"] == 0
    assert info["delivered"]["consumer_seq"] == 800


async def test_a_raw_subscription_takes_everything_and_parks_nothing(parts: Bench) -> None:
    seen: list[bytes] = []

    async def keep(deliveries: Sequence[Delivery], _: Connection) -> None:
        seen.extend(each.body for each in deliveries)

    garbage = [b"", b"not json", b"\xff\x00", b"x" * 900_000]
    await parts.send(*(parts.topology.raw(body) for body in garbage))
    async with working(parts, raw=RawSubscription(parts.topology.beta, keep)):
        await parts.settled()

    assert seen == garbage
    assert await parts.dead_letters() == []
