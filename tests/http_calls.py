"""HTTP requests as a test writes them, to the character; what is refused must be a problem."""

import asyncio
import json
import secrets
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

from shopping import System, order

ROUTES = {
    "orders": {
        "POST /orders",
        "GET /orders",
        "GET /orders/{order_id}",
        "POST /orders/{order_id}/cancel",
        "GET /orders/{order_id}/events",
    },
    "inventory": {
        "GET /stock",
        "GET /stock/{sku}",
        "PUT /stock/{sku}",
        "POST /stock/{sku}/adjustments",
    },
    "payments": {
        "GET /payments/{order_id}",
        "POST /payments/{order_id}/refunds",
        "POST /webhooks/stripe",
    },
    "notifications": {
        "GET /notifications",
        "POST /webhook-endpoints",
        "GET /webhook-endpoints",
        "GET /webhook-endpoints/{endpoint_id}",
        "DELETE /webhook-endpoints/{endpoint_id}",
    },
    "audit": {"GET /audit/{aggregate_id}", "GET /audit/verify", "GET /audit/checkpoints"},
}
VITAL_SIGNS = ("/health", "/ready", "/metrics", "/openapi.json")
PROBLEM = "application/problem+json"
JSON = {"Content-Type": "application/json"}
TIMEOUT_S = 40.0


class Reply:
    """An answer, read whole."""

    def __init__(self, answer: aiohttp.ClientResponse, body: bytes) -> None:
        self.status, self.headers, self.body = answer.status, answer.headers, body
        self.kind = answer.content_type

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def pointers(self) -> list[str]:
        return [fault["pointer"] for fault in self.json.get("errors", [])]


async def send(
    system: System,
    method: str,
    path: str,
    body: Any = None,
    *,
    service: str = "orders",
    **headers: str,
) -> Reply:
    """One request, its path as it is written; every error must be a problem."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    if data is not None and "Content-Type" not in named:
        named |= JSON
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_S)) as session,
        session.request(
            method, URL(system.url(service) + path, encoded=True), data=data, headers=named
        ) as answer,
    ):
        reply = Reply(answer, await answer.read())
    assert reply.status < 500, reply.body
    if reply.status >= 400:
        assert reply.kind == PROBLEM, reply.headers
        if method != "HEAD":
            assert reply.json["status"] == reply.status
            assert reply.json["title"]
    return reply


def an_order(**changes: Any) -> dict[str, Any]:
    return order(f"SKU-{secrets.token_hex(4)}", 1, **changes)


async def converse(system: System, said: bytes) -> bytes:
    """Say bytes; what comes back until the other side has nothing more to say for now."""
    address = urlsplit(system.url("orders"))
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        writer.write(said)
        return await asyncio.wait_for(reader.read(65_536), 10)
    finally:
        writer.close()
