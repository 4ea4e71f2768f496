"""Following accepted orders to their end by paging through `GET /orders`, never one by one.

The end of an order is its `updated_at` once its status is terminal, its beginning its `created_at`:
both are the server's times, so that how often we look does not change what is measured.
"""

import asyncio
import time
from datetime import datetime

import aiohttp
import msgspec

from ironcart.load.figures import Tally

PAGE_ORDERS = 500
POLL_S = 1.0
PAGES_PER_POLL_MAX = 4
SETTLE_POLL_S = 0.3
TERMINAL = frozenset({"confirmed", "rejected", "cancelled"})
FAILURES = (aiohttp.ClientError, OSError, TimeoutError, msgspec.DecodeError)


class _Item(msgspec.Struct):
    order_id: str
    status: str
    created_at: datetime
    updated_at: datetime


class _Page(msgspec.Struct):
    items: list[_Item]
    next_cursor: str | None = None


class Watcher:
    """Knows which accepted orders are still under way.

    A walk goes from the newest order until every order that was under way at its start has been
    seen. While load runs a walk takes at most four pages a second and goes on where it stopped.
    """

    def __init__(self, session: aiohttp.ClientSession, orders_url: str, tally: Tally) -> None:
        self._session = session
        self._url = f"{orders_url}/orders"
        self._tally = tally
        self._pages = msgspec.json.Decoder(_Page)
        self._cursor: str | None = None
        self._sought: set[str] = set()
        self.under_way: set[str] = set()
        self.trouble = ""

    def accepted(self, order_id: str) -> None:
        """Begin to follow an order."""
        self.under_way.add(order_id)

    async def follow(self) -> None:
        """Walk for ever at a gentle pace."""
        while True:
            await asyncio.sleep(POLL_S)
            await self._walk(PAGES_PER_POLL_MAX)

    async def settle(self, timeout_s: float, stop: asyncio.Event) -> None:
        """Walk until nothing is under way, `timeout_s` have passed, or `stop`."""
        deadline = time.monotonic() + timeout_s
        self._cursor = None
        while self.under_way:
            await self._walk(None)
            if not self.under_way or stop.is_set() or time.monotonic() >= deadline:
                return
            await asyncio.sleep(SETTLE_POLL_S)

    async def _walk(self, pages_max: int | None) -> None:
        pages = 0
        while self.under_way and (pages_max is None or pages < pages_max):
            if self._cursor is None:
                self._sought = set(self.under_way)
            try:
                page = await self._read(self._cursor)
            except FAILURES as error:
                self.trouble = f"GET /orders: {error or type(error).__name__}"
                return
            pages += 1
            for item in page.items:
                self._sought.discard(item.order_id)
                if item.status in TERMINAL and item.order_id in self.under_way:
                    self._end(item)
            self._cursor = page.next_cursor if self._sought else None
            if self._cursor is None:
                return

    def _end(self, item: _Item) -> None:
        self.under_way.remove(item.order_id)
        tally = self._tally
        tally.statuses[item.status] += 1
        created_at, updated_at = item.created_at.timestamp(), item.updated_at.timestamp()
        tally.settle_s.append(updated_at - created_at)
        tally.first_created_at = min(tally.first_created_at, created_at)
        tally.last_updated_at = max(tally.last_updated_at, updated_at)

    async def _read(self, cursor: str | None) -> _Page:
        query = {"limit": str(PAGE_ORDERS)} | ({"cursor": cursor} if cursor else {})
        async with self._session.get(self._url, params=query) as response:
            body = await response.read()
            if response.status != 200:
                raise aiohttp.ClientError(f"answered {response.status}")
        return self._pages.decode(body)
