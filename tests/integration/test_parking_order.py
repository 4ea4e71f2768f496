"""What is set aside keeps its place: later events of its aggregate wait, and go on in order."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

import pytest

from heart_parts import Bench, Ping, answered, bench, until, working
from ironcart.toolkit.broker import Outgoing
from ironcart.toolkit.database import Transaction
from ironcart.toolkit.loop import Message, Releases
from ironcart.toolkit.outcomes import Outcome, Park


class Picky:
    """Parks what it was told to, and remembers in which order it dealt with the rest."""

    def __init__(self, *parks: str) -> None:
        self.parks = set(parks)
        self.dealt_with: list[str] = []

    async def __call__(
        self, messages: Sequence[Message], transaction: Transaction
    ) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for message in messages:
            data: Ping = message.data
            place = f"{data.name}{data.n}"
            if place in self.parks:
                outcomes.append(Park("needs a person"))
            else:
                transaction.after_commit.append(partial(self.dealt_with.append, place))
                outcomes.append(answered(message))
        return outcomes


@pytest.fixture
async def parts(broker_url: str, database_url: str) -> AsyncIterator[Bench]:
    async with bench(broker_url, database_url) as found:
        yield found


def pings(parts: Bench, *places: str) -> list[Outgoing]:
    return [parts.topology.ping(place[0], int(place[1:])) for place in places]


async def take(parts: Bench, handle: Picky, *messages: Outgoing) -> None:
    async with working(parts, handle) as at_work:
        await parts.send(*messages)
        await parts.settled()
        await at_work.drain()


async def states(parts: Bench) -> list[str]:
    rows = await parts.database.fetch("SELECT aggregate_id, state FROM parked ORDER BY no")
    return [f"{row['aggregate_id']} {row['state']}" for row in rows]


async def act(parts: Bench, state: str, **columns: Any) -> None:
    """What the command line does to the first parked message."""
    await parts.database.execute(
        "UPDATE parked SET state = $1, edited = $2 WHERE no ="
        " (SELECT min(no) FROM parked WHERE state = 'parked')",
        state,
        columns.get("edited"),
    )


async def release(parts: Bench, *handles: Picky) -> None:
    """Let the loops of all replicas run until nothing is left that may go on."""
    loops = [Releases(parts.chassis, [parts.subscription(handle)]) for handle in handles]
    async with asyncio.TaskGroup() as group:
        fast_path = group.create_task(parts.outbox.run_fast_path())

        async def rest() -> bool:
            await asyncio.gather(*(loop.step() for loop in loops))
            first = "SELECT DISTINCT ON (aggregate_id) state FROM parked"
            rows = await parts.database.fetch(
                f"{first} WHERE state IN ('parked', 'waiting', 'released')"
                " ORDER BY aggregate_id, no"
            )
            return all(row["state"] == "parked" for row in rows)

        await until(rest)
        fast_path.cancel()


async def test_later_events_of_a_parked_one_wait_even_in_the_same_batch(parts: Bench) -> None:
    handle = Picky("a2")
    await take(parts, handle, *pings(parts, "a1", "b1", "a2", "b2", "a3", "a4", "b3"))
    assert handle.dealt_with == ["a1", "b1", "b2", "b3"]
    assert await states(parts) == ["a parked", "a waiting", "a waiting"]
    await take(parts, handle, *pings(parts, "a5", "c1"))
    assert await states(parts) == ["a parked", "a waiting", "a waiting", "a waiting"]
    assert "c1" in handle.dealt_with


async def test_a_replay_deals_with_it_and_then_with_all_behind_it_in_order(parts: Bench) -> None:
    await take(parts, Picky("a2"), *pings(parts, "a1", "a2", "a3", "a4"))
    await act(parts, "released")
    mended = Picky()
    await release(parts, mended)
    assert mended.dealt_with == ["a2", "a3", "a4"]
    assert await states(parts) == ["a replayed"] * 3
    await take(parts, mended, *pings(parts, "a5"))
    versions = [each.event["version"] for each in await parts.pongs()]
    assert versions == [1, 2, 3, 4, 5]


async def test_what_parks_again_stops_those_behind_it(parts: Bench) -> None:
    await take(parts, Picky("a1"), *pings(parts, "a1", "a2", "a3"))
    await act(parts, "released")
    await release(parts, still := Picky("a2"))
    assert still.dealt_with == ["a1"]
    assert await states(parts) == ["a replayed", "a parked", "a waiting"]


async def test_a_discarded_one_lets_those_behind_it_go_on(parts: Bench) -> None:
    await take(parts, Picky("a1"), *pings(parts, "a1", "a2", "a3"))
    await act(parts, "discarded")
    await release(parts, handle := Picky())
    assert handle.dealt_with == ["a2", "a3"]
    assert await states(parts) == ["a discarded", "a replayed", "a replayed"]


async def test_a_poison_is_waited_for_by_its_aggregate_and_can_be_edited(parts: Bench) -> None:
    (good,) = pings(parts, "a2")
    fields = json.loads(good.body)
    bad = json.dumps(fields | {"data": {"name": 7}}).encode()
    handle = Picky()
    first, *behind = pings(parts, "a1", "a3")
    await take(parts, handle, first, parts.topology.raw(bad), *behind)
    assert handle.dealt_with == ["a1"]
    assert await states(parts) == ["a parked", "a waiting"]
    await act(parts, "released")
    await release(parts, handle)
    assert await states(parts) == ["a parked", "a waiting"], "it still cannot be read"
    await act(parts, "released", edited=good.body)
    await release(parts, handle)
    assert handle.dealt_with == ["a1", "a2", "a3"]
    row = await parts.database.fetchrow("SELECT body FROM parked ORDER BY no LIMIT 1")
    assert row is not None
    assert row["body"] == bad, "what came is kept for ever"


async def test_a_waiting_or_parked_event_that_is_delivered_again_is_dealt_with_once(
    parts: Bench,
) -> None:
    await take(parts, Picky("a1"), *pings(parts, "a1", "a2"))
    again = [
        Outgoing(f"{n}", each.subject, each.body, {})
        for n, each in enumerate(pings(parts, "a1", "a2"))
    ]
    await take(parts, Picky("a1"), *again)
    await act(parts, "released")
    await release(parts, handle := Picky())
    assert handle.dealt_with == ["a1", "a2"]


async def test_a_poison_that_is_published_again_is_set_aside_once(parts: Bench) -> None:
    (good,) = pings(parts, "a2")
    fields = json.loads(good.body)
    bad = json.dumps(fields | {"data": {"name": 7}}).encode()
    for _ in range(2):
        await take(parts, Picky(), parts.topology.raw(bad))
    assert await states(parts) == ["a parked"]
    other = json.dumps(fields | {"data": {"name": 8}}).encode()
    await take(parts, Picky(), parts.topology.raw(other))
    assert await states(parts) == ["a parked", "a parked"], "other bytes are for a person to see"


async def test_two_replicas_release_in_order_and_nothing_twice(parts: Bench) -> None:
    places = [f"{name}{n}" for n in range(1, 6) for name in "abcd"]
    await take(parts, Picky("a1", "b1", "c1", "d1"), *pings(parts, *places))
    await parts.database.execute("UPDATE parked SET state = 'released' WHERE state = 'parked'")
    handle = Picky()
    await release(parts, handle, handle)
    assert sorted(handle.dealt_with) == sorted(places)
    for name in "abcd":
        mine = [place for place in handle.dealt_with if place[0] == name]
        assert mine == sorted(mine)
