"""A shop in this process for the load generator, over HTTP, with faults on demand."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from aiohttp import web

WAIT_S = 30

Fault = Callable[[str, int], str]


@dataclass
class LoadShop:
    """`fault(key, attempt)` may answer "503", "reset", "400" or "" for none."""

    fault: Fault = lambda _key, _attempt: ""
    arrived: Callable[[str], None] = lambda _key: None
    status: str = "confirmed"
    answer_delay_s: float = 0
    url: str = ""
    posts: list[tuple[str, bytes]] = field(default_factory=list)
    orders: dict[str, dict[str, Any]] = field(default_factory=dict)
    answers: dict[str, tuple[bytes, bytes]] = field(default_factory=dict)
    stock: dict[str, list[int]] = field(default_factory=dict)
    stock_calls: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    pages_read: int = 0
    gates: list[asyncio.Event] = field(default_factory=list)
    activity: asyncio.Event = field(default_factory=asyncio.Event)

    async def until(self, reached: Callable[[], object]) -> None:
        """Wait until the requests that came in so far make `reached` true."""
        async with asyncio.timeout(WAIT_S):
            while not reached():
                self.activity.clear()
                await self.activity.wait()

    def app(self) -> web.Application:
        """Return the routes."""
        app = web.Application()
        app.router.add_post("/orders", self._place)
        app.router.add_get("/orders", self._list)
        app.router.add_get("/stock/{sku}", self._level)
        app.router.add_put("/stock/{sku}", self._put)
        app.router.add_post("/stock/{sku}/adjustments", self._adjust)
        return app

    async def _place(self, request: web.Request) -> web.StreamResponse:
        key = request.headers["Idempotency-Key"]
        body = await request.read()
        self.arrived(key)
        self.posts.append((key, body))
        self.activity.set()
        for gate in self.gates:
            await gate.wait()
        await asyncio.sleep(self.answer_delay_s)
        fault = self.fault(key, sum(key == other for other, _ in self.posts))
        if fault == "reset":
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if fault:
            return web.Response(status=int(fault))
        if key in self.answers and self.answers[key][0] != body:
            return web.Response(status=422)
        if key not in self.answers:
            self.answers[key] = (body, self._store(body))
        return web.Response(status=202, body=self.answers[key][1])

    def _store(self, body: bytes) -> bytes:
        order = json.loads(body, parse_float=Decimal)
        order_id = f"ORD-{len(self.orders) + 1}"
        created = datetime(2026, 11, 20, tzinfo=UTC) + timedelta(milliseconds=len(self.orders))
        self.orders[order_id] = {
            "order_id": order_id,
            "status": self.status,
            "customer_id": order["customer_id"],
            "created_at": created.isoformat(),
            "updated_at": (created + timedelta(milliseconds=250)).isoformat(),
        }
        self.activity.set()
        return json.dumps({"order_id": order_id, "status": "pending"}).encode()

    async def _list(self, request: web.Request) -> web.Response:
        self.pages_read += 1
        newest_first = list(reversed(self.orders.values()))
        start, limit = int(request.query.get("cursor", 0)), int(request.query["limit"])
        more = str(start + limit) if start + limit < len(newest_first) else None
        page = newest_first[start : start + limit]
        return web.json_response({"items": page, "next_cursor": more})

    async def _level(self, request: web.Request) -> web.Response:
        on_hand, reserved = self.stock.get(request.match_info["sku"], [0, 0])
        return web.json_response(
            {"on_hand": on_hand, "reserved": reserved, "available": on_hand - reserved}
        )

    async def _put(self, request: web.Request) -> web.Response:
        sku = request.match_info["sku"]
        body = await request.json()
        self.stock_calls.append(("PUT", sku, body))
        self.stock.setdefault(sku, [0, 0])[0] = body["on_hand"]
        return web.json_response({})

    async def _adjust(self, request: web.Request) -> web.Response:
        sku = request.match_info["sku"]
        body = await request.json()
        self.stock_calls.append(("POST", sku, body))
        self.stock[sku][0] += body["delta"]
        self.activity.set()
        return web.json_response({})


@asynccontextmanager
async def serving(
    shop: LoadShop, port: int, context: ssl.SSLContext | None = None
) -> AsyncIterator[LoadShop]:
    """Serve the shop on this port for the length of a `with`, with `context` over TLS."""
    runner = web.AppRunner(shop.app(), shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, ssl_context=context).start()
    shop.url = f"http{'s' if context else ''}://127.0.0.1:{port}"
    try:
        yield shop
    finally:
        await runner.cleanup()
