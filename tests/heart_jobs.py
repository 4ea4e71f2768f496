"""What tests of jobs share: work whose calls are up to the test, and a scheduler for it."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from heart_parts import TRACE_ID, Bench, Pong
from ironcart.toolkit.database import Connection, Transaction
from ironcart.toolkit.history import Cause
from ironcart.toolkit.jobs import Jobs, Settled
from ironcart.toolkit.outcomes import Fact
from ironcart.toolkit.telemetry import TraceContext

CAUSE = Cause(TRACE_ID, TraceContext(TRACE_ID, "b7ad6b7169203331"))

Call = Callable[[str, int], Awaitable[str]]


async def at_once(payload: str, attempts: int) -> str:
    return "done"


class Errands:
    """Jobs whose payload is their key; what a call does is up to the test."""

    def __init__(self, call: Call = at_once) -> None:
        self._call = call
        self.calls: Counter[str] = Counter()
        self.settled: list[str] = []
        self.idle: set[str] = set()
        self.again: set[str] = set()

    async def load(self, connection: Connection, keys: Sequence[str]) -> Mapping[str, str]:
        return {key: key for key in keys if key not in self.idle}

    async def call(self, payload: str, attempts: int) -> str:
        self.calls[payload] += 1
        return await self._call(payload, attempts)

    async def settle(
        self, connection: Connection, results: Sequence[tuple[str, str]]
    ) -> Sequence[Settled[str]]:
        found: list[Settled[str]] = []
        for key, result in results:
            if key in self.again:
                self.again.remove(key)
                found.append(Settled(again=key))
                continue
            self.settled.append(key)
            found.append(Settled((Fact(key, 1, Pong(key, 1, result)),), CAUSE))
        return found


def scheduler(parts: Bench, work: Errands, **options: Any) -> Jobs[str, str]:
    chassis = parts.chassis
    return Jobs(work, chassis.database, chassis.history, chassis.outbox, **options)


@asynccontextmanager
async def at_work(*loops: Jobs[str, str]) -> AsyncIterator[list["asyncio.Task[None]"]]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(each.run()) for each in loops]
        try:
            yield tasks
        finally:
            for task in tasks:
                task.cancel()


async def add(parts: Bench, found: Jobs[str, str], *keys: str) -> None:
    """Add jobs as the loop does, from a handler."""
    async with parts.database.transaction() as connection:
        transaction = Transaction(connection)
        await found.add(transaction, {key: key for key in keys})
    for then in transaction.after_commit:
        then()


async def rows(parts: Bench) -> dict[str, Any]:
    found = await parts.database.fetch("SELECT *, due_at - now() AS wait FROM jobs")
    return {row["key"]: row for row in found}


def no_jobs(parts: Bench) -> Callable[[], Awaitable[bool]]:
    async def none_left() -> bool:
        return await parts.count("jobs") == 0

    return none_left


async def holds(condition: Callable[[], bool]) -> bool:
    return condition()
