"""Reading orders: a few at once, so that a flood of readers leaves room for those who write."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ironcart.services.orders.store import Order, Store
from ironcart.toolkit.database import POOL_CONNECTIONS_MAX, Database
from ironcart.toolkit.outcomes import Unavailable

# The other connections are for accepting orders, and for moving them on.
READS_AT_ONCE_MAX = POOL_CONNECTIONS_MAX // 2
READS_WAITING_MAX = 500


class Reads:
    """Lends half of the service's connections; raises `Unavailable` when too many wait for one."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._places = asyncio.Semaphore(READS_AT_ONCE_MAX)
        self._waiting = 0

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """A place among those who use the database for one request."""
        if self._waiting >= READS_WAITING_MAX:
            raise Unavailable("too many requests wait for the database")
        self._waiting += 1
        try:
            async with self._places:
                yield
        finally:
            self._waiting -= 1

    @asynccontextmanager
    async def store(self) -> AsyncIterator[Store]:
        """The store, on one of the connections."""
        async with self.place(), self._database.acquire() as connection:
            yield Store(connection)

    async def find(self, order_id: str) -> Order | None:
        """Read one order as it is; None while it is not heard of."""
        async with self.store() as store:
            return await store.find(order_id)
