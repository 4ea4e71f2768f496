"""Rounds: something that is done every so often, beside the consumers, until the drain."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import structlog

from ironcart.toolkit.broker import BrokerError
from ironcart.toolkit.outcomes import Unavailable


class Rounds:
    """Does `step` every `every_s` seconds, and at once again while it says that there is more.

    An outage is logged once and waited out. After `stop` the round under way is finished.
    """

    def __init__(self, what: str, every_s: float, step: Callable[[], Awaitable[bool]]) -> None:
        self._what, self._every_s, self._step = what, every_s, step
        self._stopped = asyncio.Event()

    async def run(self) -> None:
        """Run until stopped."""
        said = ""
        while not self._stopped.is_set():
            more = False
            try:
                more = await self._step()
                said = ""
            except (Unavailable, BrokerError) as error:
                if str(error) != said:
                    said = str(error)
                    structlog.get_logger().warning(f"Could not {self._what}", error=said)
            if not more:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._every_s):
                        await self._stopped.wait()

    def stop(self) -> None:
        """Begin no other round."""
        self._stopped.set()
