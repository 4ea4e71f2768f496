"""A second process of every service beside those of `up`, as another machine would run them."""

import asyncio
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from benchmarks.bed import Replica
from ironcart.embedded.ports import SERVICES
from shopping import System, until

# Five start at once: ten times what that takes on a quiet machine.
ALL_READY_WITHIN_S = 120.0


@dataclass(frozen=True)
class Second:
    """One of them: where it answers, and its process."""

    replica: Replica
    process: Process

    @property
    def url(self) -> str:
        return self.replica.url


@asynccontextmanager
async def seconds(system: System) -> AsyncIterator[Mapping[str, Second]]:
    """One of each service, all of them ready; they drain at the end."""
    found: dict[str, Second] = {}
    over = asyncio.Event()

    async def run(service: str) -> None:
        replica = Replica(service, system.run["services"][service]["pids"][0])
        log = system.folder / "logs" / f"{service}-second.log"
        async with replica.running(log) as process:
            found[service] = Second(replica, process)
            await over.wait()

    async def all_ready() -> bool:
        return len(found) == len(SERVICES)

    async with asyncio.TaskGroup() as group:
        for service in SERVICES:
            group.create_task(run(service))
        await until(all_ready, ALL_READY_WITHIN_S)
        yield found
        over.set()
