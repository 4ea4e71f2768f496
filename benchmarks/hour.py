"""An hour under load: what grows?"""

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import linear_regression, mean
from typing import Any

from benchmarks.bed import SERVICES, Bed
from benchmarks.crowd import Crowd
from benchmarks.endtoend import S_PER_MIN, closed, warm_up

LASTS_S = 3_600.0
# Of what the system can do: under load the whole time, and never behind.
SHARE = 0.5
LOOK_EVERY_S = 10.0
S_PER_HOUR = 3_600.0
# Caches, pools and tables fill at first; what grows afterwards, grows for ever.
SETTLED_SHARE = 1 / 3
GROWTH_MB_PER_HOUR_MAX = 5.0
PARTS = (*SERVICES, "nats-server")


@dataclass(frozen=True, slots=True)
class Hour:
    """Resident megabytes of every part, look by look: seconds since the beginning, and sizes."""

    rate: float
    accepted: int
    statuses: Mapping[str, int]
    looks: Sequence[tuple[float, Mapping[str, float]]]

    def growth(self, part: str) -> float:
        """Megabytes an hour, by the line through all looks after the first third."""
        settled = [look for look in self.looks if look[0] >= SETTLED_SHARE * self.looks[-1][0]]
        line = linear_regression([at for at, _ in settled], [mb[part] for _, mb in settled])
        return line.slope * S_PER_HOUR

    @property
    def complaints(self) -> list[str]:
        """Which services grow; the broker keeps its own index of what it stores."""
        return [
            f"{name} grows by {growth:.1f} MB an hour"
            for name in SERVICES
            if (growth := self.growth(name)) > GROWTH_MB_PER_HOUR_MAX
        ]

    def lines(self) -> list[str]:
        """Return it for a person."""
        lasted_s = self.looks[-1][0]
        minutes = lasted_s / S_PER_MIN
        orders = f"{self.accepted:,} orders in {minutes:.0f} minutes, {self.rate:.0f} a second"
        found = [f"  {orders}, answers {dict(self.statuses)}"]
        for part in PARTS:
            sizes = [mb[part] for _, mb in self.looks]
            found.append(
                f"  {part}: resident MB {sizes[0]:.0f} at first, {mean(sizes):.0f} on average,"
                f" {max(sizes):.0f} at most, {sizes[-1]:.0f} at the end;"
                f" {self.growth(part):+.1f} an hour"
            )
        return found + [f"  BROKEN: {complaint}" for complaint in self.complaints]

    def as_json(self) -> dict[str, Any]:
        """Return it for a machine."""
        return {
            "rate": round(self.rate, 1),
            "accepted": self.accepted,
            "statuses": dict(self.statuses),
            "growth_mb_per_hour": {part: round(self.growth(part), 2) for part in PARTS},
            "complaints": self.complaints,
            "looks": [
                [round(at), {name: round(mb, 1) for name, mb in sizes.items()}]
                for at, sizes in self.looks
            ],
        }


async def measure(
    lasts_s: float = LASTS_S, *, rate: float | None = None, seconds: float = 20.0
) -> Hour:
    """Measure it; without a `rate` a spell of `seconds` finds what the system can do."""
    async with Bed() as bed:
        await warm_up(bed)
        if rate is None:
            rate = SHARE * (await closed(bed, seconds)).per_minute / S_PER_MIN
        crowd = Crowd(bed.urls("orders"), bed.basket("hour"))
        began, looks = time.monotonic(), list[tuple[float, Mapping[str, float]]]()
        sending = asyncio.create_task(crowd.open_loop(rate, lasts_s))
        while not sending.done():
            looks.append((time.monotonic() - began, bed.memory_mb(PARTS)))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_S):
                    await asyncio.shield(sending)
        sent = await sending
        crowd.hang_up()
    statuses = {str(status): count for status, count in sent.statuses.items()}
    return Hour(rate, sent.accepted, statuses, looks)
