"""All intents by order: the gateway cannot be asked for those of one order and be believed."""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable

from ironcart.services.payments.gateway.replies import Seen
from ironcart.toolkit.outcomes import Unavailable

# Well below the time that a call may take: the next one goes on where this one ended.
READ_S_MAX = 15.0
READ_ON_AFTER_S = 0.1
# Whoever recovers asks again and again; after this nobody does, and the memory is given back.
KEPT_UNUSED_S = 600.0


class Scan:
    """A reading of every intent, shared by those who ask; an outage only interrupts it."""

    def __init__(self, intents: Callable[[int, str], AsyncIterator[list[Seen]]]) -> None:
        self._intents = intents
        self._by_order: defaultdict[str, list[Seen]] = defaultdict(list)
        self._last, self._complete = "", True
        self._begun_at = float("-inf")
        self._used_at = float("-inf")
        self._reading = asyncio.Lock()

    async def of(self, order_id: str, since_s: float) -> list[Seen]:
        """Return the intents of an order, by a reading that began within the last `since_s`.

        Raises `Unavailable` while that takes longer; the next call then goes on from there.
        """
        wanted_at = time.monotonic() - since_s
        if self._reading.locked():
            raise Unavailable("the gateway's intents are being read", READ_ON_AFTER_S)
        async with self._reading:
            self._used_at = time.monotonic()
            until = time.monotonic() + READ_S_MAX
            while not self._complete or self._begun_at < wanted_at:
                if self._complete:
                    self._by_order.clear()
                    self._last, self._complete = "", False
                    self._begun_at = time.monotonic()
                await self._read_on(until)
        return self._by_order.get(order_id, [])

    def forget(self) -> None:
        """Give the memory back when nobody has asked for a while; to be called now and then."""
        if self._reading.locked() or time.monotonic() - self._used_at < KEPT_UNUSED_S:
            return
        self._by_order.clear()
        self._complete, self._begun_at = True, float("-inf")

    async def _read_on(self, until: float) -> None:
        async for page in self._intents(0, self._last):
            for seen in page:
                self._last = seen.intent_id
                if seen.order_id is not None:
                    self._by_order[seen.order_id].append(seen)
            if time.monotonic() > until:
                raise Unavailable("still reading the gateway's intents", READ_ON_AFTER_S)
        self._complete = True
