"""Orders a minute, accepted to terminal, mailed and audited, and what each costs where."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.bed import SERVICES, Bed
from benchmarks.crowd import Crowd, Sent
from ironcart.load.figures import percentile

CONNECTIONS = 384
WARM_UP_S = 8.0
DONE_TIMEOUT_S = 600.0
MS_PER_S, US_PER_S, S_PER_MIN = 1_000, 1_000_000, 60
PERCENTILES = (50, 95, 99)
_CONFIRMED = """
SELECT extract(epoch FROM updated_at - created_at)::float8 FROM orders.orders
WHERE status = 'confirmed' AND created_at >= to_timestamp($1)
"""


@dataclass(slots=True)
class Spell:
    """One spell of load, to its last consequence; latencies in milliseconds."""

    accepted: int
    sending_s: float
    until_done_s: float
    statuses: dict[str, int]
    accept_ms: dict[str, float]
    confirm_ms: dict[str, float]
    cpu_us_an_order: dict[str, float]
    memory_mb: dict[str, float]
    not_sent: int = 0
    batches: dict[str, float] = field(default_factory=dict)

    @property
    def per_minute(self) -> float:
        """Orders a minute, from the first request until nothing was left to do."""
        return self.accepted / self.until_done_s * S_PER_MIN

    @property
    def cpu_us(self) -> float:
        """CPU of all processes together, microseconds an order."""
        return sum(self.cpu_us_an_order.values())

    def lines(self) -> list[str]:
        """Return it for a person."""
        parts = ", ".join(f"{name} {used:,.0f}" for name, used in self.cpu_us_an_order.items())
        batches = ", ".join(f"{name} {size:.0f}" for name, size in self.batches.items())
        memory = ", ".join(f"{name} {size:.0f}" for name, size in self.memory_mb.items())
        took = f"{self.sending_s:.1f} s, all done after {self.until_done_s:.1f} s"
        return [
            f"  {self.accepted:,} orders accepted in {took}: {self.per_minute:,.0f} a minute",
            f"  answers {self.statuses}, not sent {self.not_sent}",
            f"  accept ms {self.accept_ms}, accept to confirmed ms {self.confirm_ms}",
            f"  CPU us an order {self.cpu_us:,.0f}: {parts}",
            f"  messages a batch: {batches}",
            f"  resident MB: {memory}",
        ]

    def as_json(self) -> dict[str, Any]:
        """Return it for a machine."""
        kept = {name: getattr(self, name) for name in self.__slots__}
        return {**kept, "per_minute": self.per_minute, "cpu_us": self.cpu_us}


async def closed(bed: Bed, seconds: float, connections: int = CONNECTIONS) -> Spell:
    """As fast as answers come, for so many seconds."""
    crowd = Crowd(bed.urls("orders"), bed.basket("closed"), bed.key_header("storefront"))
    return await _spell(bed, crowd, crowd.closed_loop(connections, seconds))


async def open_loop(bed: Bed, rate: float, seconds: float) -> Spell:
    """By the clock: `rate` orders a second."""
    crowd = Crowd(bed.urls("orders"), bed.basket("open"), bed.key_header("storefront"))
    return await _spell(bed, crowd, crowd.open_loop(rate, seconds))


async def warm_up(bed: Bed, seconds: float = WARM_UP_S) -> None:
    """Let code, plans and caches get warm."""
    await closed(bed, seconds)


async def _spell(bed: Bed, crowd: Crowd, sending: Any) -> Spell:
    before, counted = bed.use(), await _counted(bed)
    began = time.monotonic()
    try:
        sent: Sent = await sending
    finally:
        crowd.hang_up()
    await bed.done(DONE_TIMEOUT_S)
    until_done_s = time.monotonic() - began
    used = bed.use().since(before)
    after = await _counted(bed)
    async with bed.database() as connection:
        rows = await connection.fetch(_CONFIRMED, sent.began_at)
    orders = max(1, sent.accepted)
    return Spell(
        accepted=sent.accepted,
        sending_s=round(sent.seconds, 2),
        until_done_s=round(until_done_s, 2),
        statuses={str(status): count for status, count in sent.statuses.items()},
        accept_ms=_milliseconds(sent.accept_s),
        confirm_ms=_milliseconds([row[0] for row in rows]),
        cpu_us_an_order={name: round(s * US_PER_S / orders) for name, s in used.items()},
        memory_mb={name: round(size) for name, size in bed.memory_mb().items()},
        not_sent=sent.not_sent,
        batches={
            name: round((total - counted[name][0]) / (count - counted[name][1]), 1)
            for name, (total, count) in after.items()
            if name in counted and count > counted[name][1]
        },
    )


async def _counted(bed: Bed) -> dict[str, tuple[float, float]]:
    """Messages and batches so far, by consumer."""
    messages, batches = defaultdict[str, float](float), defaultdict[str, float](float)
    for text in await asyncio.gather(*(bed.metrics(service) for service in SERVICES)):
        for line in text.splitlines():
            if line.startswith("ironcart_batch_size_messages_sum"):
                messages[line.split('"')[1]] += float(line.split()[-1])
            elif line.startswith("ironcart_batch_size_messages_count"):
                batches[line.split('"')[1]] += float(line.split()[-1])
    return {name: (messages[name], count) for name, count in batches.items()}


def _milliseconds(seconds: Sequence[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {f"p{p}": round(percentile(ordered, p) * MS_PER_S, 1) for p in PERCENTILES}
