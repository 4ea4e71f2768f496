"""Tells registered endpoints of what happened, signed the way Stripe signs. Small: an event that
is not delivered after a few attempts, or when the sandbox dies, is lost.
"""

import asyncio
import hashlib
import hmac
import secrets
import time
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from ironcart.embedded.sandbox.logs import log
from ironcart.embedded.sandbox.objects import charge_object, intent_object
from ironcart.embedded.sandbox.records import Change

RETRY_DELAYS_S = (0.2, 1.0, 5.0)
DELIVERY_TIMEOUT_S = 5.0
MAX_UNDELIVERED = 10_000
API_VERSION = "2026-10-28.endive"


class Endpoint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where to, and the secret (whsec_...) that signs."""

    url: str
    secret: str


class InvalidEndpointError(ValueError):
    """An endpoint that cannot be; the message says what to change."""


def parse_endpoint(body: bytes) -> Endpoint:
    """Read the JSON body of POST /sandbox/webhooks; InvalidEndpointError with one clear line."""
    try:
        endpoint = msgspec.json.decode(body, type=Endpoint)
    except msgspec.DecodeError as error:
        raise InvalidEndpointError(f"not a webhook endpoint: {error}") from error
    if not endpoint.url.startswith(("http://", "https://")):
        raise InvalidEndpointError(f"url must begin with http:// or https://; got {endpoint.url!r}")
    if not endpoint.secret:
        raise InvalidEndpointError("secret must not be empty")
    return endpoint


def sign(payload: bytes, secret: str, at: int) -> str:
    """The value of the Stripe-Signature header, `at` in unix seconds."""
    signed = f"{at}.".encode() + payload
    return f"t={at},v1={hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()}"


def event_of(change: Change) -> dict[str, Any] | None:
    """The event that a change is worth; None for most changes."""
    intent = change.intent
    if intent is None:
        return None
    if change.refund is not None:
        kind, about = "charge.refunded", charge_object(intent)
    elif change.failure is not None and change.failure.type == "card_error":
        kind, about = "payment_intent.payment_failed", intent_object(intent)
    elif change.failure is None and intent.status in {"succeeded", "canceled"}:
        kind, about = f"payment_intent.{intent.status}", intent_object(intent)
    else:
        return None
    return {
        "id": f"evt_{secrets.token_hex(12)}",
        "object": "event",
        "api_version": API_VERSION,
        "created": int(change.at),
        "data": {"object": about},
        "livemode": False,
        "pending_webhooks": 1,
        "request": {"id": None, "idempotency_key": change.key},
        "type": kind,
    }


class Webhooks:
    """The endpoints (kept in a file) and the deliveries under way."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._session: aiohttp.ClientSession | None = None
        self._deliveries: set[asyncio.Task[None]] = set()
        self.endpoints: list[Endpoint] = []
        if path.exists():
            self.endpoints = msgspec.json.decode(path.read_bytes(), type=list[Endpoint])

    def register(self, endpoint: Endpoint) -> None:
        """Add an endpoint, or give the one with this address another secret."""
        others = [known for known in self.endpoints if known.url != endpoint.url]
        self._keep([*others, endpoint])

    def clear(self) -> None:
        """Forget every endpoint."""
        self._keep([])

    def tell(self, change: Change) -> None:
        """Send the change's event, if it is worth one, to every endpoint; waits for nothing."""
        if not self.endpoints:
            return
        event = event_of(change)
        if event is None:
            return
        payload = msgspec.json.encode(event)
        for endpoint in self.endpoints:
            if len(self._deliveries) >= MAX_UNDELIVERED:
                log("warning", "Webhook dropped: too many are undelivered", event=event["id"])
                return
            delivery = asyncio.create_task(self._deliver(endpoint, payload, event["id"]))
            self._deliveries.add(delivery)
            delivery.add_done_callback(self._deliveries.discard)

    async def close(self) -> None:
        """Give up what is under way."""
        for delivery in self._deliveries:
            delivery.cancel()
        await asyncio.gather(*self._deliveries, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    async def _deliver(self, endpoint: Endpoint, payload: bytes, event_id: str) -> None:
        for delay_s in (*RETRY_DELAYS_S, None):
            problem = await self._send(endpoint, payload)
            if problem is None:
                return
            if delay_s is not None:
                await asyncio.sleep(delay_s)
        log("warning", "Webhook given up", event=event_id, url=endpoint.url, error=problem)

    async def _send(self, endpoint: Endpoint, payload: bytes) -> str | None:
        """One attempt; what went wrong, or None."""
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=DELIVERY_TIMEOUT_S)
            self._session = aiohttp.ClientSession(timeout=timeout)
        headers = {
            "Content-Type": "application/json; charset=utf-8",
            "Stripe-Signature": sign(payload, endpoint.secret, int(time.time())),
        }
        try:
            async with self._session.post(endpoint.url, data=payload, headers=headers) as answer:
                return None if answer.status < 300 else f"answered {answer.status}"
        except (aiohttp.ClientError, TimeoutError) as error:
            return str(error) or type(error).__name__

    def _keep(self, endpoints: list[Endpoint]) -> None:
        fresh = self._path.with_suffix(".new")
        fresh.write_bytes(msgspec.json.encode(endpoints))
        fresh.replace(self._path)
        self.endpoints = endpoints
