"""Audit, put together."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated

import structlog
from msgspec import Meta, Struct

from ironcart.events import STREAMS, durable
from ironcart.services.audit.api import endpoints
from ironcart.services.audit.gateway import Target
from ironcart.services.audit.gateway.folder import Folder
from ironcart.services.audit.gateway.objects import Objects
from ironcart.services.audit.handlers.chain import record, watch_chains
from ironcart.services.audit.handlers.rounds import Plan, Rounds
from ironcart.toolkit import signing
from ironcart.toolkit.database import Connection, Database
from ironcart.toolkit.lifecycle import Service, Wiring
from ironcart.toolkit.loop import Chassis, RawSubscription
from ironcart.toolkit.outcomes import Unavailable
from ironcart.toolkit.recovery import Memory, OwnFact

NAME = "audit"
STREAM_NAMES = tuple(stream.name for stream in STREAMS)
DURABLES = tuple(durable(NAME, name) for name in STREAM_NAMES)
WATCH_EVERY_S = 2.0
# How long the last checkpoint before the end may take.
LAST_TIMEOUT_S = 3.0
CHECKPOINT_EVERY_S = 10.0
CHECKPOINT_EVERY_ENTRIES = 100_000
SEEN = "SELECT 1 FROM entries WHERE stream = $2 AND stream_seq = $3 AND $1::uuid IS NOT NULL"


class Settings(Struct, frozen=True, kw_only=True):
    """Who signs the checkpoints, how often, and where they go; without a key nobody does."""

    audit_signing_key_file: str = ""
    audit_checkpoints: str = ""
    audit_checkpoints_headers_file: str = ""
    audit_checkpoint_every_s: Annotated[float, Meta(ge=1, le=86_400)] = CHECKPOINT_EVERY_S
    audit_checkpoint_every_entries: Annotated[int, Meta(ge=1)] = CHECKPOINT_EVERY_ENTRIES

    def target(self) -> Target | None:
        """Where checkpoints go, if anywhere."""
        where, headers = self.audit_checkpoints, self.audit_checkpoints_headers_file
        if where.startswith(("https://", "http://")):
            return Objects(where, Path(headers) if headers else None)
        return Folder(Path(where)) if where else None


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
            await _pause(self._stopping)


class Checkpoints:
    """Signs and exports every few seconds, and once more when everything else has ended."""

    def __init__(self, rounds: Rounds) -> None:
        self._rounds = rounds
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Begin no other round."""
        self._stopping.set()

    async def run(self) -> None:
        """Go on until stopped."""
        while not self._stopping.is_set():
            await self._rounds.go()
            await _pause(self._stopping)

    async def finish(self) -> None:
        """Sign what has been chained since, if that is quickly done: the next start will."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_TIMEOUT_S):
                await self._rounds.go(last=True)
        await self._rounds.close()


async def _pause(stopping: asyncio.Event) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(WATCH_EVERY_S):
            await stopping.wait()


def build(chassis: Chassis, settings: Settings, _draining: asyncio.Event) -> Wiring:
    """Wire audit."""
    checkpoints = Checkpoints(_rounds(chassis.database, settings))
    return Wiring(
        endpoints=endpoints(chassis.database, STREAM_NAMES),
        subscriptions=[RawSubscription(each, record) for each in DURABLES],
        loops=[Watch(chassis.database), checkpoints],
        close=[checkpoints.finish],
    )


def _rounds(database: Database, settings: Settings) -> Rounds:
    signer, log = None, structlog.get_logger()
    if settings.audit_signing_key_file:
        signer, warning = signing.load(Path(settings.audit_signing_key_file))
        if warning:
            log.warning("Unsafe signing key", error=warning)
        if not settings.audit_checkpoints:
            log.warning("Checkpoints stay in the database: set IRONCART_AUDIT_CHECKPOINTS")
    else:
        log.error(
            "The audit trail is not signed: whoever rules the database can rewrite it; make a key"
            " with `ironcart audit keygen` and set IRONCART_AUDIT_SIGNING_KEY_FILE"
        )
    key = Path(settings.audit_signing_key_file)
    plan = Plan(
        streams=STREAM_NAMES,
        signer=signer,
        mark_file=key.with_name(key.name + signing.MARK_SUFFIX) if signer is not None else None,
        target=settings.target(),
        every_s=settings.audit_checkpoint_every_s,
        every_entries=settings.audit_checkpoint_every_entries,
        clock=time.monotonic,
        now=partial(datetime.now, UTC),
    )
    return Rounds(database, plan)


async def _fold(_facts: Sequence[OwnFact], _connection: Connection) -> None:
    """Audit says nothing of its own."""


# What it was given is what it keeps.
MEMORY = Memory("", {}, _fold, seen=SEEN)
TABLES = {
    "entries": "SELECT, INSERT",
    "links": "SELECT, INSERT",
    "checkpoints": "SELECT, INSERT",
}
SERVICE = Service(NAME, {}, DURABLES, Settings, build, MEMORY, TABLES)
