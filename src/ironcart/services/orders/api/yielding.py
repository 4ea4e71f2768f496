"""Accepting gives way to later stages while the machine has more to do than it can."""

import asyncio
import time

from prometheus_client import Gauge

from ironcart.services.orders.handlers.admit import give_way

LOOK_S = 0.05
LOOKS = 5

resting = Gauge("ironcart_orders_give_way_seconds", "rest before each batch of orders is accepted")


class GiveWay:
    """Looks how late this process wakes, and says how long accepting rests: `wait_s`, in seconds.

    By itself it refuses nothing: who waits at the door longer than there is told when to come.
    """

    def __init__(self) -> None:
        self.wait_s = 0.0
        self._accepted = self._ended = 0
        self._stopped = asyncio.Event()

    def accepted(self, count: int) -> None:
        """Take in that orders were accepted."""
        self._accepted += count

    def ended(self, count: int) -> None:
        """Take in that orders have ended."""
        self._ended += count

    async def run(self) -> None:
        """Look until stopped."""
        while not self._stopped.is_set():
            began = time.monotonic()
            for _ in range(LOOKS):
                await asyncio.sleep(LOOK_S)
            lag_s = (time.monotonic() - began) / LOOKS - LOOK_S
            counts = {"accepted": self._accepted, "ended": self._ended}
            self._accepted = self._ended = 0
            if not self._stopped.is_set():
                self.wait_s = give_way(self.wait_s, lag_s=lag_s, **counts)
            resting.set(self.wait_s)

    def stop(self) -> None:
        """Look no more; whoever is in hand is not kept waiting."""
        self._stopped.set()
        self.wait_s = 0.0
