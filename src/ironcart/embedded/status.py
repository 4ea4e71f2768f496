"""The status line of `up`: orders a second, orders in flight, the state of each service."""

import asyncio
import ssl
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp
import asyncpg

from ironcart.embedded.supervisor import Part, State

ASK_TIMEOUT_S = 0.8
ACCEPTED = "ironcart_orders_accepted_total"
FINISHED = "ironcart_orders_finished_total"
IN_FLIGHT = "SELECT count(*) FROM orders.orders WHERE phase IN ('open', 'cancelling')"
# So that it walks the index of what is open, rather than fetching every order that has been.
WALK = {"enable_seqscan": "off", "enable_bitmapscan": "off"}
UNKNOWN = "?"


def counter(exposition: str, name: str, label: str = "") -> float:
    """Return the sum of a counter's samples in a /metrics page, those with `label` in them."""
    total = 0.0
    for line in exposition.splitlines():
        sample, _, value = line.rpartition(" ")
        if sample.partition("{")[0] == name and label in sample:
            total += float(value)
    return total


_AWAY = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)


class Rate:
    """Growth a second of a counter that starts at zero again when its process does."""

    def __init__(self) -> None:
        self._before: tuple[float, float] | None = None

    def of(self, value: float, now_s: float) -> float:
        """Return the growth a second since the value before."""
        before, self._before = self._before, (value, now_s)
        if before is None or now_s <= before[1]:
            return 0.0
        grown = value - before[0] if value >= before[0] else value
        return grown / (now_s - before[1])


class StatusLine:
    """Asks the services and the database; whatever does not answer is shown as such."""

    def __init__(
        self,
        *,
        urls: Mapping[str, str],
        parts: Mapping[str, Part],
        database_url: str,
        ca: Path | None = None,
    ) -> None:
        self._urls = urls
        self._ca = ca
        self._parts = parts
        self._database_url = database_url
        self._database: asyncpg.Connection | None = None
        self._accepted = Rate()
        self._confirmed = Rate()

    async def __aenter__(self) -> Self:
        timeout = aiohttp.ClientTimeout(total=ASK_TIMEOUT_S)
        known = ssl.create_default_context(cafile=self._ca) if self._ca else True
        connector = aiohttp.TCPConnector(ssl=known)
        self._http = aiohttp.ClientSession(timeout=timeout, connector=connector)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._http.close()
        if self._database is not None:
            self._database.terminate()

    async def read(self) -> str:
        """Return the line for this moment."""
        names = list(self._urls)
        metrics, in_flight, states = await asyncio.gather(
            self._get(f"{self._urls['orders']}/metrics?name[]={ACCEPTED}&name[]={FINISHED}"),
            self._count_in_flight(),
            asyncio.gather(*(self._state(name) for name in names)),
        )
        services = "  ".join(f"{name} {state}" for name, state in zip(names, states, strict=True))
        return f"{self._rates(metrics)}  in flight {in_flight} | {services}"

    def _rates(self, metrics: tuple[int, str] | None) -> str:
        if metrics is None or metrics[0] != 200:
            return f"accepted {UNKNOWN}/s  confirmed {UNKNOWN}/s"
        now_s = time.monotonic()
        accepted = self._accepted.of(counter(metrics[1], ACCEPTED), now_s)
        confirmed = counter(metrics[1], FINISHED, 'status="confirmed"')
        return f"accepted {accepted:.1f}/s  confirmed {self._confirmed.of(confirmed, now_s):.1f}/s"

    async def _state(self, name: str) -> str:
        part = self._parts[name]
        if part.state is State.RESTARTING or (part.state is State.STARTING and part.restarts):
            return "restarting"
        answer = await self._get(f"{self._urls[name]}/ready")
        if answer is not None and answer[0] == 200:
            return "ok"
        return "draining" if answer is not None and "draining" in answer[1] else "down"

    async def _get(self, url: str) -> tuple[int, str] | None:
        try:
            async with self._http.get(url) as response:
                return response.status, await response.text()
        except (aiohttp.ClientError, TimeoutError, OSError):
            return None

    async def _count_in_flight(self) -> str:
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                if self._database is None or self._database.is_closed():
                    self._database = await asyncpg.connect(self._database_url, server_settings=WALK)
                return str(await self._database.fetchval(IN_FLIGHT))
        except (*_AWAY, TimeoutError, OSError):
            # A connection that was cut off in the middle is of no more use.
            if self._database is not None:
                self._database.terminate()
                self._database = None
            return UNKNOWN
