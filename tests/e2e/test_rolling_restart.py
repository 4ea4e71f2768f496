"""A rolling restart of every service under load: no order lost, no error but a reset, no repeat.

As Kubernetes does it: while a second replica is ready, the first is asked to go (SIGTERM), and
whoever spreads the requests hears from `/ready` that it is going. Another one takes its place and
becomes ready; then the same with the second.
"""

import asyncio
import os
import secrets
import statistics
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest

from benchmarks.bed import is_ready
from chaos.outside import delivered_again
from ironcart.embedded.ports import SERVICES
from replicas import Second, seconds
from shopping import Shop, System, order, until

# A second, while orders is restarted, who answers them; and while those behind it are.
RATE_AT_THE_DOOR, RATE_BEHIND = 30.0, 15.0
ORDERS_MIN = 100
ATTEMPTS_MAX = 20
AGAIN_S = 0.1
UNDER_WAY_MAX = 10
# What the door says where a commit takes long. A machine that wakes its processes this late is the
# reason, and who is told so comes again; on any other it is a restart that was noticed.
TOO_SLOW = "to be committed"
BUSY_LAG_S = 0.02
# What a drain may take, and a little.
GONE_WITHIN_S = 45.0
READY_WITHIN_S = 60.0
CHUNK_BYTES = 65_536
TEST_TIMEOUT_S = 400


class Spread:
    """Stands where a load balancer does: a new connection goes to one of those that are ready."""

    def __init__(self) -> None:
        self.ready: list[tuple[str, int]] = []
        self.url = ""
        self._next = 0

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield
        finally:
            server.close()

    async def _connected(self, read: asyncio.StreamReader, write: asyncio.StreamWriter) -> None:
        self._next += 1
        host, port = self.ready[self._next % len(self.ready)]
        try:
            there, back = await asyncio.open_connection(host, port)
        except OSError:
            write.transport.abort()
            return
        await asyncio.gather(_pipe(read, back), _pipe(there, write))


async def _pipe(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await source.read(CHUNK_BYTES):
            target.write(data)
            await target.drain()
    target.close()


class Customers:
    """Place orders by the clock, each under its own key; a reset makes them try again.

    So does being sent away by the door, where a commit takes long.
    """

    def __init__(self, spread: Spread, sku: str) -> None:
        self._spread, self._sku = spread, sku
        self.placed: list[str] = []
        self.odd: list[str] = []
        self.resets = self.sent_away = 0
        self.rate = RATE_AT_THE_DOOR
        self._lags_s: list[float] = []
        self._room = asyncio.Semaphore(UNDER_WAY_MAX)
        self.over = asyncio.Event()

    async def shop(self) -> None:
        # A connection for each order: a restart then meets as many new ones as can be.
        connector = aiohttp.TCPConnector(force_close=True, limit=0)
        async with aiohttp.ClientSession(connector=connector) as session, asyncio.TaskGroup() as g:
            while not self.over.is_set():
                await self._room.acquire()
                g.create_task(self._place(session)).add_done_callback(self._leave)
                due = time.monotonic() + 1 / self.rate
                await asyncio.sleep(1 / self.rate)
                self._lags_s.append(time.monotonic() - due)

    def _leave(self, _: asyncio.Task[None]) -> None:
        self._room.release()

    def lag_s(self) -> float:
        """How late this process wakes, on average."""
        return statistics.mean(self._lags_s)

    async def have_placed_enough(self) -> bool:
        return len(self.placed) >= ORDERS_MIN

    async def _place(self, session: aiohttp.ClientSession) -> None:
        headers = {"Idempotency-Key": secrets.token_hex(8)}
        for _ in range(ATTEMPTS_MAX):
            try:
                async with session.post(
                    f"{self._spread.url}/orders", json=order(self._sku), headers=headers
                ) as answer:
                    body = await answer.json()
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                self.resets += 1
                await asyncio.sleep(AGAIN_S)
                continue
            if answer.status == 503 and TOO_SLOW in str(body):
                self.sent_away += 1
                await asyncio.sleep(float(answer.headers["Retry-After"]))
                continue
            if answer.status == 202:
                self.placed.append(body["order_id"])
            else:
                self.odd.append(f"{answer.status}: {body}")
            return
        self.odd.append(f"no answer in {ATTEMPTS_MAX} attempts")


@pytest.mark.timeout(TEST_TIMEOUT_S)
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="reads a process's environment")
async def test_every_service_is_restarted_under_load_and_nobody_notices(
    system: System, shop: Shop
) -> None:
    spread, sku = Spread(), await shop.stocked(100_000)
    at_first = urlsplit(system.url("orders")).port or 0
    spread.ready = [("127.0.0.1", at_first)]
    customers = Customers(spread, sku)
    repeats_before = await delivered_again(system.run["nats"]["urls"])

    async with seconds(system) as others, spread.serving(), asyncio.TaskGroup() as group:
        group.create_task(customers.shop())
        for service in SERVICES:
            await roll(system, service, others[service], spread)
            customers.rate = RATE_BEHIND
        await until(customers.have_placed_enough)
        customers.over.set()

    assert not customers.odd, customers.odd
    assert not customers.sent_away or customers.lag_s() > BUSY_LAG_S
    for order_id in customers.placed[-3:]:
        assert (await shop.ended(order_id, 60))["status"] == "confirmed"
    system.verify()
    repeats = await delivered_again(system.run["nats"]["urls"]) - repeats_before
    sys.stderr.write(
        f"{len(customers.placed)} orders, {customers.resets} resets, {repeats} delivered again, "
        f"{customers.sent_away} sent away, {1_000 * customers.lag_s():.1f} ms late\n"
    )
    assert repeats == 0


async def roll(system: System, service: str, second: Second, spread: Spread) -> None:
    """Have the first process of a service replaced by another, then have the second go."""
    port, second_port = urlsplit(system.url(service)).port or 0, second.replica.port
    first = system.run["services"][service]["pids"][0]
    await leave(service, spread, port, second_port, first)

    async def replaced() -> bool:
        return system.run["services"][service]["pids"] != [first] and await is_ready(
            system.url(service)
        )

    await until(replaced, READY_WITHIN_S)
    await leave(service, spread, second_port, port, second.process.pid)
    async with asyncio.timeout(GONE_WITHIN_S):
        assert await second.process.wait() == 0, f"{service} did not drain"


async def leave(service: str, spread: Spread, going: int, staying: int, pid: int) -> None:
    """Ask a process to go; requests are spread over both until it says that it is not ready."""
    if service == "orders":
        spread.ready = [("127.0.0.1", going), ("127.0.0.1", staying)]
    os.kill(pid, 15)

    async def going_away() -> bool:
        return not await is_ready(f"http://127.0.0.1:{going}")

    await until(going_away, GONE_WITHIN_S)
    if service == "orders":
        spread.ready = [("127.0.0.1", staying)]
