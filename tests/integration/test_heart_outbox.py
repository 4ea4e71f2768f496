"""The outbox on real parts: whatever was committed travels, once by id, in order."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest

from heart_parts import TRACE_ID, Bench, Pong, bench, until
from ironcart.embedded.nats_server import NatsServer
from ironcart.toolkit.broker import publish
from ironcart.toolkit.history import Recorded, outbox
from ironcart.toolkit.outcomes import Fact, Unavailable
from ironcart.toolkit.telemetry import TraceContext

LONG_AGO = "UPDATE batches SET recorded_at = now() - interval '1 minute', claimed_at = NULL"


@pytest.fixture
async def parts(broker_url: str, database_url: str) -> AsyncIterator[Bench]:
    async with bench(broker_url, database_url) as found:
        yield found


def facts(name: str, *versions: int) -> list[Fact]:
    return [Fact(name, version, Pong(name, version)) for version in versions]


async def truth(parts: Bench) -> dict[str, int]:
    """The sequence of every event in the stream; no id is there twice."""
    found = await parts.pongs()
    by_id = {each.event["id"]: each.seq for each in found}
    assert len(by_id) == len(found)
    return by_id


async def versions(parts: Bench, name: str) -> list[int]:
    found = await parts.pongs()
    return [each.event["version"] for each in found if each.event["aggregate_id"] == name]


async def test_the_fast_path_publishes_and_marks_what_is_handed_over(parts: Bench) -> None:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(parts.outbox.run_fast_path())
        commits = [await parts.commit(*facts(name, 1, 2, 3)) for name in "abcdefgh"]
        await asyncio.gather(*(parts.outbox.publish(commit) for commit in commits))
        await parts.outbox.flushed()
        task.cancel()

    assert dict(await parts.marked()) == await truth(parts)
    assert await parts.count("events") == 24


async def test_what_is_committed_while_the_broker_is_away_travels_when_it_is_back(
    own_broker: NatsServer, database_url: str
) -> None:
    async with bench(own_broker.url, database_url) as parts, asyncio.TaskGroup() as group:
        loops = (parts.outbox.run_fast_path, parts.outbox.run_sweeper)
        tasks = [group.create_task(loop()) for loop in loops]
        own_broker.kill()

        async def lost() -> bool:
            return not parts.broker.connected

        await until(lost)
        for version in range(1, 21):
            commit = await parts.commit(*facts("a", version), *facts("b", version))
            await parts.outbox.publish(commit)  # Returns at once: left to the sweeper.
        assert await parts.count("batches", "first_seq IS NULL") == 20

        own_broker.start()
        claimed = await parts.marked()

        assert dict(claimed) == await truth(parts)
        assert len(claimed) == 40
        assert await versions(parts, "a") == list(range(1, 21))
        assert await versions(parts, "b") == list(range(1, 21))
        for task in tasks:
            task.cancel()


async def test_sequences_are_right_after_a_fallback_to_single_messages(parts: Bench) -> None:
    one = await parts.commit(*facts("a", 1, 2, 3, 4))
    await parts.commit(*facts("b", 1, 2, 3))
    # Published before, in another order and among others, but never marked.
    await publish(parts.broker, [one.messages[2]])
    await publish(parts.broker, [one.messages[0]])
    await parts.database.execute(LONG_AGO)

    await parts.outbox.sweep()

    assert dict(await parts.marked()) == await truth(parts)
    assert await parts.count("events", "stream_seq IS NOT NULL") == 4


async def test_two_sweepers_at_once_publish_each_event_once(
    broker_url: str, database_url: str, parts: Bench
) -> None:
    for version in range(1, 61):
        await parts.commit(*facts("a", version), *facts(f"b-{version}", 1))
    await parts.database.execute(LONG_AGO)

    async with bench(broker_url, database_url, parts.topology) as other:
        while await parts.count("batches", "first_seq IS NULL"):
            await asyncio.gather(parts.outbox.sweep(), other.outbox.sweep())

    assert dict(await parts.marked()) == await truth(parts)
    assert len(await truth(parts)) == 120
    assert await versions(parts, "a") == list(range(1, 61))


async def test_a_process_that_died_before_it_marked_costs_no_second_copy(parts: Bench) -> None:
    commits = [await parts.commit(*facts(name, 1, 2, 3)) for name in "abc"]
    await parts.outbox._publish(commits)
    before = await parts.marked()
    await parts.database.execute("UPDATE batches SET first_seq = NULL")
    await parts.database.execute(LONG_AGO)

    await parts.outbox.sweep()

    assert await parts.marked() == before
    assert dict(before) == await truth(parts)


async def test_what_was_just_committed_is_left_to_whoever_committed_it(parts: Bench) -> None:
    await parts.commit(*facts("a", 1))
    assert not await parts.outbox.sweep()
    assert await parts.pongs() == []


async def test_events_wait_for_room_in_a_full_stream(parts: Bench) -> None:
    name = parts.topology.pongs.name
    config = (await parts.broker.api(f"STREAM.INFO.{name}"))["config"]
    await parts.broker.api(f"STREAM.UPDATE.{name}", config | {"max_bytes": 2_000})
    async with asyncio.TaskGroup() as group:
        task = group.create_task(parts.outbox.run_fast_path())
        for version in range(1, 4):
            commit = await parts.commit(*facts("a", *range(version * 10, version * 10 + 8)))
            await parts.outbox.publish(commit)  # Left to the sweeper, and the fast path lives.
        assert await parts.count("batches", "first_seq IS NULL") >= 2

        await parts.broker.api(f"STREAM.UPDATE.{name}", config)
        await parts.database.execute(LONG_AGO)
        await parts.outbox.sweep()

        assert dict(await parts.marked()) == await truth(parts)
        assert len(await truth(parts)) == 24
        task.cancel()


async def test_a_commit_of_many_chunks_of_which_the_last_failed_is_finished_by_the_sweeper(
    parts: Bench,
) -> None:
    commit = await parts.commit(*facts("a", *range(1, 1_006)))
    await publish(parts.broker, commit.messages[:1_000])  # The first chunk, then a crash.
    await parts.database.execute(LONG_AGO)

    await parts.outbox.sweep()

    assert dict(await parts.marked()) == await truth(parts)
    assert await versions(parts, "a") == list(range(1, 1_006))


async def test_what_the_fast_path_has_in_hand_is_not_claimed_by_the_sweeper(parts: Bench) -> None:
    commit = await parts.commit(*facts("a", 1, 2))
    await parts.commit(*facts("b", 1))
    await parts.database.execute(LONG_AGO)
    assert parts.outbox.hand_over(commit) is not None  # Nobody runs the fast path: it hangs.

    await parts.outbox.sweep()

    assert set(await versions(parts, "b")) == {1}
    assert await versions(parts, "a") == []
    assert await parts.count("batches", "first_seq IS NULL AND claimed_at IS NULL") == 1


async def test_a_sweep_that_fails_gives_back_what_it_claimed(
    parts: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(broker: Any, messages: Any) -> list[int]:
        raise Unavailable("no answer")

    for version in range(1, 4):
        await parts.commit(*facts("a", version))
    await parts.database.execute(LONG_AGO)
    with monkeypatch.context() as patch:
        patch.setattr(outbox, "publish", away)
        with pytest.raises(Unavailable):
            await parts.outbox.sweep()

    assert await parts.count("batches", "claimed_at IS NULL") == 3
    await parts.outbox.sweep()
    assert dict(await parts.marked()) == await truth(parts)


async def test_a_commit_that_the_stream_refuses_holds_up_no_other(parts: Bench) -> None:
    context = TraceContext(TRACE_ID, "b7ad6b7169203331")
    subject = parts.topology.subjects["Pong"]
    too_large = Recorded(uuid.uuid4(), "bad", 1, "Pong", subject, context, b"x" * 1_000_001)
    await parts.commit(*facts("a", 1))
    async with parts.database.transaction() as connection:
        await parts.chassis.history.append(connection, [too_large])
    await parts.commit(*facts("a", 2))
    await parts.database.execute(LONG_AGO)

    await parts.outbox.sweep()

    assert await versions(parts, "a") == [1, 2]
    assert await parts.count("batches", "first_seq IS NULL") == 1
    assert any(line["event"] == "The stream refuses our events" for line in parts.logs)
