"""A fake Postgres under the toolkit's real `Database`: pool, connections, transactions, outages.

Transactions of one database are serialised: the first statement takes its lock, the end gives it
back. What waits for it longer than the lock time-out is refused, as a row lock would be.
"""

import asyncio
import copy
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from simulation.clock import Process
from simulation.statements import Row, Tables, answer
from simulation.world import World

LOCK_TIMEOUT_S = 2.0
IDLE_IN_TRANSACTION_S = 5.0
GONE = "connection was closed in the middle of operation"


class Server:
    """One service's schema: it outlives the processes that use it."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.tables = Tables(world.loop.time, world.note)
        self.up = True
        self.holder: SimulatedConnection | None = None
        self._before: Tables | None = None
        self._queue: list[tuple[SimulatedConnection, asyncio.Future[None]]] = []
        self.connections: set[SimulatedConnection] = set()

    def stop(self) -> None:
        """End every connection and take no other one."""
        self.world.note("database outage")
        self.up = False
        for connection in list(self.connections):
            self.drop(connection)

    def start(self) -> None:
        """Take connections again."""
        self.up = True

    def drop(self, connection: "SimulatedConnection") -> None:
        """Break a connection; what it had begun is rolled back."""
        connection.broken = True
        self.tables.holders.pop(connection, None)
        if self.holder is connection:
            self.release(connection, keep=False)

    async def lock(self, connection: "SimulatedConnection") -> None:
        """Wait for everything to be this connection's own."""
        if self.holder is None and not self._queue:
            self._grant(connection)
            return
        turn: asyncio.Future[None] = self.world.loop.create_future()
        self._queue.append((connection, turn))
        self.kick()
        self.world.note("waited for a lock")
        try:
            async with asyncio.timeout(LOCK_TIMEOUT_S):
                await turn
        except TimeoutError as error:
            self.world.note("waited too long for a lock")
            raise asyncpg.LockNotAvailableError("canceling statement: lock timeout") from error
        finally:
            self._queue = [each for each in self._queue if each[1] is not turn]

    def kick(self) -> None:
        """Give the lock to the next that is able to take it."""
        while self.holder is None and self._queue:
            able = [each for each in self._queue if each[0].process.running]
            if not able:
                return
            self._queue.remove(able[0])
            connection, turn = able[0]
            if not turn.done() and not connection.broken:
                self._grant(connection)
                turn.set_result(None)

    def _grant(self, connection: "SimulatedConnection") -> None:
        self.holder = connection
        self._before = self.tables.snapshot()

    def release(self, connection: "SimulatedConnection", *, keep: bool) -> None:
        """End a transaction: for good, or as if it had never been."""
        if self.holder is not connection:
            return
        if not keep:
            assert self._before is not None
            self.tables.restore(self._before)
        self.holder = self._before = None
        self.kick()


class SimulatedConnection:
    """What asyncpg lends, as far as the toolkit uses it."""

    def __init__(self, server: Server, process: Process) -> None:
        self._server, self.process = server, process
        self._world = server.world
        self.broken = False
        self._inside = False
        process.on_crash.append(self._crashed)

    def _crashed(self) -> None:
        self._server.drop(self)

    async def fetch(self, statement: str, *arguments: Any) -> list[Row]:
        """Run one statement."""
        await self._travel(self._world.weather.lose_statement)
        own = self._server.holder is not self
        if own:
            await self._server.lock(self)
        done = False
        try:
            self._check()
            self._server.tables.session = self
            rows = answer(self._server.tables, statement, arguments)
            self._world.say(
                f"{self._server.name}: {' '.join(statement.split())[:70]}", self.process
            )
            done = True
        finally:
            if own and not (self._inside and done):
                self._server.release(self, keep=done)
        await self._travel(self._world.weather.lose_statement)
        return copy.deepcopy(rows)

    async def fetchrow(self, statement: str, *arguments: Any) -> Row | None:
        """Run one statement, for its first row."""
        rows = await self.fetch(statement, *arguments)
        return rows[0] if rows else None

    async def fetchval(self, statement: str, *arguments: Any) -> Any:
        """Run one statement, for its first value."""
        row = await self.fetchrow(statement, *arguments)
        return next(iter(row.values())) if row else None

    async def execute(self, statement: str, *arguments: Any) -> str:
        """Run one statement, for what it does."""
        return f"OK {len(await self.fetch(statement, *arguments))}"

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        """Commit unless it raises; when the answer is lost, nobody knows whether it did."""
        self._check()
        self._inside = True
        try:
            yield
            await self._travel(self._world.weather.lose_statement)
        except BaseException:
            self._server.release(self, keep=False)
            raise
        finally:
            self._inside = False
        self._check()
        self._server.release(self, keep=True)
        if self._world.happens(self._world.weather.lose_commit_answer):
            self._world.note("COMMIT whose answer was lost")
            self.broken = True
        await self._travel(0.0)

    def terminate(self) -> None:
        """Close it at once."""
        self._server.drop(self)

    async def _travel(self, loss: float) -> None:
        self._check()
        if self._world.rng.random() < self._world.weather.slow and not self._world.quiet_net:
            await asyncio.sleep(self._world.latency_s())
        else:
            await asyncio.sleep(0)
        if self._world.happens(loss):
            self._world.note("statement that was lost")
            self._server.drop(self)
        self._check()

    def _check(self) -> None:
        if self.broken or not self._server.up:
            raise asyncpg.ConnectionDoesNotExistError(GONE)

    def freeze(self) -> None:
        """Its process stands still: the server ends a transaction that is left open."""
        if self._server.holder is self:
            self._server.drop(self)


class SimulatedPool:
    """What `asyncpg.create_pool` returns, as far as the toolkit uses it."""

    def __init__(self, server: Server, process: Process) -> None:
        self._server, self._process = server, process
        process.on_thaw.append(server.kick)

    @asynccontextmanager
    async def acquire(self, *, timeout: float) -> AsyncIterator[SimulatedConnection]:
        """Lend a new connection."""
        if not self._server.up:
            raise ConnectionRefusedError("connection refused")
        connection = SimulatedConnection(self._server, self._process)
        self._server.connections.add(connection)
        try:
            yield connection
        finally:
            self._server.connections.discard(connection)
            self._server.release(connection, keep=False)
            self._process.on_crash.remove(connection._crashed)

    def idle_too_long(self) -> None:
        """The process has been frozen for as long as a transaction may stand open."""
        for connection in list(self._server.connections):
            if connection.process is self._process:
                connection.freeze()
