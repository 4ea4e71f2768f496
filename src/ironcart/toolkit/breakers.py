"""The breaker of all replicas: each keeps its own, and a row of their database keeps them in step.

When one opens, all of them leave the other side in peace; when the time is over, one of them is
allowed to probe for all. While the database is away each replica goes by what it knew.
"""

import asyncio
from contextlib import suppress

import structlog

from ironcart.toolkit.database import Database
from ironcart.toolkit.outcomes import Unavailable
from ironcart.toolkit.resilience import Breaker, BreakerState

EXCHANGE_EVERY_S = 1.0
# Longer than a call may take; when the probing replica dies, the next one probes after this.
PROBE_S = 15.0


class SharedBreaker:
    """Keeps one process's breaker in step with its replicas'."""

    def __init__(self, breaker: Breaker, database: Database) -> None:
        self._breaker, self._database = breaker, database
        self._stopping = asyncio.Event()
        self._changed = asyncio.Event()
        self._untold: BreakerState | None = None
        self._adopting = False
        self._show = breaker.on_change
        breaker.on_change = self._note
        breaker.shared = True

    def _note(self, name: str, before: BreakerState, after: BreakerState) -> None:
        if self._show is not None:
            self._show(name, before, after)
        if after is not BreakerState.HALF_OPEN and not self._adopting:
            self._untold = after
            self._changed.set()

    def stop(self) -> None:
        """Exchange no more."""
        self._stopping.set()
        self._changed.set()

    async def run(self) -> None:
        """Exchange until stopped."""
        while not self._stopping.is_set():
            self._changed.clear()
            try:
                await self.exchange()
            except Unavailable as error:
                structlog.get_logger().debug("Breaker not shared", error=str(error))
            with suppress(TimeoutError):
                async with asyncio.timeout(EXCHANGE_EVERY_S):
                    await self._changed.wait()

    async def exchange(self) -> None:
        """Tell what changed here, then take over what others know."""
        breaker = self._breaker
        if (untold := self._untold) is not None:
            self._untold = None
            try:
                if untold is BreakerState.OPEN:
                    await self._database.execute(_OPEN, breaker.name, breaker.wait_s())
                else:
                    await self._database.execute(_CLOSE, breaker.name)
            except Unavailable:
                self._untold = self._untold or untold
                raise
        row = await self._database.fetchrow(_READ, breaker.name)
        if row is None or self._untold is not None:
            return
        if row["wait_s"] is None:
            self._adopt(None)
            return
        self._adopt(max(0.0, row["wait_s"]))
        due = row["wait_s"] <= 0 and breaker.state is BreakerState.OPEN
        if due and await self._database.fetchrow(_CLAIM, breaker.name, PROBE_S) is not None:
            breaker.permit()

    def _adopt(self, wait_s: float | None) -> None:
        self._adopting = True
        try:
            if wait_s is None:
                self._breaker.closed_elsewhere()
            else:
                self._breaker.opened_elsewhere(wait_s)
        finally:
            self._adopting = False


_OPEN = """
INSERT INTO breakers AS b (name, open_until) VALUES ($1, now() + make_interval(secs => $2))
ON CONFLICT (name) DO UPDATE
SET open_until = excluded.open_until, probing_until = NULL, changed_at = now()
"""
_CLOSE = """
UPDATE breakers SET open_until = NULL, probing_until = NULL, changed_at = now() WHERE name = $1
"""
_READ = """
SELECT extract(epoch FROM open_until - now())::float8 AS wait_s FROM breakers WHERE name = $1
"""
_CLAIM = """
UPDATE breakers SET probing_until = now() + make_interval(secs => $2)
WHERE name = $1 AND open_until <= now() AND (probing_until IS NULL OR probing_until <= now())
RETURNING name
"""
