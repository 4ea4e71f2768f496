"""Accept only: what the HTTP edge takes while every service behind it is frozen."""

import contextlib
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks.bed import SERVICES, Bed, CannotMeasure
from benchmarks.crowd import Crowd
from benchmarks.endtoend import CONNECTIONS, US_PER_S, warm_up

ROUNDS = 3
# With nothing behind it that ends, accepting would give way to it for ever.
NO_GIVING_WAY = ("ironcart.services.orders.handlers.admit:GIVE_WAY_S_MAX=0.0",)
BEHIND = tuple(name for name in SERVICES if name != "orders")


@dataclass(frozen=True, slots=True)
class Edge:
    """Orders answered with 202 a second, spell by spell, and CPU microseconds of each order."""

    per_second: list[float]
    cpu_us_an_order: Mapping[str, float]
    statuses: dict[str, int]

    @property
    def median_per_second(self) -> float:
        """The spell in the middle."""
        return median(self.per_second)

    def lines(self) -> list[str]:
        """Return it for a person."""
        spells = ", ".join(f"{rate:,.0f}" for rate in self.per_second)
        parts = ", ".join(f"{name} {used:,.0f}" for name, used in self.cpu_us_an_order.items())
        return [
            f"  accept only: {self.median_per_second:,.0f} orders a second (spells: {spells})",
            f"  answers {self.statuses}; CPU us an order: {parts}",
        ]

    def as_json(self) -> dict[str, Any]:
        """Return it for a machine."""
        kept = {name: getattr(self, name) for name in self.__slots__}
        return {**kept, "median_per_second": round(self.median_per_second)}


async def measure(seconds: float, connections: int = CONNECTIONS, rounds: int = ROUNDS) -> Edge:
    """Measure `rounds` spells on one system; what they leave behind is thrown away with it."""
    rates: list[float] = []
    statuses: dict[str, int] = {}
    async with Bed(patches=NO_GIVING_WAY) as bed:
        await warm_up(bed)
        crowd = Crowd(bed.url("orders"), bed.basket("edge"))
        before, accepted = bed.use(), 0
        with frozen([pid for name in BEHIND for pid in bed.pids()[name]]):
            for _ in range(rounds):
                sent = await crowd.closed_loop(connections, seconds)
                rates.append(sent.accepted / sent.seconds)
                accepted += sent.accepted
                for status, count in sent.statuses.items():
                    statuses[str(status)] = statuses.get(str(status), 0) + count
            used = bed.use().since(before)
        crowd.hang_up()
    if not accepted:
        raise CannotMeasure(f"no order was accepted: {statuses}")
    cost = {name: round(s * US_PER_S / accepted) for name, s in used.items() if name not in BEHIND}
    return Edge([round(rate, 1) for rate in rates], cost, statuses)


@contextmanager
def frozen(pids: list[int]) -> Iterator[None]:
    """Stop these processes for the length of a `with`: they use nothing, and know of nothing."""
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
