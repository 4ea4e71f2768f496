"""The door of POST /orders: counts who is inside, and turns away at once who would wait in vain."""

import time
from collections import Counter as Tally
from dataclasses import dataclass

from prometheus_client import Counter, Gauge

from ironcart.services.orders.handlers.accept import Request, Verdict
from ironcart.services.orders.handlers.admit import Limits, Load, refusal
from ironcart.services.orders.store import Store
from ironcart.toolkit.collector import Collector
from ironcart.toolkit.http import Problem
from ironcart.toolkit.http.problems import retry_after
from ironcart.toolkit.loop import Chassis
from ironcart.toolkit.loop.rounds import Rounds
from ironcart.toolkit.outcomes import LostRace, Unavailable

# While the database is away one order in this time is let through, to see whether it still is.
PROBE_EVERY_S = 0.5
LOOK_EVERY_S = 5.0
# Counting what is open costs at most this share of the time.
COUNT_SHARE_MAX = 0.02

refused = Counter("ironcart_orders_refused_total", "orders turned away at the door", ["reason"])
in_hand = Gauge("ironcart_orders_in_hand", "requests to place an order that have no answer yet")
open_orders = Gauge("ironcart_orders_open", "orders that have not ended, counted now and then")

Places = Collector[Request, Verdict]


@dataclass(slots=True)
class Doorstep:
    """What the door is told now and then, rather than asking for each order."""

    open_orders: int = 0
    stream_fill: float = 0.0


class Door:
    """Lets orders in; whoever is refused hears it before the body is read."""

    def __init__(self, collector: Places, doorstep: Doorstep, limits: Limits) -> None:
        self._collector, self._doorstep, self._limits = collector, doorstep, limits
        self._inside: Tally[str] = Tally()
        self._count = 0
        self._away_since: float | None = None
        self._probe_at = 0.0

    def enter(self, caller: str) -> "Inside | Problem":
        """Let `caller` place an order now, or say why not."""
        now = time.monotonic()
        away_s = None
        if self._away_since is not None and now < self._probe_at:
            away_s = now - self._away_since
        load = Load(
            in_hand=self._count,
            of_caller=self._inside[caller],
            callers=len(self._inside),
            commit_wait_s=self._collector.expected_wait_s(self._count),
            away_s=away_s,
            open_orders=self._doorstep.open_orders,
            stream_fill=self._doorstep.stream_fill,
        )
        found = refusal(load, self._limits)
        if found is not None:
            refused.labels(found.reason).inc()
            return Problem(found.status, found.detail, headers=retry_after(found.retry_after_s))
        if self._away_since is not None:
            self._probe_at = now + PROBE_EVERY_S
        self._add(caller, 1)
        return Inside(self, caller)

    def _add(self, caller: str, count: int) -> None:
        self._count += count
        in_hand.set(self._count)
        self._inside[caller] += count
        if not self._inside[caller]:
            del self._inside[caller]

    def committed(self) -> None:
        """The database answers."""
        self._away_since = None

    def failed(self, error: Unavailable) -> None:
        """A commit failed: until one succeeds, few are let through."""
        if isinstance(error, LostRace):
            return
        now = time.monotonic()
        if self._away_since is None:
            self._away_since = now
        self._probe_at = now + PROBE_EVERY_S


class Inside:
    """A request in hand: until it has its answer, or waits for the order to end."""

    def __init__(self, door: Door, caller: str) -> None:
        self._door: Door | None = door
        self._caller = caller

    def leave(self) -> None:
        """Be no longer counted as in hand."""
        if self._door is not None:
            self._door._add(self._caller, -1)  # noqa: SLF001 - the two are one
            self._door = None


def looking(chassis: Chassis, doorstep: Doorstep, stream: str, open_max: int) -> Rounds:
    """Keep a doorstep up to date: how full the stream is, and how many orders are open."""
    count_at = 0.0

    async def look() -> bool:
        nonlocal count_at
        if (began := time.monotonic()) >= count_at:
            async with chassis.database.acquire() as connection:
                doorstep.open_orders = await Store(connection).open(open_max)
            open_orders.set(doorstep.open_orders)
            count_at = time.monotonic() + (time.monotonic() - began) / COUNT_SHARE_MAX
        info = await chassis.broker.api(f"STREAM.INFO.{stream}")
        doorstep.stream_fill = info["state"]["bytes"] / max(1, info["config"]["max_bytes"])
        return False

    return Rounds("look at the backlog", LOOK_EVERY_S, look)
