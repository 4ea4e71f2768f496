"""The payment gateway away for minutes while orders keep coming, and how fast the rest drains."""

import asyncio
import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from benchmarks.bed import Bed, CannotMeasure
from benchmarks.crowd import Crowd
from benchmarks.endtoend import CONNECTIONS, closed, warm_up

LASTS_S = 300.0
# Of what the system can do: well inside it, and enough to leave a backlog that counts.
SHARE = 0.3
LOOK_EVERY_S = 1.0
BEFORE_S = 10.0
# A backlog this much of one second's arrivals is no backlog.
DRAINED_SHARE = 1.0
# Of the outage: what drains no faster than orders come would never end.
DRAIN_MAX = 5.0
DRAIN_S_MIN = 120.0


@dataclass(frozen=True, slots=True)
class Look:
    """Orders accepted and ended so far, `at` seconds after sending began."""

    at: float
    accepted: float
    ended: float


@dataclass(frozen=True, slots=True)
class Outage:
    """One outage: `began_s`, `healed_s` and `drained_s` count from when sending began."""

    rate: float
    began_s: float
    healed_s: float
    drained_s: float
    looks: list[Look]

    @property
    def resumed_s(self) -> float:
        """When the first order ended after the gateway was back: breakers wait before they look."""
        there = at(self.looks, self.healed_s)
        return next(
            (look.at for look in self.looks if look.at > there.at and look.ended > there.ended),
            self.drained_s,
        )

    @property
    def backlog(self) -> float:
        """Orders accepted and not ended when the gateway was back."""
        there = at(self.looks, self.healed_s)
        return there.accepted - there.ended

    def multiple(self, since_s: float) -> float:
        """Orders ended a second from `since_s` until it was drained, over those that came."""
        first, last = at(self.looks, since_s), at(self.looks, self.drained_s)
        came, went = last.accepted - first.accepted, last.ended - first.ended
        return went / came if came > 0 else 0.0

    def lines(self) -> list[str]:
        """Return it for a person."""
        lasted_s, drained_s = self.healed_s - self.began_s, self.drained_s - self.healed_s
        waited_s = self.resumed_s - self.healed_s
        whole = self.multiple(self.healed_s)
        return [
            f"  gateway away for {lasted_s:.0f} s at {self.rate:.0f} orders a second",
            f"  {self.backlog:,.0f} orders waited when it was back, others kept coming",
            f"  the first one ended {waited_s:.1f} s later, none was left after {drained_s:.1f} s",
            f"  drained at {self.multiple(self.resumed_s):.2f} times the rate of arrival",
            f"  {whole:.2f} times when the breaker's wait is counted, too",
        ]

    def as_json(self) -> dict[str, Any]:
        """Return it for a machine."""
        return {
            "rate": round(self.rate, 1),
            "began_s": round(self.began_s, 1),
            "healed_s": round(self.healed_s, 1),
            "resumed_s": round(self.resumed_s, 1),
            "drained_s": round(self.drained_s, 1),
            "backlog": self.backlog,
            "multiple": round(self.multiple(self.resumed_s), 2),
            "multiple_with_wait": round(self.multiple(self.healed_s), 2),
            "looks": [[round(look.at, 1), look.accepted, look.ended] for look in self.looks],
        }


def at(looks: Sequence[Look], seconds: float) -> Look:
    """The last look not later than that, or the first one."""
    return next((look for look in reversed(looks) if look.at <= seconds), looks[0])


def counted(text: str, name: str) -> float:
    """Sum a counter over its labels, as `/metrics` writes it."""
    lines = (line for line in text.splitlines() if line.startswith((f"{name} ", f"{name}{{")))
    return sum(float(line.split()[-1]) for line in lines)


async def measure(
    lasts_s: float = LASTS_S, *, rate: float | None = None, seconds: float = 20.0
) -> Outage:
    """Measure one outage; without a `rate` a spell of `seconds` finds what the system can do."""
    async with Bed() as bed:
        await warm_up(bed)
        if rate is None:
            most = await closed(bed, seconds, CONNECTIONS)
            rate = SHARE * most.per_minute / 60
        return await _strike(bed, rate, lasts_s)


async def _strike(bed: Bed, rate: float, lasts_s: float) -> Outage:
    longest_s = BEFORE_S + lasts_s + max(DRAIN_S_MIN, DRAIN_MAX * lasts_s)
    crowd = Crowd(bed.url("orders"), bed.basket("outage"))
    watch = _Watch(bed)
    sending = asyncio.create_task(_send(crowd, rate, longest_s))
    try:
        await watch.until(BEFORE_S)
        began_s = watch.now()
        await _fault(bed, lasts_s + longest_s)
        await watch.until(began_s + lasts_s)
        await _heal(bed)
        healed_s = watch.now()
        while not watch.drained(rate):
            if watch.now() > longest_s:
                raise CannotMeasure(f"not drained {longest_s - healed_s:.0f} s after the outage")
            await watch.until(watch.now() + LOOK_EVERY_S)
    finally:
        sending.cancel()
        await sending
    crowd.hang_up()
    return Outage(rate, began_s, healed_s, watch.looks[-1].at, watch.looks)


async def _send(crowd: Crowd, rate: float, seconds: float) -> None:
    with contextlib.suppress(asyncio.CancelledError):
        await crowd.open_loop(rate, seconds)


class _Watch:
    """Reads what orders says of itself, once a second."""

    def __init__(self, bed: Bed) -> None:
        self._bed = bed
        self._began = time.monotonic()
        self._first: tuple[float, float] | None = None
        self.looks: list[Look] = []

    def now(self) -> float:
        """Seconds since watching began."""
        return time.monotonic() - self._began

    async def until(self, seconds: float) -> None:
        """Look once a second until then."""
        while True:
            await self._look()
            if (left_s := seconds - self.now()) <= 0:
                return
            await asyncio.sleep(min(LOOK_EVERY_S, left_s))

    def drained(self, rate: float) -> bool:
        """Whether no more is open than a second brings."""
        last = self.looks[-1]
        return last.accepted - last.ended <= max(1.0, DRAINED_SHARE * rate)

    async def _look(self) -> None:
        text, now = await self._bed.metrics("orders"), self.now()
        found = (
            counted(text, "ironcart_orders_accepted_total"),
            counted(text, "ironcart_orders_finished_total"),
        )
        if self._first is None:
            self._first = found
        self.looks.append(Look(now, found[0] - self._first[0], found[1] - self._first[1]))


async def _fault(bed: Bed, seconds: float) -> None:
    fault = {"mode": "down", "rate": 1.0, "seconds": seconds}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{bed.run['sandbox']['url']}/sandbox/faults", json=fault) as answer,
    ):
        answer.raise_for_status()


async def _heal(bed: Bed) -> None:
    async with (
        aiohttp.ClientSession() as session,
        session.delete(f"{bed.run['sandbox']['url']}/sandbox/faults") as answer,
    ):
        answer.raise_for_status()
