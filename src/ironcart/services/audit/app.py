"""Audit, put together."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress

import structlog
from msgspec import Struct

from ironcart.events import STREAMS, durable
from ironcart.services.audit.api import endpoints
from ironcart.services.audit.handlers import record, watch_chains
from ironcart.toolkit.database import Connection, Database
from ironcart.toolkit.lifecycle import Service, Wiring
from ironcart.toolkit.loop import Chassis, RawSubscription
from ironcart.toolkit.outcomes import Unavailable
from ironcart.toolkit.recovery import Memory, OwnFact

NAME = "audit"
STREAM_NAMES = tuple(stream.name for stream in STREAMS)
DURABLES = tuple(durable(NAME, name) for name in STREAM_NAMES)
WATCH_EVERY_S = 2.0
SEEN = "SELECT 1 FROM entries WHERE stream = $2 AND stream_seq = $3 AND $1::uuid IS NOT NULL"


class Settings(Struct, frozen=True):
    """Audit needs nothing beyond what every service does."""


class Watch:
    """Looks for gaps every few seconds."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Look no more."""
        self._stopping.set()

    async def run(self) -> None:
        """Look until stopped."""
        warned: set[str] = set()
        while not self._stopping.is_set():
            try:
                await watch_chains(self._database, STREAM_NAMES, warned)
            except Unavailable as error:
                structlog.get_logger().warning("Cannot watch the chains", error=str(error))
            with suppress(TimeoutError):
                async with asyncio.timeout(WATCH_EVERY_S):
                    await self._stopping.wait()


def build(chassis: Chassis, _settings: Settings, _draining: asyncio.Event) -> Wiring:
    """Wire audit."""
    return Wiring(
        endpoints=endpoints(chassis.database, STREAM_NAMES),
        subscriptions=[RawSubscription(each, record) for each in DURABLES],
        loops=[Watch(chassis.database)],
    )


async def _fold(_facts: Sequence[OwnFact], _connection: Connection) -> None:
    """Audit says nothing of its own."""


# What it was given is what it keeps.
MEMORY = Memory("", {}, _fold, seen=SEEN)
SERVICE = Service(NAME, {}, DURABLES, Settings, build, MEMORY)
