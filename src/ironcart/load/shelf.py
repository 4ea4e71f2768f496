"""The generator's own stock: filled at the start when too low, topped up while orders take it."""

import asyncio
import time
from dataclasses import dataclass

import aiohttp
import msgspec

from ironcart.load.trust import untrusted

STOCK_LOW = 10_000
STOCK_TARGET = 20_000
CHECK_INTERVAL_S = 1.0
# Others may take from the same SKUs, so that what we counted ourselves goes stale.
REFRESH_AFTER_S = 15.0
START_TIMEOUT_S = 15.0
RETRY_DELAY_S = 0.5

FAILURES = (aiohttp.ClientError, OSError, TimeoutError, msgspec.DecodeError)


class _Level(msgspec.Struct):
    on_hand: int = 0
    reserved: int = 0
    available: int = 0


@dataclass(slots=True)
class _Slot:
    available: int = 0
    read_at: float = 0.0


class Shelf:
    """Keeps every SKU of the run available; an inventory that does not answer is asked again."""

    def __init__(self, session: aiohttp.ClientSession, url: str, skus: list[str]) -> None:
        self._session = session
        self._url = url
        self._slots = {sku: _Slot() for sku in skus}
        self._levels = msgspec.json.Decoder(_Level)
        self.top_ups = 0

    def take(self, lines: dict[str, int]) -> None:
        """Count what an order takes."""
        for sku, quantity in lines.items():
            self._slots[sku].available -= quantity

    async def fill(self) -> str:
        """Set each SKU that is too low; returns what is in the way, or nothing, within 15 s.

        Raises `InvalidPlanError` at once when inventory's certificate is not trusted.
        """
        deadline = time.monotonic() + START_TIMEOUT_S
        left = list(self._slots)
        while left:
            try:
                level = await self._read(left[-1])
                if level.available < STOCK_LOW:
                    on_hand = level.reserved + STOCK_TARGET
                    await self._send("PUT", f"/stock/{left[-1]}", {"on_hand": on_hand})
                    await self._read(left[-1])
                left.pop()
            except aiohttp.ClientConnectorCertificateError as error:
                raise untrusted(self._url, error) from error
            except FAILURES as error:
                if time.monotonic() >= deadline:
                    return f"stock of {left[-1]} at {self._url}: {error or type(error).__name__}"
                await asyncio.sleep(RETRY_DELAY_S)
        return ""

    async def keep(self) -> None:
        """Top up for ever; a SKU that cannot be topped up now is tried again a second later."""
        while True:
            await asyncio.sleep(CHECK_INTERVAL_S)
            for sku, slot in self._slots.items():
                stale = time.monotonic() - slot.read_at > REFRESH_AFTER_S
                if slot.available >= STOCK_LOW and not stale:
                    continue
                try:
                    level = await self._read(sku)
                    if level.available < STOCK_LOW:
                        delta = STOCK_TARGET - level.available
                        body: dict[str, int | str] = {"delta": delta, "reason": "load"}
                        await self._send("POST", f"/stock/{sku}/adjustments", body)
                        self.top_ups += 1
                        slot.available += delta
                except FAILURES:
                    break

    async def _read(self, sku: str) -> _Level:
        async with self._session.get(f"{self._url}/stock/{sku}") as response:
            body = await response.read()
            # A SKU that inventory has never heard of may be a 404 as well as zero.
            if response.status not in {200, 404}:
                raise aiohttp.ClientError(f"GET /stock/{sku} answered {response.status}")
        level = self._levels.decode(body) if response.status == 200 else _Level()
        self._slots[sku] = _Slot(level.available, time.monotonic())
        return level

    async def _send(self, method: str, path: str, body: dict[str, int | str]) -> None:
        headers = {"Content-Type": "application/json"}
        data = msgspec.json.encode(body)
        async with self._session.request(
            method, f"{self._url}{path}", data=data, headers=headers
        ) as response:
            if response.status >= 300:
                raise aiohttp.ClientError(f"{method} {path} answered {response.status}")
