"""What judges floods: it sees a server that collapses, one that shuts out, one that says yes."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from crowd import HONEST_MIN, OVERLOAD, Crowd, Flood, Phase, Rates, Site, Tides, tides

PHASE = Phase(warm_s=0.1, measured_s=0.3)
FLOODS = 5
CAPACITY_A_SECOND = 300.0
IN_HAND_MAX = 20
SAID = b"POST /orders HTTP/1.1\r\n\r\n"
ACCEPTED = b"HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\n\r\n{}"
REFUSED = b"HTTP/1.1 503 No\r\nRetry-After: %d\r\nContent-Length: 0\r\n\r\n"
FLOODER, MODEST = "127.0.0.1", "127.0.0.2"

Refuses = Callable[[str, int], bool]


def when_full(_address: str, in_hand: int) -> bool:
    return in_hand >= IN_HAND_MAX


def when_full_or_modest(address: str, in_hand: int) -> bool:
    return when_full(address, in_hand) or address == MODEST


def never(_address: str, _in_hand: int) -> bool:
    return False


class Toy:
    """A server that accepts so many orders a second; one in hand slows it by `drag`."""

    def __init__(self, refuses: Refuses, drag: float = 0.0, retry_after_s: int = 1) -> None:
        self._refuses, self._drag, self._retry_after_s = refuses, drag, retry_after_s
        self._in_hand: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        address = writer.get_extra_info("peername")[0]
        while await reader.read(len(SAID)):
            if self._refuses(address, self._in_hand.qsize()):
                writer.write(REFUSED % self._retry_after_s)
            else:
                self._in_hand.put_nowait(writer)
        writer.close()

    async def work(self) -> None:
        clock, spare, last = asyncio.get_running_loop().time, 0.0, 0.0
        while True:
            writer = await self._in_hand.get()
            # By the clock, not by sleeps, which a busy machine stretches.
            while spare < 1 + self._drag * self._in_hand.qsize():
                now = clock()
                spare += min(now - last, 0.1) * CAPACITY_A_SECOND
                last = now
                await asyncio.sleep(0.001)
            spare -= 1 + self._drag * self._in_hand.qsize()
            writer.write(ACCEPTED)


@asynccontextmanager
async def serving(toy: Toy) -> AsyncIterator[Site]:
    server = await asyncio.start_server(toy.serve, FLOODER, 0)
    working = asyncio.ensure_future(toy.work())
    host, port = server.sockets[0].getsockname()
    try:
        yield host, port
    finally:
        server.close()
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)


async def tried(toy: Toy, floods: int = 1) -> Tides:
    async with serving(toy) as site:

        async def calm() -> float:
            crowd = Crowd(site, FLOODER, SAID, patience_s=1.0)
            await crowd.connect(5)
            rates = await crowd.closed_loop(PHASE)
            await crowd.leave()
            return rates.accepted

        async def flood(sustained: float) -> Flood:
            crowd = Crowd(site, FLOODER, SAID, patience_s=1.0)
            modest = Crowd(site, MODEST, SAID, patience_s=1.0)
            await crowd.connect(100)
            await modest.connect(5)
            rates, _ = await asyncio.gather(
                crowd.open_loop(OVERLOAD * sustained, PHASE), modest.open_loop(20, PHASE)
            )
            await crowd.leave()
            await modest.leave()
            assert not crowd.odd
            honest = modest.counts["accepted"] / modest.counts["wanted"]
            return Flood(rates, crowd.counts["refused"], crowd.dropped(), honest)

        return await tides(calm, flood, floods)


async def test_a_server_that_takes_what_it_can_keeps_its_goodput() -> None:
    found = await tried(Toy(when_full), FLOODS)

    assert found.kept() > 0.8, found
    assert all(flood.refused for flood in found.floods)
    assert not any(flood.dropped for flood in found.floods)


async def test_a_server_that_slows_down_with_what_waits_is_noticed() -> None:
    found = await tried(Toy(when_full, drag=0.2))

    assert any("goodput fell" in each for each in found.complaints()), found


async def test_a_server_that_shuts_a_modest_caller_out_is_noticed() -> None:
    found = await tried(Toy(when_full_or_modest))

    assert found.honest() == 0.0
    assert any("modest caller" in each for each in found.complaints()), found


async def test_a_flood_that_nobody_refused_was_none() -> None:
    found = await tried(Toy(never))

    assert "no flood: nobody had to be refused" in found.complaints()


async def test_a_refusal_that_does_not_say_when_to_come_back_in_time_is_odd() -> None:
    async with serving(Toy(lambda *_: True, retry_after_s=31)) as site:
        crowd = Crowd(site, FLOODER, SAID, patience_s=1.0)
        await crowd.connect(1)
        await crowd.open_loop(20, PHASE)
        await crowd.leave()

    assert crowd.odd
    assert not crowd.counts["refused"]


def flood_of(accepted: float, *, honest: float = 1.0, wanted: float = 1_000, **other: int) -> Flood:
    whole = {"refused": 9, "dropped": 0, **other}
    return Flood(Rates(wanted, accepted, accepted, 9), honest=honest, **whole)


@pytest.mark.parametrize(
    ("accepted", "kept"),
    [
        ((90, 90, 90), 0.9),
        # One that something else spoilt, and one that was lucky, say nothing.
        ((10, 90, 300), 0.9),
        ((10, 10, 300), 0.1),
    ],
    ids=str,
)
def test_goodput_is_compared_with_the_calms_around_it_and_the_median_counts(
    accepted: tuple[float, ...], kept: float
) -> None:
    found = Tides([100] * 4, [flood_of(each) for each in accepted])

    assert found.kept() == pytest.approx(kept)


@pytest.mark.parametrize(
    ("borne", "well"),
    [
        ("www", True),
        ("wbww", True),
        ("wbwbw", True),
        ("whwhw", True),
        ("bhww", True),
        ("wbbbw", False),
        ("hwhwh", False),
    ],
)
async def test_floods_end_once_neither_median_can_be_bad(borne: str, well: bool) -> None:
    kinds = {"w": flood_of(100), "b": flood_of(10), "h": flood_of(100, honest=0.0)}
    left = iter(borne)

    async def calm() -> float:
        return 100

    async def flood(_: float) -> Flood:
        return kinds[next(left)]

    found = await tides(calm, flood, 5)

    assert len(found.floods) == len(borne)
    assert len(found.calms) == len(borne) + 1
    assert (not found.complaints()) == well


def test_a_machine_that_slows_down_slows_both() -> None:
    assert Tides([100, 50, 10], [flood_of(75), flood_of(30)]).kept() == 1.0


@pytest.mark.parametrize(
    ("flood", "complaint"),
    [
        (flood_of(79), "goodput fell to 0.79"),
        (flood_of(100, honest=HONEST_MIN - 0.01), "a modest caller had 0.89"),
        (flood_of(100, dropped=1), "1 connections were dropped"),
        (flood_of(100, wanted=500), "no flood: 500 wanted after 100 in calm"),
        (flood_of(100, refused=0), "no flood: nobody had to be refused"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_each_thing_that_is_wrong_is_said(flood: Flood, complaint: str) -> None:
    (said,) = Tides([100, 100], [flood]).complaints()

    assert said.startswith(complaint)
