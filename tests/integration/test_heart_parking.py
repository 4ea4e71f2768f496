"""What cannot be dealt with is set aside whole, after it was tried, and hurts no neighbour."""

import json
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from heart_parts import QUICK, TRACE_ID, Bench, Kept, Pong, answered, bench, until, working
from ironcart.toolkit.broker import Outgoing
from ironcart.toolkit.database import Transaction
from ironcart.toolkit.loop import Message, Releases, consumer, releases
from ironcart.toolkit.outcomes import Done, Fact, Outcome, Park, Poison, Refused, Retry, Unavailable

NEIGHBOURS = 60


@pytest.fixture
async def parts(broker_url: str, database_url: str) -> AsyncIterator[Bench]:
    async with bench(broker_url, database_url) as found:
        yield found


class Moody:
    """Does what each Ping's action says, and counts how often it was asked to."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()

    async def __call__(
        self, messages: Sequence[Message], transaction: Transaction
    ) -> list[Outcome]:
        return [self.deal_with(message) for message in messages]

    def deal_with(self, message: Message) -> Outcome:
        action, name = message.data.action, message.data.name
        self.asked[name] += 1
        match action:
            case "raise":
                raise KeyError("a bug\nin\x00 two lines, naïve")
            case "poison":
                raise Poison("these bytes make no sense")
            case "park":
                return Park("needs a person")
            case "retry":
                return Retry("not yet", 0.01)
            case "twice" if self.asked[name] < 3:
                return Retry("not yet")
            case "large":
                return Done((Fact(name, 1, Pong(name, 1, "x" * 1_000_000)),))
        return answered(message)


async def letters(parts: Bench, count: int) -> list[Kept]:
    async def enough() -> Any:
        found = await parts.dead_letters()
        return found if len(found) >= count else None

    await until(enough)
    await parts.settled()
    return await parts.dead_letters()


def among_neighbours(parts: Bench, *bad: Outgoing) -> list[Outgoing]:
    good = [parts.topology.ping(f"good-{n}") for n in range(NEIGHBOURS)]
    middle = NEIGHBOURS // 2
    return [*good[:middle], *bad, *good[middle:]]


async def names_in_inbox(parts: Bench) -> int:
    return await parts.count("inbox")


async def test_a_handler_that_raises_for_one_message_hurts_none_of_its_neighbours(
    parts: Bench,
) -> None:
    handle, bad = Moody(), parts.topology.ping("bad", action="raise")
    await parts.send(*among_neighbours(parts, bad))
    async with working(parts, handle):
        (letter,) = await letters(parts, 1)
        pongs = await parts.ponged(NEIGHBOURS)

    assert len({each.event["aggregate_id"] for each in pongs}) == len(pongs) == NEIGHBOURS
    assert letter.body == bad.body
    assert letter.subject == "dlq.beta.Ping"
    assert letter.headers["Ironcart-Reason"] == "exhausted after 8 attempts"
    assert letter.headers["Ironcart-Error"].startswith("unexpected KeyError: ")
    assert letter.headers["Ironcart-Attempts"] == "8"
    assert letter.headers["Ironcart-Service"] == "beta"
    assert letter.headers["Ironcart-Stream-Sequence"] == str(NEIGHBOURS // 2 + 1)
    assert json.loads(letter.headers["Ironcart-Headers"])["traceparent"].split("-")[1] == TRACE_ID
    assert await names_in_inbox(parts) == NEIGHBOURS + 1
    row = await parts.database.fetchrow("SELECT attempts, error FROM failures")
    assert row is not None
    assert row["attempts"] == QUICK.attempts_max == 8
    assert dict(await parts.marked()) == {each.event["id"]: each.seq for each in pongs}


async def test_retry_is_counted_leaves_no_trace_and_succeeds_later(parts: Bench) -> None:
    handle = Moody()
    await parts.send(*among_neighbours(parts, parts.topology.ping("late", action="twice")))
    async with working(parts, handle):
        await parts.ponged(NEIGHBOURS + 1)
        info = await parts.settled()

    assert handle.asked["late"] == 3
    assert handle.asked["good-0"] == 1
    assert info["delivered"]["consumer_seq"] == NEIGHBOURS + 3
    assert await names_in_inbox(parts) == NEIGHBOURS + 1
    assert await parts.dead_letters() == []


async def test_retry_without_end_is_parked_when_its_attempts_are_used_up(parts: Bench) -> None:
    handle = Moody()
    await parts.send(*among_neighbours(parts, parts.topology.ping("never", action="retry")))
    async with working(parts, handle):
        (letter,) = await letters(parts, 1)

    assert handle.asked["never"] == 8
    assert letter.headers["Ironcart-Reason"] == "exhausted after 8 attempts"
    assert letter.headers["Ironcart-Error"] == "not yet"
    assert await names_in_inbox(parts) == NEIGHBOURS + 1


@pytest.mark.parametrize("action", ["park", "poison"])
async def test_what_can_never_succeed_is_parked_at_once(parts: Bench, action: str) -> None:
    handle = Moody()
    bad = [parts.topology.ping(f"bad-{n}", action=action) for n in range(3)]
    await parts.send(*among_neighbours(parts, *bad))
    async with working(parts, handle):
        found = await letters(parts, 3)
        pongs = await parts.ponged(NEIGHBOURS)
        info = await parts.settled()

    assert sorted(each.body for each in found) == sorted(each.body for each in bad)
    reason = {"park": "needs a person", "poison": "these bytes make no sense"}[action]
    assert {each.headers["Ironcart-Reason"] for each in found} == {reason}
    assert {each.headers["Ironcart-Attempts"] for each in found} == {"0"}
    assert len(pongs) == NEIGHBOURS
    assert await names_in_inbox(parts) == NEIGHBOURS + 3
    assert info["delivered"]["consumer_seq"] == NEIGHBOURS + 3


async def test_what_is_no_event_or_about_something_else_is_parked_unseen(parts: Bench) -> None:
    topology, handle = parts.topology, Moody()
    good = topology.ping("a").body
    fields = json.loads(good)
    bad = [
        b"",
        b"\xff\xfe",
        good[:-2],
        json.dumps(fields | {"aggregate_id": "another"}).encode(),
        json.dumps(fields | {"type": "Pong"}).encode(),
        json.dumps(fields | {"data": {"name": 1}}).encode(),
        json.dumps(fields | {"id": "a\x00b"}).encode(),
        b"[" * 100_000,
    ]
    await parts.send(*among_neighbours(parts, *(topology.raw(body) for body in bad)))
    async with working(parts, handle):
        found = await letters(parts, len(bad))
        await parts.ponged(NEIGHBOURS)

    assert sorted(each.body for each in found) == sorted(bad)
    kinds = {each.body: each.subject.removeprefix("dlq.beta.") for each in found}
    assert kinds[bad[3]] == kinds[bad[5]] == "Ping"
    assert {kinds[body] for body in (bad[0], bad[1], bad[2], bad[4], bad[6], bad[7])} == {"unknown"}
    reasons = {each.body: each.headers["Ironcart-Reason"] for each in found}
    assert reasons[bad[3]] == "aggregate_id is not what the data is about"
    assert handle.asked["a"] == 0


async def test_an_event_too_large_to_travel_is_parked_with_what_caused_it(parts: Bench) -> None:
    await parts.send(*among_neighbours(parts, parts.topology.ping("big", action="large")))
    async with working(parts, Moody()):
        (letter,) = await letters(parts, 1)
        pongs = await parts.ponged(NEIGHBOURS)

    assert "too large to travel" in letter.headers["Ironcart-Reason"]
    assert len(pongs) == NEIGHBOURS
    assert await parts.count("events") == NEIGHBOURS


async def test_the_largest_message_a_stream_takes_can_still_be_parked(parts: Bench) -> None:
    headers = {f"Header-{n}": "ü" * 60 for n in range(40)}
    body = b"x" * (1_000_000 - 10_000)
    await parts.send(parts.topology.raw(body, headers))
    async with working(parts, Moody()):
        (letter,) = await letters(parts, 1)

    assert letter.body == body
    assert json.loads(letter.headers["Ironcart-Headers"])["Header-7"]


async def test_a_letter_that_cannot_be_kept_at_once_is_kept_later(
    parts: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(broker: Any, letter: Outgoing) -> int:
        raise Unavailable("the stream of dead letters is away")

    monkeypatch.setattr(consumer, "park", away)
    monkeypatch.setattr(releases, "LETTER_AFTER_S", 0.0)
    await parts.send(parts.topology.ping("bad", action="park"))
    async with working(parts, Moody()):
        await parts.settled()
        assert await parts.dead_letters() == []
        await Releases(parts.chassis, [parts.subscription(Moody())]).step()
        (letter,) = await letters(parts, 1)

    assert letter.headers["Ironcart-Reason"] == "needs a person"
    row = await parts.database.fetchrow("SELECT letter_seq FROM parked")
    assert row is not None
    assert row["letter_seq"] == letter.seq


async def test_a_refusal_in_a_handler_ends_the_service_and_parks_nothing(parts: Bench) -> None:
    async def handle(messages: Sequence[Message], _: Transaction) -> list[Outcome]:
        raise Refused("permission denied")

    await parts.send(parts.topology.ping("a"), parts.topology.ping("b"))
    with pytest.raises(BaseExceptionGroup) as caught:
        async with working(parts, handle) as running:
            await running.task

    assert caught.group_contains(Refused)
    assert await parts.count("failures") == await names_in_inbox(parts) == 0
    assert await parts.dead_letters() == []
