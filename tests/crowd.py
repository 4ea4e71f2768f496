"""Crowds of callers on connections as cheap as can be, and how much of a flood gets through."""

import asyncio
import re
import statistics
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from benchmarks.crowd import head_of
from shopping import until

TICK_S = 0.005
ANSWERED_WITHIN_S = 90.0
# What is asked during a flood, as a multiple of what was accepted in the calm before it.
OVERLOAD = 10
GOODPUT_MIN = 0.8
HONEST_MIN = 0.9

ACCEPTED = re.compile(rb"HTTP/1.1 202 ")
# When to come back is said, in 1 to 30 seconds.
REFUSED = re.compile(
    rb"HTTP/1.1 (?:429|503) .*\r\nretry-after: (?:[1-9]|[12]\d|30)(?:\r|\Z)",
    re.DOTALL | re.IGNORECASE,
)

Site = tuple[str, int]


class Phase(NamedTuple):
    """How long a crowd is at it: until batches have grown to their size, and then measured."""

    warm_s: float
    measured_s: float


class Rates(NamedTuple):
    """A second, while measured. `wanted` by the clock; `said` as far as connections were free."""

    wanted: float
    said: float
    accepted: float  # In time.
    refused: float


class Flood(NamedTuple):
    """What a crowd wanted and got, and the share of a modest caller's orders accepted in time."""

    rates: Rates
    refused: int
    dropped: int  # Connections that ended, as none should.
    honest: float


class Tides(NamedTuple):
    """Orders accepted a second in each calm, and the floods between them: one calm more."""

    calms: Sequence[float]
    floods: Sequence[Flood]

    def shares(self) -> list[float]:
        """The share of the goodput that each flood leaves, against the calms around it.

        What else the machine does meanwhile slows a flood and its calms alike.
        """
        around = zip(self.calms, self.calms[1:], strict=False)
        return [
            flood.rates.accepted / statistics.mean(calms)
            for flood, calms in zip(self.floods, around, strict=True)
        ]

    def kept(self) -> float:
        """The median share."""
        return statistics.median(self.shares())

    def honest(self) -> float:
        """The median share of a modest caller's orders that were accepted in time."""
        return statistics.median(flood.honest for flood in self.floods)

    def decided(self, floods: int) -> bool:
        """Whether so many are well borne that neither median of `floods` can be bad any more."""
        most = floods // 2 + 1
        kept = sum(share >= GOODPUT_MIN for share in self.shares())
        honest = sum(flood.honest >= HONEST_MIN for flood in self.floods)
        return min(kept, honest) >= most

    def complaints(self) -> list[str]:
        """What is wrong with how the floods were borne; or with the floods."""
        wrong = []
        if (kept := self.kept()) < GOODPUT_MIN:
            wrong.append(f"goodput fell to {kept:.2f} of the calm's")
        if (honest := self.honest()) < HONEST_MIN:
            wrong.append(f"a modest caller had {honest:.2f} of its orders accepted")
        if dropped := sum(flood.dropped for flood in self.floods):
            wrong.append(f"{dropped} connections were dropped")
        for calm, flood in zip(self.calms, self.floods, strict=False):
            wanted = flood.rates.wanted
            if wanted < 0.9 * OVERLOAD * calm:
                wrong.append(f"no flood: {wanted:.0f} wanted after {calm:.0f} in calm")
            if not flood.refused:
                wrong.append("no flood: nobody had to be refused")
        return wrong


class Line(asyncio.Protocol):
    """One connection: it says an order, and hands on the answer."""

    def __init__(self, said: bytes, answered: Callable[["Line", bytes], None]) -> None:
        self._said, self._answered = said, answered
        self._heard = b""
        self._transport: asyncio.Transport | None = None
        self.said_at: float | None = None  # None while there is nothing to be answered.
        self.dropped = False
        self._hung_up = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def post(self, now: float) -> None:
        """Say the order, once the last answer is here."""
        assert self._transport is not None
        self.said_at = now
        self._transport.write(self._said)

    def data_received(self, data: bytes) -> None:
        self._heard += data
        if (head := head_of(self._heard)) is not None:
            self._heard = b""
            self._answered(self, head)

    def connection_lost(self, _: Exception | None) -> None:
        self.dropped = not self._hung_up

    def hang_up(self) -> None:
        assert self._transport is not None
        self._hung_up = True
        self._transport.close()


