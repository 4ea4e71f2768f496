"""Postgres: one pool for each service, in its own schema, with every wait bounded.

Whatever means "not now" becomes `Unavailable`, and `LostRace` when the transaction only has to be
run again; what waiting cannot mend becomes `Refused`. Everything else is a bug and passes through.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeAlias

import asyncpg
from asyncpg.pool import PoolConnectionProxy
from asyncpg.protocol import protocol

from ironcart.toolkit.outcomes import LostRace, Refused, Unavailable

POOL_CONNECTIONS_MAX = 10
CONNECT_TIMEOUT_S = 5.0
ACQUIRE_TIMEOUT_S = 5.0
COMMAND_TIMEOUT_S = 15.0
_SESSION = {
    "statement_timeout": "10s",
    "lock_timeout": "2s",
    "idle_in_transaction_session_timeout": "5s",
    # Statements prepared while a table is empty would keep a sequential scan until autoanalyze.
    "enable_seqscan": "off",
    "jit": "off",
    "timezone": "UTC",
    # Whatever the role or the server says: a commit that we answer for is on disk.
    "synchronous_commit": "on",
}

# asyncpg asks of each element of an array whether it is an array itself. Asked of an abstract
# class, that takes as long as encoding the element; ours are lists and tuples, and nothing else.
protocol.IterableABC = (list, tuple)  # type: ignore[attr-defined]

STARTED_AT = "SELECT pg_postmaster_start_time()"

# What a statement runs on, inside a transaction that the caller opened.
if TYPE_CHECKING:
    Connection: TypeAlias = PoolConnectionProxy[asyncpg.Record]
else:  # At run time the class takes no parameter.
    Connection = PoolConnectionProxy


@dataclass(slots=True)
class Transaction:
    """What a handler writes through, and what happens once that is committed."""

    connection: Connection
    after_commit: list[Callable[[], None]] = field(default_factory=list)


_OUTAGES = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.TooManyConnectionsError,
    asyncpg.InsufficientResourcesError,
    asyncpg.QueryCanceledError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.InternalClientError,
    asyncpg.PostgresSystemError,
    asyncpg.InternalServerError,
)
_RACES = (
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
    asyncpg.LockNotAvailableError,
    asyncpg.InvalidCachedStatementError,
)
_REFUSALS = (
    asyncpg.InvalidPasswordError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.InsufficientPrivilegeError,
)


@contextmanager
def translated() -> Iterator[None]:
    """Turn the driver's errors into ours."""
    try:
        yield
    except _RACES as error:
        raise LostRace(f"database: {error}") from error
    except _REFUSALS as error:
        raise Refused(f"the database refuses us: {error}") from error
    except _OUTAGES as error:
        if "another operation is in progress" in str(error):
            raise  # Our bug, not an outage.
        if (task := asyncio.current_task()) is not None and task.cancelling():
            # The connection broke because we are being cancelled: nobody must wait that out.
            raise asyncio.CancelledError from error
        raise Unavailable(f"database: {error or type(error).__name__}") from error


async def _leave_as_it_is(_: object) -> None:
    """Nothing to reset: no statement of ours changes a session, and each reset is a round trip."""


class Database:
    """A pool of connections whose `search_path` is one schema."""

    def __init__(
        self,
        url: str,
        schema: str,
        application: str,
        *,
        connections_max: int = POOL_CONNECTIONS_MAX,
        session: Mapping[str, str] | None = None,
        guarded: bool = False,
        command_timeout_s: float = COMMAND_TIMEOUT_S,
    ) -> None:
        """A `guarded` one lends nothing before `trust`, nor once the server has started anew."""
        self._url, self._connections_max = url, connections_max
        self._session = {
            **_SESSION,
            "search_path": schema,
            "application_name": application,
            **(session or {}),
        }
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None
        self._opening = asyncio.Lock()
        self._guarded, self._command_timeout_s = guarded, command_timeout_s
        self._started_at: datetime | None = None
        self._trusted: datetime | None = None

    async def connect(self) -> None:
        """Open the pool; raises `Unavailable` to be tried again, or `Refused` for good."""
        async with self._opening:
            if self._pool is None:
                self._pool = await self._open()

    async def _open(self) -> "asyncpg.Pool[asyncpg.Record]":
        try:
            with translated():
                return await asyncpg.create_pool(
                    self._url,
                    min_size=1,
                    max_size=self._connections_max,
                    timeout=CONNECT_TIMEOUT_S,
                    command_timeout=self._command_timeout_s,
                    server_settings=self._session,
                    reset=_leave_as_it_is,
                    init=self._note_start if self._guarded else None,
                )
        except ValueError as error:  # What it says may quote the password.
            raise Refused(
                "IRONCART_DATABASE_URL is wrong: use postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
            ) from error

    async def _note_start(self, connection: Any) -> None:
        self._started_at = await connection.fetchval(STARTED_AT)

    @property
    def restarted(self) -> bool:
        """Whether this may be an older database than before: restored, or a copy that took over."""
        return self._guarded and (self._trusted is None or self._started_at != self._trusted)

    def trust(self, started_at: datetime) -> None:
        """Go on with the database as it is since then; `started_at` was read before comparing."""
        self._trusted = started_at
        self._started_at = self._started_at or started_at

    async def close(self) -> None:
        """Close every connection; at most a few seconds."""
        if self._pool is not None:
            try:
                await asyncio.wait_for(self._pool.close(), CONNECT_TIMEOUT_S)
            except TimeoutError:
                self._pool.terminate()

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[Connection]:
        """Lend a connection, for statements that each commit by themselves."""
        if self._pool is None:
            await self.connect()
        assert self._pool is not None
        with translated():
            async with self._pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection:
                if self.restarted:
                    raise Unavailable("database: started anew, not yet compared with the stream")
                yield connection

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """Lend a connection inside one READ COMMITTED transaction; commits unless it raises."""
        async with self.acquire() as connection, connection.transaction():
            yield connection

    async def execute(self, statement: str, *arguments: Any) -> str:
        """Run one statement by itself."""
        async with self.acquire() as connection:
            return await connection.execute(statement, *arguments)

    async def fetch(self, statement: str, *arguments: Any) -> list[asyncpg.Record]:
        """Run one query by itself."""
        async with self.acquire() as connection:
            return await connection.fetch(statement, *arguments)

    async def fetchrow(self, statement: str, *arguments: Any) -> asyncpg.Record | None:
        """Run one query by itself, for its first row."""
        async with self.acquire() as connection:
            return await connection.fetchrow(statement, *arguments)

    async def healthy(self) -> bool:
        """Say whether the database answers; raises `Refused` when it refuses us."""
        try:
            await self.execute("SELECT 1")
        except Unavailable:
            return False
        return True