class Crowd:
    """Many connections from one address. An answer later than `patience_s` is no use to it."""

    def __init__(self, site: Site, address: str, said: bytes, patience_s: float) -> None:
        self._site, self._address, self._said = site, address, said
        self._patience_s = patience_s
        # wanted, said, accepted (in time), late (accepted, but not in time), refused
        self.counts: Counter[str] = Counter()
        self.odd: list[bytes] = []  # Answers that are neither a 202 nor a refusal as promised.
        self.lines: list[Line] = []
        self._free: deque[Line] = deque()
        self._again = False

    async def connect(self, count: int) -> None:
        """Come with so many connections."""
        loop = asyncio.get_running_loop()
        for _ in range(count):
            _, line = await loop.create_connection(
                lambda: Line(self._said, self._answered),
                *self._site,
                local_addr=(self._address, 0),
            )
            self.lines.append(line)
        self._free.extend(self.lines)

    def _post(self, line: Line) -> None:
        self.counts["said"] += 1
        line.post(asyncio.get_running_loop().time())

    def _answered(self, line: Line, head: bytes) -> None:
        assert line.said_at is not None
        took_s, line.said_at = asyncio.get_running_loop().time() - line.said_at, None
        if ACCEPTED.match(head):
            self.counts["accepted" if took_s <= self._patience_s else "late"] += 1
        elif REFUSED.match(head):
            self.counts["refused"] += 1
        else:
            self.odd.append(head)
        if self._again:
            self._post(line)
        else:
            self._free.append(line)

    async def closed_loop(self, phase: Phase) -> Rates:
        """Each says its next order when it has an answer."""
        self._again = True
        while self._free:
            self._post(self._free.popleft())
        await asyncio.sleep(phase.warm_s)
        rates = await self._measured(asyncio.sleep(phase.measured_s))
        self._again = False
        return rates

    async def open_loop(self, a_second: float, phase: Phase) -> Rates:
        """Say orders by the clock, whatever comes back; one with no connection free is lost."""
        await self._by_clock(a_second, phase.warm_s)
        return await self._measured(self._by_clock(a_second, phase.measured_s))

    async def _by_clock(self, a_second: float, seconds: float) -> None:
        clock = asyncio.get_running_loop().time
        began, wanted = clock(), 0
        while (passed := clock() - began) < seconds:
            while wanted < int(passed * a_second):
                wanted += 1
                if self._free:
                    self._post(self._free.popleft())
            await asyncio.sleep(TICK_S)
        self.counts["wanted"] += wanted

    async def _measured(self, work: Awaitable[None]) -> Rates:
        clock, before = asyncio.get_running_loop().time, self.counts.copy()
        began = clock()
        await work
        took_s = clock() - began
        return Rates(*((self.counts[name] - before[name]) / took_s for name in Rates._fields))

    async def leave(self) -> None:
        """Hear every answer, and hang up."""

        async def all_answered() -> bool:
            return all(line.said_at is None or line.dropped for line in self.lines)

        await until(all_answered, ANSWERED_WITHIN_S)
        for line in self.lines:
            if not line.dropped:
                line.hang_up()

    def dropped(self) -> int:
        """How many connections ended although nobody here hung up."""
        return sum(line.dropped for line in self.lines)

    def all_accepted(self) -> int:
        """Orders answered with 202, in time or not."""
        return self.counts["accepted"] + self.counts["late"]


async def tides(
    calm: Callable[[], Awaitable[float]], flood: Callable[[float], Awaitable[Flood]], floods: int
) -> Tides:
    """Take turns, a calm at both ends; a flood is told how much was accepted in the last calm.

    There are `floods` of them, or fewer: until the rest could make neither median bad.
    """
    calms = [await calm()]
    between: list[Flood] = []
    while len(between) < floods and not Tides(calms, between).decided(floods):
        between.append(await flood(calms[-1]))
        calms.append(await calm())
    return Tides(calms, between)
